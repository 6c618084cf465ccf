//! From a volume to an archive and back, in another pool.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_engine::archive::{
    ArchiveError, ArchiveRun, PointSource, Progress, archive, expire, list_points, verify,
};
use holdfast_engine::buffer::MemoryBuffer;
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::codec::{Codec, UserKey};
use holdfast_engine::control::{
    ControlError, CreateVolume, SourceSnapshot, publish, resize_detached, unpublish,
};
use holdfast_engine::env::Env;
use holdfast_engine::host::{Host, HostError, OpenAs};
use holdfast_engine::ids::{Handle, SnapshotId, VolumeId};
use holdfast_engine::log::{Control, Decision, GrantMode, Op};
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolKind, PoolSet};
use holdfast_engine::store::{Memory, Store};
use holdfast_engine::volume::{Hydrate, Hydration, Limits, OpenError, Volume, hydrate};
use tokio::sync::watch;
use tokio::time::Instant;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A cluster's pool, and an encrypted target far away.
struct Scene {
    host: Host,
    pool: Arc<Pool>,
    target: Arc<Pool>,
    target_store: Memory,
}

impl Scene {
    async fn new() -> Self {
        let env = Env::system();
        let (store, target_store) = (Memory::default(), Memory::default());
        let open = async |name: &str, store: &Memory, key: Option<&UserKey>| {
            let store = Arc::new(store.clone());
            Pool::over(name, "memory", store, key, Access::ReadWrite, env.clone()).await.unwrap()
        };
        let pool = open("default", &store, None).await;
        let target = open("offsite", &target_store, Some(&UserKey::random(&*env.entropy))).await;
        let pools = [(PoolKind::Pool, Arc::clone(&pool)), (PoolKind::Target, Arc::clone(&target))];
        let host = Host {
            pools: Arc::new(PoolSet::of(pools, env)),
            pages: PageCache::new(4 << 20),
            cache: Arc::new(MemoryCache::new(4 << 20)),
        };
        Self { host, pool, target, target_store }
    }

    async fn create(&self, name: &str, source: Option<SourceSnapshot>) -> VolumeId {
        let new = CreateVolume {
            name: name.into(),
            size_bytes: SIZE,
            source,
            codec: Codec::Lz4,
            parameters: BTreeMap::new(),
        };
        self.host.create_volume(&self.pool, &new, deadline()).await.unwrap()
    }

    async fn open(&self, volume: VolumeId) -> Volume {
        self.open_on(&self.host, volume).await.unwrap()
    }

    async fn open_on(&self, host: &Host, volume: VolumeId) -> Result<Volume, HostError> {
        let found = host.find(&self.pool, volume, deadline()).await?;
        let grant = publish(&found.log, "node", GrantMode::ReadWrite, deadline()).await.unwrap();
        let buffer = Arc::new(MemoryBuffer::new(48 << 20));
        let open = OpenAs { grant, endpoint: String::new(), buffer, limits: Limits::default() };
        host.open(&found, open, deadline()).await
    }

    /// A host that has not loaded the target.
    fn host_without_target(&self) -> Host {
        let pools = PoolSet::of([(PoolKind::Pool, Arc::clone(&self.pool))], Env::system());
        Host { pools: Arc::new(pools), ..self.host.clone() }
    }

    async fn detach(&self, volume: Volume) {
        volume.close().await.unwrap();
        let log = self.host.log(&self.pool, volume.id(), deadline()).await.unwrap();
        unpublish(&log, "node", deadline()).await.unwrap();
    }

    fn run(&self, volume: VolumeId, snapshot: SnapshotId, point: &str) -> ArchiveRun {
        ArchiveRun {
            source: Handle { pool: self.pool.id(), volume, snapshot: Some(snapshot) },
            point: point.into(),
            origin: PointSource {
                cluster_uid: "c".into(),
                namespace: "shop".into(),
                claim_name: "data".into(),
                volume_mode: "Filesystem".into(),
                fs_type: Some("ext4".into()),
            },
            point_in_time: "2026-11-23T05:00:00Z".into(),
            expires_at: None,
            bytes_per_second: 0,
        }
    }

    async fn archive(&self, volume: VolumeId, snapshot: SnapshotId, point: &str) -> (Handle, Progress) {
        let (progress, seen) = watch::channel(Progress::default());
        let run = self.run(volume, snapshot, point);
        let handle = archive(&self.host, &self.target, &run, &progress).await.unwrap();
        let seen = *seen.borrow();
        (handle, seen)
    }

    fn archived(&self, handle: Handle) -> SourceSnapshot {
        SourceSnapshot {
            pool: Arc::clone(&self.target),
            volume: handle.volume,
            snapshot: handle.snapshot.unwrap(),
        }
    }
}

/// Bytes that no compression makes small, and that tell where they belong.
fn noise(seed: u64, len: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len as usize);
    while (out.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    Bytes::from(out)
}

#[tokio::test]
async fn a_volume_comes_back_from_its_archive_after_everything_else_is_gone() {
    let scene = Scene::new().await;
    let id = scene.create("pvc-1", None).await;
    let volume = scene.open(id).await;
    volume.write(0, noise(1, 16 * MIB)).await.unwrap();
    volume.write(40 * MIB, noise(2, MIB)).await.unwrap();
    let first = volume.snapshot("first", "").await.unwrap();
    let (_, full) = scene.archive(id, first, "point-1").await;
    assert_eq!(full.changed_bytes, 17 * MIB);

    // One percent changes, and a range is discarded.
    volume.write(3 * MIB, noise(3, MIB / 8)).await.unwrap();
    volume.discard(40 * MIB, MIB / 2).await.unwrap();
    let second = volume.snapshot("second", "").await.unwrap();
    let (point, changed) = scene.archive(id, second, "point-2").await;
    assert_eq!(changed.changed_bytes, MIB / 8);
    assert!(changed.transferred_bytes < changed.changed_bytes * 11 / 10, "{changed:?}");
    // Repeating the run finds its point and moves nothing.
    let (again, nothing) = scene.archive(id, second, "point-2").await;
    assert_eq!((again, nothing.transferred_bytes), (point, 0));

    // Disaster: the volume and its snapshots go.
    scene.detach(volume).await;
    for snapshot in [first, second] {
        scene.host.delete_snapshot(&scene.pool, id, snapshot, deadline()).await.unwrap();
    }
    scene.host.delete_volume(&scene.pool, id, deadline()).await.unwrap();
    assert_eq!(scene.pool.volume_named("pvc-1", deadline()).await.unwrap(), None);

    let points = list_points(&scene.host, &scene.target).await.unwrap();
    assert_eq!(points.iter().map(|point| point.name.as_str()).collect::<Vec<_>>(), ["point-1", "point-2"]);
    assert_eq!(points[1].handle, point);
    let (progress, _) = watch::channel(Progress::default());
    let verified = verify(&scene.host, &scene.target, point, &progress).await.unwrap();
    assert_eq!((verified.good_bytes, verified.damaged.len()), (16 * MIB + MIB / 2, 0));

    let restored = scene.create("pvc-2", Some(scene.archived(point))).await;
    let volume = scene.open(restored).await;
    let check = async |volume: &Volume| {
        assert_eq!(volume.read(0, 3 * MIB).await.unwrap(), noise(1, 16 * MIB).slice(..3 * MIB as usize));
        assert_eq!(volume.read(3 * MIB, MIB / 8).await.unwrap(), noise(3, MIB / 8));
        assert_eq!(volume.read(40 * MIB, MIB / 2).await.unwrap(), Bytes::from(vec![0; MIB as usize / 2]));
        let tail = noise(2, MIB).slice(MIB as usize / 2..);
        assert_eq!(volume.read(40 * MIB + MIB / 2, MIB / 2).await.unwrap(), tail);
    };
    check(&volume).await;
    // It is writable at once, and what is written is not overwritten by what follows.
    volume.write(8 * MIB, noise(9, 4096)).await.unwrap();

    let pins = scene.target.pins(point.volume, deadline()).await.unwrap();
    assert_eq!(pins.len(), 1, "an unhydrated volume holds its point");
    let foreign = scene.host.find(&scene.pool, restored, deadline()).await.unwrap().foreign();
    let (progress, seen) = watch::channel(Hydration::default());
    hydrate(volume.clone(), Hydrate::unlimited(foreign), progress).await.unwrap();
    let seen = *seen.borrow();
    assert!(seen.done && seen.hydrated_bytes == seen.total_bytes && seen.total_bytes >= 16 * MIB, "{seen:?}");
    check(&volume).await;
    assert_eq!(volume.read(8 * MIB, 4096).await.unwrap(), noise(9, 4096));
    // The controller lets the archive go while it looks after the volume, which is still attached.
    scene.host.tend(&scene.pool, restored, None, Limits::default(), deadline()).await.unwrap();
    assert!(scene.target.pins(point.volume, deadline()).await.unwrap().is_empty());
    scene.detach(volume).await;

    // The archive is not needed any more: with all of it gone the volume still reads.
    for listed in scene.target_store.list("volumes/", None, 100_000).await.unwrap() {
        scene.target_store.delete(&listed.key).await.unwrap();
    }
    check(&scene.open(restored).await).await;
}

#[tokio::test]
async fn an_archive_run_goes_on_where_the_one_before_it_died() {
    let scene = Scene::new().await;
    let id = scene.create("pvc", None).await;
    let volume = scene.open(id).await;
    for part in 0..8 {
        volume.write(part * 8 * MIB, noise(part + 1, 8 * MIB)).await.unwrap();
    }
    let snapshot = volume.snapshot("first", "").await.unwrap();
    // Dies when more than its parallel uploads have begun, so that some have ended.
    let (progress, mut seen) = watch::channel(Progress::default());
    let mut run = scene.run(id, snapshot, "point");
    run.bytes_per_second = 1 << 30;
    tokio::select! {
        ended = archive(&scene.host, &scene.target, &run, &progress) => panic!("{ended:?}"),
        died = seen.wait_for(|progress| progress.transferred_bytes > 40 * MIB) => drop(died.unwrap()),
    }
    assert!(list_points(&scene.host, &scene.target).await.unwrap().is_empty());

    let (point, resumed) = scene.archive(id, snapshot, "point").await;
    assert_eq!(resumed.changed_bytes, SIZE);
    assert!(resumed.transferred_bytes < SIZE - 7 * MIB, "{resumed:?}");
    let (progress, _) = watch::channel(Progress::default());
    let verified = verify(&scene.host, &scene.target, point, &progress).await.unwrap();
    assert_eq!((verified.good_bytes, verified.damaged.len()), (SIZE, 0));
    let restored = scene.create("restored", Some(scene.archived(point))).await;
    let restored = scene.open(restored).await;
    for part in 0..8 {
        assert!(
            restored.read(part * 8 * MIB, 8 * MIB).await.unwrap() == noise(part + 1, 8 * MIB),
            "part {part}"
        );
    }
}

#[tokio::test]
async fn the_newest_point_stays_and_older_ones_expire() {
    let scene = Scene::new().await;
    let id = scene.create("pvc", None).await;
    let volume = scene.open(id).await;
    let mut handles = Vec::new();
    for round in 1..=3u64 {
        volume.write(0, noise(round, MIB)).await.unwrap();
        let snapshot = volume.snapshot(&format!("s{round}"), "").await.unwrap();
        handles.push(scene.archive(id, snapshot, &format!("p{round}")).await.0);
    }
    let refused = expire(&scene.host, &scene.target, handles[2]).await;
    assert!(matches!(refused, Err(ArchiveError::Newest { .. })), "{refused:?}");
    expire(&scene.host, &scene.target, handles[0]).await.unwrap();
    expire(&scene.host, &scene.target, handles[0]).await.unwrap();
    let left = list_points(&scene.host, &scene.target).await.unwrap();
    assert_eq!(left.iter().map(|point| point.handle).collect::<Vec<_>>(), handles[1..]);
    // The source keeps only what the next difference needs.
    let pins = scene.pool.pins(id, deadline()).await.unwrap();
    assert_eq!(pins.len(), 1);

    // Where no run follows, nothing has to stay.
    scene.host.delete_volume(&scene.target, handles[2].volume, deadline()).await.unwrap();
    for handle in &handles[1..] {
        expire(&scene.host, &scene.target, *handle).await.unwrap();
    }
    assert!(list_points(&scene.host, &scene.target).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_clone_has_its_sources_content_and_pins_it_first() {
    let scene = Scene::new().await;
    let id = scene.create("source", None).await;
    let volume = scene.open(id).await;
    volume.write(0, noise(1, 2 * MIB)).await.unwrap();
    let snapshot = volume.snapshot("s", "").await.unwrap();
    volume.write(0, noise(2, MIB)).await.unwrap();
    volume.flush().await.unwrap();
    let source = || Some(SourceSnapshot { pool: Arc::clone(&scene.pool), volume: id, snapshot });
    let child = scene.create("child", source()).await;
    assert_eq!(scene.create("child", source()).await, child, "the same name, the same volume");
    let opened = scene.open(child).await;
    assert_eq!(opened.read(0, 2 * MIB).await.unwrap(), noise(1, 2 * MIB));
    assert_eq!(scene.pool.pins(id, deadline()).await.unwrap(), [(child, snapshot)]);

    // A clone of the clone pins both.
    let inner = opened.snapshot("inner", "").await.unwrap();
    let again = SourceSnapshot { pool: Arc::clone(&scene.pool), volume: child, snapshot: inner };
    let grandchild = scene.create("grandchild", Some(again)).await;
    let pinned: Vec<VolumeId> =
        scene.pool.pins(id, deadline()).await.unwrap().into_iter().map(|(clone, _)| clone).collect();
    assert!(pinned.contains(&child) && pinned.contains(&grandchild));
    assert_eq!(scene.open(grandchild).await.read(0, 2 * MIB).await.unwrap(), noise(1, 2 * MIB));

    let missing = SourceSnapshot { pool: Arc::clone(&scene.pool), volume: id, snapshot: SnapshotId(999) };
    let new = CreateVolume {
        name: "x".into(),
        size_bytes: SIZE,
        source: Some(missing),
        codec: Codec::Lz4,
        parameters: BTreeMap::new(),
    };
    let refused = scene.host.create_volume(&scene.pool, &new, deadline()).await;
    assert!(matches!(refused, Err(ControlError::NoSuchSnapshot { .. })), "{refused:?}");
    assert_eq!(scene.pool.volume_named("x", deadline()).await.unwrap(), None, "half a volume is left");
}

#[tokio::test]
async fn the_controller_snapshots_a_detached_volume_and_leaves_an_open_one_to_its_owner() {
    let scene = Scene::new().await;
    let id = scene.create("v", None).await;
    let volume = scene.open(id).await;
    volume.write(0, noise(1, MIB)).await.unwrap();
    let asked = scene.host.create_snapshot(&scene.pool, id, "s", deadline()).await;
    assert!(matches!(asked, Err(ControlError::AskOwner { .. })), "{asked:?}");
    let held = scene.host.delete_volume(&scene.pool, id, deadline()).await;
    assert!(matches!(held, Err(ControlError::InUse { .. })), "{held:?}");
    scene.detach(volume).await;

    let snapshot = scene.host.create_snapshot(&scene.pool, id, "s", deadline()).await.unwrap();
    assert_eq!(scene.host.create_snapshot(&scene.pool, id, "s", deadline()).await.unwrap(), snapshot);
    let reader = scene.host.snapshot_reader(&scene.pool, id, snapshot, deadline()).await.unwrap();
    let mut out = vec![0; MIB as usize];
    reader.read(0, 256, &mut out).await.unwrap();
    assert_eq!(out, noise(1, MIB));
    let other = scene.create("other", None).await;
    let taken = scene.host.create_snapshot(&scene.pool, other, "s", deadline()).await;
    assert!(matches!(taken, Err(ControlError::NameTaken { .. })), "{taken:?}");
    scene.host.delete_snapshot(&scene.pool, id, snapshot, deadline()).await.unwrap();
    scene.host.delete_snapshot(&scene.pool, id, snapshot, deadline()).await.unwrap();
    scene.host.create_snapshot(&scene.pool, other, "s", deadline()).await.unwrap();
}

#[tokio::test]
async fn maintenance_that_nobody_ended_does_not_hold_up_a_deletion() {
    let scene = Scene::new().await;
    let id = scene.create("v", None).await;
    let log = scene.host.log(&scene.pool, id, deadline()).await.unwrap();
    publish(&log, "job", GrantMode::Maintenance, deadline()).await.unwrap();
    scene.host.delete_volume(&scene.pool, id, deadline()).await.unwrap();
    assert_eq!(scene.pool.volume_named("v", deadline()).await.unwrap(), None);
}

#[tokio::test]
async fn hydration_lets_go_of_the_archive_and_not_of_a_parent_in_the_same_pool() {
    let scene = Scene::new().await;
    let id = scene.create("first", None).await;
    let volume = scene.open(id).await;
    volume.write(0, noise(1, 2 * MIB)).await.unwrap();
    let snapshot = volume.snapshot("s", "").await.unwrap();
    let (point, _) = scene.archive(id, snapshot, "point").await;
    let restored = scene.create("restored", Some(scene.archived(point))).await;
    let volume = scene.open(restored).await;
    volume.write(2 * MIB, noise(2, 2 * MIB)).await.unwrap();
    let cut = volume.snapshot("cut", "").await.unwrap();
    let source = SourceSnapshot { pool: Arc::clone(&scene.pool), volume: restored, snapshot: cut };
    let clone = scene.create("clone", Some(source)).await;

    let volume = scene.open(clone).await;
    let foreign = scene.host.find(&scene.pool, clone, deadline()).await.unwrap().foreign();
    assert_eq!(foreign.iter().copied().collect::<Vec<_>>(), [point.volume]);
    let (progress, seen) = watch::channel(Hydration::default());
    hydrate(volume.clone(), Hydrate::unlimited(foreign), progress).await.unwrap();
    assert!(seen.borrow().done);
    assert_eq!(scene.host.release_pins(&scene.pool, clone, deadline()).await.unwrap(), 1);
    let of_clone =
        |pins: Vec<(VolumeId, SnapshotId)>| pins.into_iter().filter(|(by, _)| *by == clone).count();
    assert_eq!(of_clone(scene.target.pins(point.volume, deadline()).await.unwrap()), 0);
    assert_eq!(
        of_clone(scene.pool.pins(restored, deadline()).await.unwrap()),
        1,
        "its parent has its blocks"
    );
    scene.detach(volume).await;
    let volume = scene.open(clone).await;
    assert_eq!(volume.read(0, 2 * MIB).await.unwrap(), noise(1, 2 * MIB));
    assert_eq!(volume.read(2 * MIB, 2 * MIB).await.unwrap(), noise(2, 2 * MIB));
}

#[tokio::test]
async fn snapshots_of_a_deleted_clone_keep_its_pins_when_its_name_is_used_again() {
    let scene = Scene::new().await;
    let id = scene.create("source", None).await;
    let volume = scene.open(id).await;
    volume.write(0, noise(1, MIB)).await.unwrap();
    let snapshot = volume.snapshot("s", "").await.unwrap();
    let source = SourceSnapshot { pool: Arc::clone(&scene.pool), volume: id, snapshot };
    let child = scene.create("child", Some(source)).await;
    let kept = scene.host.create_snapshot(&scene.pool, child, "kept", deadline()).await.unwrap();

    // The controller dies between the record that deletes the volume and the freeing of its name.
    let log = scene.host.log(&scene.pool, child, deadline()).await.unwrap();
    let delete = |_: &Control| Ok(Decision::<()>::Append(vec![Op::Maintain, Op::Dead]));
    log.decide(deadline(), delete).await.unwrap();
    let again = scene.create("child", None).await;
    assert_ne!(again, child);
    assert_eq!(scene.pool.pins(id, deadline()).await.unwrap(), [(child, snapshot)]);
    let reader = scene.host.snapshot_reader(&scene.pool, child, kept, deadline()).await.unwrap();
    let mut out = vec![0; MIB as usize];
    reader.read(0, 256, &mut out).await.unwrap();
    assert_eq!(out, noise(1, MIB));
}

#[tokio::test]
async fn a_maintenance_session_that_died_gives_way_to_what_is_asked_for() {
    let scene = Scene::new().await;
    let id = scene.create("v", None).await;
    let log = scene.host.log(&scene.pool, id, deadline()).await.unwrap();
    let died = async || {
        let session = scene.host.maintain(&scene.pool, &log, deadline()).await.unwrap();
        session.volume.abandon();
        let (_, control) = scene.host.describe(&scene.pool, id, deadline()).await.unwrap();
        assert!(control.session.is_some());
    };
    died().await;
    let snapshot = scene.host.create_snapshot(&scene.pool, id, "s", deadline()).await.unwrap();
    died().await;
    resize_detached(&log, 2 * SIZE, deadline()).await.unwrap();
    died().await;
    scene.host.delete_snapshot(&scene.pool, id, snapshot, deadline()).await.unwrap();
    let (_, control) = scene.host.describe(&scene.pool, id, deadline()).await.unwrap();
    assert!(control.snapshots[&snapshot].deleted);
    assert_eq!(control.size_bytes, 2 * SIZE);
}

#[tokio::test]
async fn a_snapshot_that_no_session_has_completed_survives_its_volume() {
    let scene = Scene::new().await;
    let id = scene.create("v", None).await;
    let volume = scene.open(id).await;
    volume.write(0, noise(1, MIB)).await.unwrap();
    volume.close().await.unwrap();
    // Granted and not open: the controller records the snapshot, and nobody writes its map.
    let snapshot = scene.host.create_snapshot(&scene.pool, id, "s", deadline()).await.unwrap();
    let log = scene.host.log(&scene.pool, id, deadline()).await.unwrap();
    unpublish(&log, "node", deadline()).await.unwrap();
    scene.host.delete_volume(&scene.pool, id, deadline()).await.unwrap();
    let reader = scene.host.snapshot_reader(&scene.pool, id, snapshot, deadline()).await.unwrap();
    let mut out = vec![0; MIB as usize];
    reader.read(0, 256, &mut out).await.unwrap();
    assert_eq!(out, noise(1, MIB));
}

#[tokio::test]
async fn a_volume_waits_for_the_pool_of_an_ancestor_that_it_needs_and_for_no_other() {
    let scene = Scene::new().await;
    let id = scene.create("source", None).await;
    let volume = scene.open(id).await;
    volume.write(0, noise(1, MIB)).await.unwrap();
    let snapshot = volume.snapshot("s", "").await.unwrap();
    let (point, _) = scene.archive(id, snapshot, "point").await;
    let restored = scene.create("restored", Some(scene.archived(point))).await;

    let alone = scene.host_without_target();
    let refused = scene.open_on(&alone, restored).await;
    assert!(matches!(refused, Err(HostError::Open(OpenError::UnknownAncestor(_)))), "{refused:?}");
    let (_, control) = scene.host.describe(&scene.pool, restored, deadline()).await.unwrap();
    assert!(control.session.is_none(), "a session was begun: {control:?}");

    let volume = scene.open(restored).await;
    let foreign = scene.host.find(&scene.pool, restored, deadline()).await.unwrap().foreign();
    let (progress, _) = watch::channel(Hydration::default());
    hydrate(volume.clone(), Hydrate::unlimited(foreign), progress).await.unwrap();
    scene.detach(volume).await;
    let volume = scene.open_on(&alone, restored).await.unwrap();
    assert_eq!(volume.read(0, MIB).await.unwrap(), noise(1, MIB));
}
