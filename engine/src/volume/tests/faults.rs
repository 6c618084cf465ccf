//! An open volume over a store that fails, loses replies and makes wait.

use std::ops::Range;

use tokio::sync::watch;

use super::*;
use crate::pool::layout;
use crate::store::{Listed, StoreError};

/// What becomes of requests for certain objects while [`Trouble::on`] is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Puts take effect; no reply arrives, also none to a get.
    Mute,
    /// Puts are refused at once; nothing is read or listed.
    Refuse,
    /// Gets wait until it is over.
    Hold,
    /// Puts wait until it is over.
    HoldPuts,
    /// Nothing is done, and no reply arrives.
    Away,
}

/// A store that makes trouble with the objects whose keys begin with a prefix.
#[derive(Debug)]
pub(super) struct Trouble {
    inner: Memory,
    kind: Kind,
    prefix: String,
    pub(super) on: watch::Sender<bool>,
    /// Requests that met it.
    met: watch::Sender<usize>,
}

impl Trouble {
    pub(super) fn new(scene: &mut Scene, kind: Kind, prefix: String) -> Arc<Self> {
        let (on, met) = (watch::Sender::new(false), watch::Sender::new(0));
        let trouble = Arc::new(Self { inner: scene.store.clone(), kind, prefix, on, met });
        scene.log.store = Arc::clone(&trouble) as Arc<dyn Store>;
        trouble
    }

    fn meets(&self, key: &str) -> bool {
        let meets = *self.on.borrow() && key.starts_with(&self.prefix);
        if meets {
            self.met.send_modify(|met| *met += 1);
        }
        meets
    }

    async fn gets(&self, key: &str) -> Result<(), StoreError> {
        match self.kind {
            Kind::Refuse if self.meets(key) => Err(no_reply(key)),
            Kind::Hold if self.meets(key) => {
                let _ = self.on.subscribe().wait_for(|on| !on).await;
                Ok(())
            }
            Kind::Mute | Kind::Away if self.meets(key) => Err(no_reply(key)),
            Kind::Hold | Kind::HoldPuts | Kind::Mute | Kind::Away | Kind::Refuse => Ok(()),
        }
    }

    pub(super) async fn was_met(&self) {
        self.met.subscribe().wait_for(|met| *met > 0).await.unwrap();
    }
}

fn no_reply(key: &str) -> StoreError {
    StoreError::Unavailable { key: key.into(), reason: "no reply".into() }
}

#[async_trait]
impl Store for Trouble {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        match self.kind {
            Kind::Refuse if self.meets(key) => {
                Err(StoreError::Refused { key: key.into(), reason: "not today".into() })
            }
            Kind::Mute if self.meets(key) => {
                let _ = self.inner.put_if_absent(key, body).await;
                Err(no_reply(key))
            }
            Kind::Away if self.meets(key) => Err(no_reply(key)),
            Kind::HoldPuts if self.meets(key) => {
                let _ = self.on.subscribe().wait_for(|on| !on).await;
                self.inner.put_if_absent(key, body).await
            }
            Kind::Hold | Kind::HoldPuts | Kind::Mute | Kind::Away | Kind::Refuse => {
                self.inner.put_if_absent(key, body).await
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.gets(key).await?;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.gets(key).await?;
        self.inner.get_range(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        if matches!(self.kind, Kind::Refuse | Kind::Away) && self.meets(prefix) {
            return Err(no_reply(prefix));
        }
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_whose_root_got_no_reply_does_not_stand_in_the_way_of_a_close() {
    let mut scene = Scene::new().await;
    let roots = layout::roots(scene.log.volume);
    let trouble = Trouble::new(&mut scene, Kind::Mute, roots);
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    volume.write(0, filled(1, 4096)).await.unwrap();
    trouble.on.send_replace(true);
    let failed = volume.close().await;
    assert!(matches!(failed, Err(VolumeError::NotCommitted { .. })), "{failed:?}");
    assert_eq!(layout_roots(&scene).await.len(), 1, "the root has landed");
    trouble.on.send_replace(false);
    volume.close().await.unwrap();
    assert_eq!(scene.open(grant).await.read(0, 4096).await.unwrap(), filled(1, 4096));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_fails_at_once_is_not_repeated_without_a_pause() {
    let mut scene = Scene::new().await;
    let roots = layout::roots(scene.log.volume);
    let trouble = Trouble::new(&mut scene, Kind::Refuse, roots);
    let volume = scene.open(scene.grant("a").await).await;
    trouble.on.send_replace(true);
    assert!(matches!(volume.snapshot("s", "").await, Err(VolumeError::NotCommitted { .. })));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let met = *trouble.met.borrow();
    assert!((2..30).contains(&met), "{met} attempts in a minute");
    trouble.on.send_replace(false);
    volume.close().await.unwrap();
    let control = scene.control().await;
    assert!(control.snapshots.values().all(|snapshot| snapshot.map.is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_not_ended_by_its_own_root() {
    let mut scene = Scene::new().await;
    let roots = layout::roots(scene.log.volume);
    let trouble = Trouble::new(&mut scene, Kind::Hold, roots);
    let volume = scene.open(scene.grant("a").await).await;
    trouble.on.send_replace(true);
    for round in 0..4 {
        volume.write(0, filled(round, 4096)).await.unwrap();
        volume.flush().await.unwrap();
    }
    // The root is there, and its checkpoint does not know it yet, when a late record of no effect is met.
    trouble.was_met().await;
    assert_eq!(layout_roots(&scene).await.len(), 1);
    let late = Log { store: Arc::new(scene.store.clone()), ..scene.log.clone() };
    let scene = Scene { log: late, ..scene };
    scene.append(ObjectId::NONE, Control::default(), vec![Op::Noop]).await;
    volume.write(0, filled(9, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    trouble.on.send_replace(false);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_write_to_part_of_a_block_does_not_undo_what_is_written_while_it_reads() {
    let mut scene = Scene::new().await;
    let records = layout::records(scene.log.volume);
    let trouble = Trouble::new(&mut scene, Kind::Hold, records);
    let volume = scene.open(scene.grant("a").await).await;
    volume.write(0, filled(1, 8192)).await.unwrap();
    volume.flush().await.unwrap();
    trouble.on.send_replace(true);
    let part = tokio::spawn({
        let volume = volume.clone();
        async move { volume.write(512, filled(2, 512)).await }
    });
    trouble.was_met().await;
    let others = tokio::spawn({
        let volume = volume.clone();
        async move {
            volume.write(0, filled(3, 4096)).await?;
            volume.discard(4096, 4096).await
        }
    });
    // As far as they come before the block is read.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    trouble.on.send_replace(false);
    part.await.unwrap().unwrap();
    others.await.unwrap().unwrap();
    let block = volume.read(0, 4096).await.unwrap();
    assert_eq!(block[..512], filled(3, 512));
    assert_eq!(block[1024..], filled(3, 3072));
    assert_eq!(volume.read(4096, 4096).await.unwrap(), filled(0, 4096));
}

#[tokio::test(start_paused = true)]
async fn a_successor_serves_before_its_predecessors_writes_are_in_the_log() {
    let mut scene = Scene::new().await;
    let segments = layout::segments(scene.log.volume);
    let trouble = Trouble::new(&mut scene, Kind::Refuse, segments);
    let grant = scene.grant("a").await;
    let shared = buffer();
    let first = scene.open_with(grant, Arc::clone(&shared)).await.unwrap();
    trouble.on.send_replace(true);
    first.write(0, filled(1, MIB)).await.unwrap();
    first.abandon();
    let second = scene.open_with(grant, Arc::clone(&shared)).await.unwrap();
    assert_eq!(second.read(0, MIB).await.unwrap(), filled(1, MIB));
    second.write(4096, filled(2, 4096)).await.unwrap();
    assert!(matches!(second.flush().await, Err(VolumeError::NotCommitted { .. })));
    trouble.on.send_replace(false);
    second.close().await.unwrap();
    let third = scene.open(grant).await;
    let expected = [filled(1, 4096), filled(2, 4096), filled(1, MIB - 8192)].concat();
    assert_eq!(third.read(0, MIB).await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_makes_no_requests() {
    let mut scene = Scene::new().await;
    let trouble = Trouble::new(&mut scene, Kind::Refuse, String::new());
    let volume = scene.open(scene.grant("a").await).await;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    trouble.on.send_replace(true);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(*trouble.met.borrow(), 0);
}
