//! An open volume whose store is away for a long time.

use tokio::task::JoinHandle;

use super::faults::{Kind, Trouble};
use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const BUFFER_BYTES: u64 = 4 * MIB;

/// A volume with a small buffer that waits ten minutes for its store, and the trouble with that store.
struct Outage {
    scene: Scene,
    grant: GrantId,
    volume: Volume,
    trouble: Arc<Trouble>,
}

impl Outage {
    async fn new() -> Self {
        let mut scene = Scene::new().await;
        let trouble = Trouble::new(&mut scene, Kind::Away, String::new());
        let grant = scene.grant("a").await;
        let mut options = scene.options(grant, Arc::new(MemoryBuffer::new(BUFFER_BYTES as usize)));
        options.limits.outage = 10 * MINUTE;
        let volume = Volume::open(scene.log.clone(), options, deadline()).await.unwrap();
        Self { scene, grant, volume, trouble }
    }

    fn take_store_away(&self, away: bool) {
        self.trouble.on.send_replace(away);
    }

    fn flush(&self) -> JoinHandle<Result<(), VolumeError>> {
        let volume = self.volume.clone();
        tokio::spawn(async move { volume.flush().await })
    }

    /// Writes without end, a MiB at a time; counts those that were answered.
    fn fill(&self) -> (Arc<AtomicU64>, JoinHandle<VolumeError>) {
        let (volume, written) = (self.volume.clone(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&written);
        let writer = tokio::spawn(async move {
            loop {
                let mib = counted.load(Ordering::Relaxed);
                if let Err(error) = volume.write(mib * MIB % SIZE, filled(mib as u8 + 1, MIB)).await {
                    return error;
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        (written, writer)
    }
}

#[tokio::test(start_paused = true)]
async fn io_waits_for_a_store_that_is_away_and_goes_on_when_it_is_back() {
    let outage = Outage::new().await;
    let volume = &outage.volume;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    outage.take_store_away(true);
    volume.write(8192, filled(2, 4096)).await.unwrap();
    let flush = outage.flush();
    let read = tokio::spawn({
        let volume = volume.clone();
        async move { volume.read(0, 4096).await }
    });
    tokio::time::sleep(9 * MINUTE).await;
    assert!(!flush.is_finished() && !read.is_finished());
    let (since, reason) = volume.away().expect("an outage is told");
    assert!(since.elapsed() > 8 * MINUTE && reason.contains("no reply"), "{reason}");
    outage.take_store_away(false);
    flush.await.unwrap().unwrap();
    assert_eq!(read.await.unwrap().unwrap(), filled(1, 4096));
    assert!(volume.away().is_none());
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_writes_are_held_back_and_memory_is_bounded() {
    let outage = Outage::new().await;
    outage.take_store_away(true);
    let (written, writer) = outage.fill();
    tokio::time::sleep(9 * MINUTE).await;
    assert!(!writer.is_finished());
    assert!((1..=BUFFER_BYTES / MIB).contains(&written.load(Ordering::Relaxed)));
    assert!(outage.volume.dirty_bytes() <= BUFFER_BYTES);
    outage.take_store_away(false);
    tokio::time::sleep(MINUTE).await;
    assert!(written.load(Ordering::Relaxed) > BUFFER_BYTES / MIB, "the writer goes on");
    writer.abort();
}

#[tokio::test(start_paused = true)]
async fn all_io_fails_when_the_store_has_been_away_for_too_long_and_nothing_answered_is_lost() {
    let outage = Outage::new().await;
    let volume = &outage.volume;
    volume.write(0, filled(9, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    outage.take_store_away(true);
    let begun = Instant::now();
    let (written, writer) = outage.fill();
    let early = outage.flush();
    tokio::time::sleep(9 * MINUTE).await;
    let late = outage.flush();
    // The limit is the outage's, not each request's.
    for failed in [early.await.unwrap(), late.await.unwrap()] {
        assert!(matches!(failed, Err(VolumeError::NotCommitted { .. })), "{failed:?}");
    }
    assert!(matches!(writer.await.unwrap(), VolumeError::NotCommitted { .. }));
    assert!((10 * MINUTE..11 * MINUTE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let again = Instant::now();
    assert!(matches!(volume.flush().await, Err(VolumeError::NotCommitted { .. })));
    assert!(volume.read(SIZE - 4096, 4096).await.is_ok(), "a hole needs no store");
    assert!(again.elapsed() < Duration::from_secs(1));
    outage.take_store_away(false);
    tokio::time::sleep(MINUTE).await;
    volume.close().await.unwrap();
    let again = outage.scene.open(outage.grant).await;
    for mib in 0..written.load(Ordering::Relaxed) {
        assert_eq!(again.read(mib * MIB, MIB).await.unwrap(), filled(mib as u8 + 1, MIB));
    }
}

#[tokio::test(start_paused = true)]
async fn reads_fail_soon_once_the_store_has_been_away_for_too_long() {
    let outage = Outage::new().await;
    let volume = &outage.volume;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    outage.take_store_away(true);
    let begun = Instant::now();
    let failed = volume.read(0, 4096).await;
    assert!(failed.as_ref().is_err_and(VolumeError::may_pass), "{failed:?}");
    assert!((10 * MINUTE..11 * MINUTE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let failed = volume.read(0, 4096).await;
    assert!(failed.as_ref().is_err_and(VolumeError::may_pass), "{failed:?}");
    assert!(begun.elapsed() < MINUTE, "{:?}", begun.elapsed());
    outage.take_store_away(false);
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(1, 4096));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_store_fails_at_once_when_the_session_ends() {
    let outage = Outage::new().await;
    outage.volume.write(SIZE - 4096, filled(1, 4096)).await.unwrap();
    outage.volume.flush().await.unwrap();
    outage.take_store_away(true);
    let (_, writer) = outage.fill();
    let flush = outage.flush();
    let read = tokio::spawn({
        let volume = outage.volume.clone();
        async move { volume.read(SIZE - 4096, 4096).await }
    });
    tokio::time::sleep(MINUTE).await;
    let begun = Instant::now();
    outage.volume.abandon();
    let read = read.await.unwrap().map(drop);
    let failed = [flush.await.unwrap().unwrap_err(), read.unwrap_err(), writer.await.unwrap()];
    for error in failed {
        assert!(matches!(error, VolumeError::Over { .. }), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
}
