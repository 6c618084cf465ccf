//! Copying back what lies in an archive: how fast, in which order, and how far it is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_engine::buffer::MemoryBuffer;
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::codec::Codec;
use holdfast_engine::control::{CreateVolume, SourceSnapshot, publish};
use holdfast_engine::env::Env;
use holdfast_engine::host::{Host, OpenAs};
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, VolumeId};
use holdfast_engine::log::GrantMode;
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolKind, PoolSet};
use holdfast_engine::store::{Listed, Memory, Store, StoreError};
use holdfast_engine::volume::{Hydrate, Hydration, Limits, Pace, Volume, VolumeError, bytes_in, hydrate};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
/// What a request of a store takes.
const DELAY: Duration = Duration::from_millis(10);
/// Bytes that are copied together.
const STEP: u64 = 4 * MIB;

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// A store that takes its time, and counts the gets that are under way together.
#[derive(Debug, Default)]
struct Slow {
    inner: Memory,
    gets: AtomicUsize,
    most_gets: AtomicUsize,
    /// How many more gets it answers; without it, all.
    answers: Mutex<Option<usize>>,
    unanswered: AtomicUsize,
}

impl Slow {
    async fn answer(&self, key: &str) -> Result<(), StoreError> {
        tokio::time::sleep(DELAY).await;
        match &mut *self.answers.lock().unwrap() {
            Some(0) => {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                Err(StoreError::Unavailable { key: key.into(), reason: "away".into() })
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Goes away after so many gets; comes back without a number.
    fn answers(&self, gets: Option<usize>) {
        *self.answers.lock().unwrap() = gets;
    }

    fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Changes a byte of a segment.
    async fn damage_segment(&self) {
        let listed = self.inner.list("volumes/", None, 1000).await.unwrap();
        let key = listed.into_iter().map(|listed| listed.key).find(|key| key.contains("/seg/")).unwrap();
        let mut body = self.inner.get(&key).await.unwrap().to_vec();
        let middle = body.len() / 2;
        body[middle] ^= 1;
        self.inner.delete(&key).await.unwrap();
        self.inner.put_if_absent(&key, body.into()).await.unwrap();
    }
}

#[async_trait]
impl Store for Slow {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        tokio::time::sleep(DELAY).await;
        self.inner.put_if_absent(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.answer(key).await?;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let gets = self.gets.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_gets.fetch_max(gets, Ordering::Relaxed);
        let answer = self.answer(key).await;
        self.gets.fetch_sub(1, Ordering::Relaxed);
        answer?;
        self.inner.get_range(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
}

/// A pool, and another one far away that volumes are restored from.
struct Scene {
    host: Host,
    cache: Arc<MemoryCache>,
    pool: Arc<Pool>,
    far: Arc<Pool>,
    far_store: Arc<Slow>,
}

impl Scene {
    async fn new() -> Self {
        let env = Env::system();
        let open = async |name: &str, store: Arc<Slow>| {
            Pool::over(name, "memory", store, None, Access::ReadWrite, env.clone()).await.unwrap()
        };
        let far_store = Arc::new(Slow::default());
        let pool = open("default", Arc::default()).await;
        let far = open("offsite", Arc::clone(&far_store)).await;
        let pools = [(PoolKind::Pool, Arc::clone(&pool)), (PoolKind::Target, Arc::clone(&far))];
        let cache = Arc::new(MemoryCache::new(64 << 20));
        let host = Host {
            pools: Arc::new(PoolSet::of(pools, env)),
            pages: PageCache::new(4 << 20),
            cache: Arc::clone(&cache) as Arc<_>,
        };
        Self { host, cache, pool, far, far_store }
    }

    async fn create(&self, pool: &Arc<Pool>, name: &str, source: Option<SourceSnapshot>) -> VolumeId {
        let (name, parameters) = (name.to_owned(), BTreeMap::new());
        let new = CreateVolume { name, size_bytes: SIZE, source, codec: Codec::Lz4, parameters };
        self.host.create_volume(pool, &new, deadline()).await.unwrap()
    }

    async fn open(&self, pool: &Arc<Pool>, volume: VolumeId, grant: GrantId) -> Volume {
        let buffer = Arc::new(MemoryBuffer::new(48 << 20));
        let open = OpenAs { grant, endpoint: String::new(), buffer, limits: Limits::default() };
        let found = self.host.find(pool, volume, deadline()).await.unwrap();
        self.host.open(&found, open, deadline()).await.unwrap()
    }

    async fn grant(&self, pool: &Arc<Pool>, volume: VolumeId) -> GrantId {
        let log = self.host.log(pool, volume, deadline()).await.unwrap();
        publish(&log, "node", GrantMode::ReadWrite, deadline()).await.unwrap()
    }

    /// A volume far away with `written` of data, and one in the pool that was restored from it.
    async fn restored(&self, name: &str, written: Range<u64>) -> Restored<'_> {
        let write = async |volume: &Volume| {
            for at in written.step_by(MIB as usize) {
                volume.write(at, data(at, MIB)).await.unwrap();
            }
        };
        self.restored_after(name, write).await
    }

    /// As [`Self::restored`], with what `write` writes.
    async fn restored_after(&self, name: &str, write: impl AsyncFnOnce(&Volume)) -> Restored<'_> {
        let source = self.create(&self.far, name, None).await;
        let volume = self.open(&self.far, source, self.grant(&self.far, source).await).await;
        write(&volume).await;
        let snapshot = volume.snapshot("s", "").await.unwrap();
        volume.close().await.unwrap();
        let point = SourceSnapshot { pool: Arc::clone(&self.far), volume: source, snapshot };
        let id = self.create(&self.pool, name, Some(point)).await;
        let grant = self.grant(&self.pool, id).await;
        let volume = self.open(&self.pool, id, grant).await;
        Restored { scene: self, source, grant, volume }
    }
}

/// A volume that was restored and is open.
struct Restored<'a> {
    scene: &'a Scene,
    /// What it was restored from.
    source: VolumeId,
    grant: GrantId,
    volume: Volume,
}

impl Restored<'_> {
    async fn task(&self, pace: &Arc<Pace>) -> Hydrate {
        let Scene { host, pool, .. } = self.scene;
        let found = host.find(pool, self.volume.id(), deadline()).await.unwrap();
        let total_bytes = host.restored_bytes(&found, deadline()).await.unwrap();
        Hydrate { foreign: found.foreign(), total_bytes, pace: Arc::clone(pace) }
    }

    async fn begin(&self, pace: &Arc<Pace>) -> Hydrating {
        let (progress, seen) = watch::channel(Hydration::default());
        let task = self.task(pace).await;
        Hydrating { task: tokio::spawn(hydrate(self.volume.clone(), task, progress)), seen }
    }

    async fn left_bytes(&self) -> u64 {
        let foreign = self.task(&Arc::new(Pace::new(0))).await.foreign;
        bytes_in(&self.volume.frozen().unwrap(), &foreign).await.unwrap()
    }

    /// The node plugin dies, and its successor opens the volume.
    async fn reopen(&mut self) {
        self.volume.abandon();
        self.volume = self.scene.open(&self.scene.pool, self.volume.id(), self.grant).await;
    }

    /// Whether nothing of a range is read from the archive.
    async fn is_copied(&self, range: Range<u64>) -> bool {
        let foreign = self.task(&Arc::new(Pace::new(0))).await.foreign;
        let blocks = range.start / BLOCK_BYTES..range.end / BLOCK_BYTES;
        let extents = self.volume.frozen().unwrap().lookup(blocks).await.unwrap();
        let places = extents.iter().filter_map(|extent| extent.location);
        places.into_iter().all(|location| !foreign.contains(&location.segment.volume))
    }
}

/// A hydration under way.
struct Hydrating {
    task: JoinHandle<Result<(), VolumeError>>,
    seen: watch::Receiver<Hydration>,
}

impl Hydrating {
    async fn until(&mut self, hydrated_bytes: u64) -> Hydration {
        *self.seen.wait_for(|seen| seen.hydrated_bytes >= hydrated_bytes).await.unwrap()
    }

    async fn end(self) -> Hydration {
        self.task.await.unwrap().unwrap();
        *self.seen.borrow()
    }
}

/// Bytes that no compression makes small, and that tell where they belong.
fn data(seed: u64, len: u64) -> Bytes {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(word).take((len / 8) as usize).flatten().collect::<Vec<u8>>().into()
}

#[tokio::test(start_paused = true)]
async fn it_runs_as_fast_as_requests_side_by_side_allow() {
    let scene = Scene::new().await;
    let restored = scene.restored("v", 0..64 * MIB).await;
    let begun = Instant::now();
    let seen = restored.begin(&Arc::new(Pace::new(0))).await.end().await;
    let took = begun.elapsed();
    assert_eq!(seen, Hydration { hydrated_bytes: 64 * MIB, total_bytes: 64 * MIB, done: true });
    // 64 MiB lie in some eight segments; to copy each of them takes a get, a put and a record.
    assert!(took < DELAY * 60, "{took:?}");
    for at in (0..64 * MIB).step_by(MIB as usize) {
        assert_eq!(restored.volume.read(at, MIB).await.unwrap(), data(at, MIB), "at {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_copied_takes_no_room_in_the_cache() {
    let scene = Scene::new().await;
    let restored = scene.restored("v", 0..16 * MIB).await;
    restored.volume.read(MIB, 4096).await.unwrap();
    let before = scene.cache.stats();
    restored.begin(&Arc::new(Pace::new(0))).await.end().await;
    let after = scene.cache.stats();
    assert!(before.entries > 0);
    assert_eq!((after.entries, after.evictions), (before.entries, 0));
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_slowly_while_the_volume_is_read() {
    let scene = Scene::new().await;
    let restored = scene.restored("v", 0..200 * MIB).await;
    let most_gets = &scene.far_store.most_gets;
    let mut under_way = restored.begin(&Arc::new(Pace::new(0))).await;
    under_way.until(2 * STEP).await;
    assert!(most_gets.load(Ordering::Relaxed) >= 4, "{most_gets:?} gets at once");
    let read_until = async |hydrated_bytes: u64| {
        while under_way.seen.borrow().hydrated_bytes < hydrated_bytes {
            restored.volume.read(0, 4096).await.unwrap();
            tokio::time::sleep(DELAY / 4).await;
        }
    };
    // When the steps that were begun have ended.
    read_until(12 * STEP).await;
    most_gets.store(0, Ordering::Relaxed);
    read_until(200 * MIB).await;
    // A step may lie in two segments.
    assert!(most_gets.load(Ordering::Relaxed) <= 2, "{most_gets:?} gets at once");
    assert!(under_way.end().await.done);
}

#[tokio::test(start_paused = true)]
async fn all_volumes_of_a_process_share_the_rate() {
    let scene = Scene::new().await;
    let one = scene.restored("one", 0..32 * MIB).await;
    let two = scene.restored("two", 0..32 * MIB).await;
    let pace = Arc::new(Pace::new(MIB));
    let begun = Instant::now();
    let (mut first, mut second) = (one.begin(&pace).await, two.begin(&pace).await);
    // Some steps are on credit at the beginning.
    let credit = Duration::from_secs(8 * STEP / MIB);
    let (first, second) = (first.until(32 * MIB).await, second.until(32 * MIB).await);
    let (took, due) = (begun.elapsed(), Duration::from_secs(64));
    assert!(took + credit >= due && took < due + credit, "{took:?} for {first:?} and {second:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_read_comes_first_with_what_lies_around_it_and_then_the_rest_in_order() {
    let scene = Scene::new().await;
    let restored = scene.restored("v", 0..200 * MIB).await;
    let mut under_way = restored.begin(&Arc::new(Pace::new(MIB / 4))).await;
    under_way.until(8 * STEP).await;
    assert!(restored.is_copied(0..8 * STEP).await);
    for at in [100 * MIB + 5 * 4096, 150 * MIB] {
        assert_eq!(
            restored.volume.read(at, 4096).await.unwrap(),
            data(at / MIB * MIB, MIB).slice((at % MIB) as usize..(at % MIB) as usize + 4096)
        );
    }
    // The steps that were begun, and one for each of the two.
    under_way.until(18 * STEP).await;
    assert!(restored.is_copied(100 * MIB..104 * MIB).await && restored.is_copied(148 * MIB..152 * MIB).await);
    assert!(
        !restored.is_copied(96 * MIB..100 * MIB).await && !restored.is_copied(152 * MIB..156 * MIB).await
    );
    assert!(restored.is_copied(0..16 * STEP).await);
    let ended = under_way.end().await;
    assert_eq!((ended.hydrated_bytes, ended.total_bytes), (200 * MIB, 200 * MIB));
    let copied_bytes = restored.volume.work().bytes;
    assert!((200 * MIB..201 * MIB).contains(&copied_bytes), "each block once: {copied_bytes} bytes");
    assert_eq!(restored.left_bytes().await, 0);
}

#[tokio::test(start_paused = true)]
async fn progress_is_exact_after_a_restart_and_after_writes() {
    let scene = Scene::new().await;
    let mut restored = scene.restored("v", 0..100 * MIB).await;
    let pace = Arc::new(Pace::new(MIB));
    let mut under_way = restored.begin(&pace).await;
    under_way.until(10 * STEP).await;
    // What is overwritten or discarded needs no copy; what is new is no matter of the archive.
    restored.volume.write(90 * MIB, data(7, MIB)).await.unwrap();
    restored.volume.discard(95 * MIB, 2 * MIB).await.unwrap();
    restored.volume.write(200 * MIB, data(8, MIB)).await.unwrap();
    restored.volume.flush().await.unwrap();
    restored.reopen().await;
    assert!(under_way.task.await.unwrap().is_err(), "the session is over");

    let left_bytes = restored.left_bytes().await;
    assert!(left_bytes <= 57 * MIB && left_bytes > 0, "{left_bytes} bytes are left");
    let mut again = restored.begin(&pace).await;
    let seen = *again.seen.wait_for(|seen| seen.total_bytes > 0).await.unwrap();
    assert_eq!((seen.total_bytes, seen.total_bytes - seen.hydrated_bytes), (100 * MIB, left_bytes));
    again.until(100 * MIB).await;
    let ended = again.end().await;
    assert_eq!(ended, Hydration { hydrated_bytes: 100 * MIB, total_bytes: 100 * MIB, done: true });
    assert_eq!(restored.volume.read(90 * MIB, MIB).await.unwrap(), data(7, MIB));
    assert_eq!(restored.volume.read(96 * MIB, 4096).await.unwrap(), Bytes::from(vec![0; 4096]));

    // Once more: nothing is left, and no request is made to find that out.
    restored.reopen().await;
    let begun = Instant::now();
    let (progress, seen) = watch::channel(Hydration::default());
    let task = Hydrate { total_bytes: Some(100 * MIB), ..restored.task(&pace).await };
    let asked = begun.elapsed();
    hydrate(restored.volume.clone(), task, progress).await.unwrap();
    assert!(seen.borrow().done);
    assert_eq!(begun.elapsed(), asked);
}

#[tokio::test(start_paused = true)]
async fn it_ends_where_the_archive_knows_of_nothing_but_discarded_blocks() {
    let scene = Scene::new().await;
    let discard = async |volume: &Volume| volume.discard(MIB, MIB).await.unwrap();
    let restored = scene.restored_after("v", discard).await;
    let under_way = restored.begin(&Arc::new(Pace::new(0))).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), under_way.end()).await;
    assert_eq!(ended.unwrap(), Hydration { hydrated_bytes: 0, total_bytes: 0, done: true });
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_checkpointed_while_the_archive_is_away() {
    let scene = Scene::new().await;
    let restored = scene.restored("v", 0..64 * MIB).await;
    scene.far_store.answers(Some(0));
    // So many that they are worth merging into the map of the archive.
    let places = || (0..SIZE).step_by(256 << 10);
    for at in places() {
        restored.volume.write(at, data(at + 1, BLOCK_BYTES)).await.unwrap();
    }
    restored.volume.snapshot("s", "").await.unwrap();
    let unanswered = scene.far_store.unanswered();
    assert!(unanswered > 0, "nothing was to be merged");
    let begun = Instant::now();
    restored.volume.snapshot("the next", "").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}: it was tried again at once", begun.elapsed());
    assert_eq!(scene.far_store.unanswered(), unanswered);
    scene.far_store.answers(None);
    restored.begin(&Arc::new(Pace::new(0))).await.end().await;
    for at in places() {
        assert_eq!(restored.volume.read(at, BLOCK_BYTES).await.unwrap(), data(at + 1, BLOCK_BYTES));
    }
    assert_eq!(
        restored.volume.read(63 * MIB + 4096, 4096).await.unwrap(),
        data(63 * MIB, MIB).slice(4096..8192)
    );
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_the_pool_is_read_at_once_while_the_archive_is_away() {
    let scene = Scene::new().await;
    let restored = scene.restored("v", 0..64 * MIB).await;
    restored.volume.write(MIB, data(7, MIB)).await.unwrap();
    restored.volume.snapshot("s", "").await.unwrap();
    scene.far_store.answers(Some(0));
    let begun = Instant::now();
    assert_eq!(restored.volume.read(MIB, MIB).await.unwrap(), data(7, MIB));
    assert!(begun.elapsed() < DELAY * 10, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_flush_waits_for_an_archive_that_goes_away_while_it_is_copied() {
    for gets in 0..12 {
        let scene = Scene::new().await;
        let restored = scene.restored("v", 0..4 * MIB).await;
        scene.far_store.answers(Some(gets));
        let task = Hydrate { total_bytes: Some(4 * MIB), ..Hydrate::unlimited([restored.source].into()) };
        let (progress, _seen) = watch::channel(Hydration::default());
        let under_way = tokio::spawn(hydrate(restored.volume.clone(), task, progress));
        tokio::time::sleep(Duration::from_secs(1)).await;
        restored.volume.write(8 * MIB, data(8, MIB)).await.unwrap();
        let flushed = tokio::time::timeout(Duration::from_secs(1), restored.volume.flush()).await;
        assert!(flushed.is_ok(), "after {gets} gets");
        flushed.unwrap().unwrap();
        restored.volume.abandon();
        under_way.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_keeps_nothing_else_from_being_copied() {
    let scene = Scene::new().await;
    let restored = scene.restored("v", 0..64 * MIB).await;
    scene.far_store.damage_segment().await;
    let begun = Instant::now();
    let mut under_way = restored.begin(&Arc::new(Pace::new(0))).await;
    let seen = under_way.until(64 * MIB - STEP).await;
    let took = begun.elapsed();
    assert!(took < DELAY * 60 && !seen.done, "{took:?} for {seen:?}");
    restored.volume.abandon();
    assert!(under_way.task.await.unwrap().is_err(), "the session is over");
}
