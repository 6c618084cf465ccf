//! An open volume, as its users meet it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::buffer::MemoryBuffer;
use crate::cache::ChunkCache;
use crate::codec::{self, DataKey};
use crate::control::{publish, unpublish};
use crate::env::Env;
use crate::ids::{GrantId, VolumeId};
use crate::lineage::{Lineage, Source};
use crate::log::{Control, ControlOnly, GrantMode, Put, Record};
use crate::map::{PageCache, VolumePages};
use crate::store::{Memory, Store};

mod faults;
mod journal;
mod outages;
mod puts;
mod reading;
mod replays;
mod streams;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// Keeps nothing: every read goes to the store.
#[derive(Debug)]
struct NoCache;

impl ChunkCache for NoCache {}

/// A volume in a store in memory, and who may come to it.
struct Scene {
    store: Memory,
    log: Log,
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

impl Scene {
    async fn new() -> Self {
        Self::of_size(SIZE).await
    }

    async fn of_size(size_bytes: u64) -> Self {
        let env = Env::system();
        let store = Memory::default();
        let key = Some(DataKey::random(&*env.entropy));
        let volume = VolumeId::random(&*env.entropy);
        let log = Log { store: Arc::new(store.clone()), volume, key, env };
        let scene = Self { store, log };
        scene.append(ObjectId::NONE, Control::default(), vec![Op::Create { size_bytes }]).await;
        scene
    }

    /// Puts a record at the log's end, as somebody else would.
    async fn append(&self, session: SessionId, control: Control, ops: Vec<Op>) -> RecordNumber {
        let state = self.log.replay(&mut ControlOnly, deadline()).await.unwrap();
        let id = random_id(&self.log.env);
        let record = Record {
            volume: self.log.volume,
            number: state.next,
            id,
            session,
            prev: control.last,
            time_ms: 0,
            buffer_complete: 0,
            ops,
        };
        let body = codec::encode_record(record, None, self.log.key.as_ref()).unwrap().bytes;
        assert!(matches!(self.log.put(state.next, id, body, deadline()).await, Ok(Put::Done)));
        state.next
    }

    async fn control(&self) -> Control {
        self.log.replay(&mut ControlOnly, deadline()).await.unwrap().control
    }

    async fn grant(&self, node: &str) -> GrantId {
        publish(&self.log, node, GrantMode::ReadWrite, deadline()).await.unwrap()
    }

    fn options(&self, grant: GrantId, buffer: Arc<dyn DirtyBuffer>) -> OpenOptions {
        let lineage = Lineage::default();
        lineage.insert(self.log.volume, Source { store: self.log.store.clone(), key: self.log.key.clone() });
        let cache = PageCache::new(1 << 20);
        let pages = VolumePages::new(cache, lineage.clone(), self.log.volume, self.log.env.clone());
        let limits = Limits { checkpoint_records: 4, ..Limits::default() };
        OpenOptions {
            grant,
            endpoint: String::new(),
            buffer,
            cache: Arc::new(NoCache),
            pages,
            lineage,
            limits,
        }
    }

    async fn open_with(&self, grant: GrantId, buffer: Arc<dyn DirtyBuffer>) -> Result<Volume, OpenError> {
        Volume::open(self.log.clone(), self.options(grant, buffer), deadline()).await
    }

    async fn open(&self, grant: GrantId) -> Volume {
        self.open_with(grant, buffer()).await.unwrap()
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = self.store.list(prefix, None, 10_000).await.unwrap();
        listed.into_iter().map(|listed| listed.key).collect()
    }
}

fn buffer() -> Arc<dyn DirtyBuffer> {
    Arc::new(MemoryBuffer::new(48 << 20))
}

fn filled(byte: u8, len: u64) -> Bytes {
    Bytes::from(vec![byte; len as usize])
}

#[tokio::test]
async fn what_is_written_is_read_before_and_after_flush_and_reopening() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    volume.write(0, filled(1, 3 * MIB)).await.unwrap();
    volume.write(MIB, filled(2, 4096)).await.unwrap();
    volume.write(MIB + 4096 + 512, filled(3, 512)).await.unwrap();
    volume.discard(2 * MIB, MIB / 2).await.unwrap();
    let check = async |volume: &Volume| {
        assert_eq!(volume.read(0, 4096).await.unwrap(), filled(1, 4096));
        assert_eq!(volume.read(MIB, 4096).await.unwrap(), filled(2, 4096));
        let mixed = volume.read(MIB + 4096, 4096).await.unwrap();
        assert_eq!(mixed[..512], filled(1, 512));
        assert_eq!(mixed[512..1024], filled(3, 512));
        assert_eq!(mixed[1024..], filled(1, 3072));
        assert_eq!(volume.read(2 * MIB, MIB / 2).await.unwrap(), filled(0, MIB / 2));
        assert_eq!(volume.read(2 * MIB + MIB / 2, 4096).await.unwrap(), filled(1, 4096));
        assert_eq!(volume.read(SIZE - 4096, 4096).await.unwrap(), filled(0, 4096));
    };
    check(&volume).await;
    volume.flush().await.unwrap();
    check(&volume).await;
    volume.close().await.unwrap();
    assert!(matches!(volume.read(0, 4096).await, Err(VolumeError::Over { reason: Over::Closed, .. })));
    check(&scene.open(grant).await).await;
}

#[tokio::test]
async fn many_flushes_cross_checkpoints() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    for round in 0..40u64 {
        volume.write(round * 8192, filled(round as u8 + 1, 8192)).await.unwrap();
        volume.flush().await.unwrap();
    }
    volume.abandon();
    let volume = scene.open(grant).await;
    for round in 0..40u64 {
        assert_eq!(volume.read(round * 8192, 8192).await.unwrap(), filled(round as u8 + 1, 8192));
    }
    let roots = layout_roots(&scene).await;
    assert!(!roots.is_empty(), "forty records and no checkpoint");
}

async fn layout_roots(scene: &Scene) -> Vec<String> {
    scene.keys(&crate::pool::layout::roots(scene.log.volume)).await
}

#[tokio::test]
async fn a_small_flush_is_one_put() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let options = OpenOptions { limits: Limits::default(), ..scene.options(grant, buffer()) };
    let volume = Volume::open(scene.log.clone(), options, deadline()).await.unwrap();
    let before = scene.keys("").await.len();
    volume.write(0, filled(7, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(scene.keys("").await.len(), before + 1);
}

#[tokio::test]
async fn detaching_fences_a_writer_that_does_not_know() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let old = scene.open(grant).await;
    old.write(0, filled(1, 4096)).await.unwrap();
    old.flush().await.unwrap();

    unpublish(&scene.log, "a", deadline()).await.unwrap();
    let new = scene.open(scene.grant("b").await).await;
    old.write(0, filled(9, 4096)).await.unwrap();
    assert!(matches!(old.flush().await, Err(VolumeError::Over { .. })));
    assert!(old.read(0, 4096).await.is_err());
    assert_eq!(new.read(0, 4096).await.unwrap(), filled(1, 4096));
    let again = scene.open_with(grant, buffer()).await;
    assert!(matches!(again, Err(OpenError::NotGranted { .. })), "{again:?}");
}

#[tokio::test]
async fn a_successor_commits_what_its_predecessor_answered() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let shared = buffer();
    let first = scene.open_with(grant, Arc::clone(&shared)).await.unwrap();
    first.write(0, filled(1, 4096)).await.unwrap();
    first.flush().await.unwrap();
    first.write(4096, filled(2, 4096)).await.unwrap();
    first.abandon();

    let second = scene.open_with(grant, shared).await.unwrap();
    assert_eq!(second.read(0, 8192).await.unwrap(), [filled(1, 4096), filled(2, 4096)].concat());
    second.flush().await.unwrap();
    // It is in the log: one with an empty buffer sees it too.
    second.abandon();
    let third = scene.open(grant).await;
    assert_eq!(third.read(4096, 4096).await.unwrap(), filled(2, 4096));
}

#[tokio::test]
async fn the_buffer_of_a_revoked_grant_is_not_replayed_over_newer_data() {
    let scene = Scene::new().await;
    let shared = buffer();
    let first = scene.open_with(scene.grant("a").await, Arc::clone(&shared)).await.unwrap();
    first.write(0, filled(1, 4096)).await.unwrap();
    first.abandon();
    unpublish(&scene.log, "a", deadline()).await.unwrap();
    let second = scene.open(scene.grant("b").await).await;
    second.write(0, filled(2, 4096)).await.unwrap();
    second.close().await.unwrap();
    unpublish(&scene.log, "b", deadline()).await.unwrap();

    let third = scene.open_with(scene.grant("a").await, shared).await.unwrap();
    assert_eq!(third.read(0, 4096).await.unwrap(), filled(2, 4096));
}

#[tokio::test]
async fn a_snapshot_stays_what_it_was() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    volume.write(0, filled(1, MIB)).await.unwrap();
    let snapshot = volume.snapshot("first", "note").await.unwrap();
    volume.write(0, filled(2, MIB)).await.unwrap();
    volume.flush().await.unwrap();
    assert!(matches!(volume.snapshot("first", "").await, Err(VolumeError::Illegal { .. })));

    let control = scene.control().await;
    let found = &control.snapshots[&snapshot];
    assert_eq!((found.name.as_str(), found.meta.as_str(), found.size_bytes), ("first", "note", SIZE));
    let options = scene.options(grant, buffer());
    let reader = crate::snapshot::reader(
        &scene.log,
        snapshot,
        options.pages,
        options.lineage,
        options.cache,
        deadline(),
    )
    .await
    .unwrap();
    let mut out = vec![0; 4096];
    reader.read(3, 4, &mut out).await.unwrap();
    assert_eq!(out, filled(1, 4096));
    assert_eq!(volume.read(3 * 4096, 4096).await.unwrap(), filled(2, 4096));
}

#[tokio::test]
async fn a_snapshot_whose_session_died_before_its_checkpoint_gets_its_map_from_the_next() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    let session = volume.session();
    volume.abandon();
    let control = scene.control().await;
    let ops = vec![Op::Snapshot { name: "s".into(), meta: String::new() }];
    let snapshot = SnapshotId(scene.append(session, control, ops).await.0);
    assert!(scene.control().await.snapshots[&snapshot].map.is_none());

    let next = scene.open(grant).await;
    next.write(0, filled(2, 4096)).await.unwrap();
    next.close().await.unwrap();
    let options = scene.options(grant, buffer());
    let reader = crate::snapshot::reader(
        &scene.log,
        snapshot,
        options.pages,
        options.lineage,
        options.cache,
        deadline(),
    )
    .await
    .unwrap();
    let mut out = vec![0; 4096];
    reader.read(0, 1, &mut out).await.unwrap();
    assert_eq!(out, filled(1, 4096));
}

#[tokio::test]
async fn an_inert_record_at_the_next_number_is_stepped_over() {
    let scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    // Somebody who replayed long ago: its predecessor does not match.
    scene.append(ObjectId::NONE, Control::default(), vec![Op::Noop]).await;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(1, 4096));
}

#[tokio::test]
async fn a_bulk_write_is_invisible_until_its_record() {
    let scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    volume.write(0, filled(1, 2 * MIB)).await.unwrap();
    volume.flush().await.unwrap();
    let run = random_id(&scene.log.env);
    let mut bulk = volume.bulk(run);
    bulk.write(0, 0, &filled(5, MIB)).await.unwrap();
    bulk.discard(MIB / 4096, 16);
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(1, 4096));
    let ops = vec![Op::RunCommitted { run }, Op::Snapshot { name: "point".into(), meta: String::new() }];
    volume.commit_bulk(bulk, ops).await.unwrap();
    assert_eq!(volume.read(0, MIB).await.unwrap(), filled(5, MIB));
    assert_eq!(volume.read(MIB, 65536).await.unwrap(), filled(0, 65536));
    assert_eq!(volume.read(MIB + 65536, 4096).await.unwrap(), filled(1, 4096));
    let again = volume.commit_bulk(volume.bulk(run), vec![Op::RunCommitted { run }]).await;
    assert!(matches!(again, Err(VolumeError::Illegal { .. })), "{again:?}");
}

#[tokio::test]
async fn a_relocation_leaves_newer_data_alone() {
    let scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    volume.write(0, filled(1, MIB)).await.unwrap();
    volume.flush().await.unwrap();
    let extents = volume.frozen().unwrap().lookup(0..256).await.unwrap();
    let mut bulk = volume.bulk(volume.session());
    for extent in extents {
        let data = volume.read(extent.lba * 4096, u64::from(extent.blocks) * 4096).await.unwrap();
        bulk.relocate(extent, &data).await.unwrap();
    }
    volume.write(4096, filled(2, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    volume.commit_relocation(bulk).await.unwrap();
    assert_eq!(volume.read(4096, 4096).await.unwrap(), filled(2, 4096));
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(1, 4096));
    assert_eq!(volume.read(8192, MIB - 8192).await.unwrap(), filled(1, MIB - 8192));
}

#[tokio::test]
async fn a_range_outside_the_volume_is_refused_until_it_has_grown() {
    let scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    let outside = volume.write(SIZE, filled(1, 4096)).await;
    assert!(matches!(outside, Err(VolumeError::OutOfRange { .. })));
    volume.resize(2 * SIZE).await.unwrap();
    volume.write(SIZE, filled(1, 4096)).await.unwrap();
    assert!(matches!(volume.resize(SIZE).await, Err(VolumeError::Illegal { .. })));
}

#[tokio::test]
async fn a_close_takes_along_what_is_written_meanwhile() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.append(vec![Op::Close], false).await.unwrap();
    assert!(scene.control().await.session.is_none());
    volume.close().await.unwrap();
    assert_eq!(scene.open(grant).await.read(0, 4096).await.unwrap(), filled(1, 4096));
}

#[tokio::test]
async fn an_abandoned_volume_is_not_closed() {
    let scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.abandon();
    assert!(matches!(volume.close().await, Err(VolumeError::Over { .. })));
    assert!(matches!(volume.write(0, filled(2, 4096)).await, Err(VolumeError::Over { .. })));
}

/// A Grant to `node` whose put has timed out: where it may still land, and what lands there.
async fn grant_under_way(scene: &Scene, node: &str, mode: GrantMode) -> (RecordNumber, ObjectId, Bytes) {
    let state = scene.log.replay(&mut ControlOnly, deadline()).await.unwrap();
    let id = random_id(&scene.log.env);
    let record = Record {
        volume: scene.log.volume,
        number: state.next,
        id,
        session: ObjectId::NONE,
        prev: state.control.last,
        time_ms: 0,
        buffer_complete: 0,
        ops: vec![Op::Grant { node: node.into(), mode }],
    };
    let body = codec::encode_record(record, None, scene.log.key.as_ref()).unwrap().bytes;
    (state.next, id, body)
}

#[tokio::test]
async fn after_an_unpublish_no_grant_that_was_under_way_takes_effect() {
    for (holder, mode) in [
        (None, GrantMode::ReadWrite),
        (Some(GrantMode::Maintenance), GrantMode::ReadWrite),
        (Some(GrantMode::ReadOnly), GrantMode::ReadOnly),
    ] {
        let scene = Scene::new().await;
        if let Some(held) = holder {
            publish(&scene.log, "other", held, deadline()).await.unwrap();
        }
        let (number, id, body) = grant_under_way(&scene, "a", mode).await;
        unpublish(&scene.log, "a", deadline()).await.unwrap();
        let late = scene.log.put(number, id, body, deadline()).await.unwrap();
        assert!(matches!(late, Put::Taken(_)), "{holder:?}: {late:?}");
        let control = scene.control().await;
        let held_by_a =
            control.grant.iter().map(|grant| &grant.node).chain(control.readers.iter().map(|r| &r.node));
        assert_eq!(held_by_a.filter(|node| *node == "a").count(), 0);
    }
}
