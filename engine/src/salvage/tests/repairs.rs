//! Damaged blocks come back from a copy of just what was there.

use tokio::sync::watch;

use super::super::{Fault, Place, SalvageError, Scope};
use super::scene::{Scene, at, content, deadline, only, write};
use crate::archive::{ArchiveRun, PointSource, Progress, archive};
use crate::ids::{BLOCK_BYTES, Handle, SnapshotId, VolumeId};
use crate::pool::layout;
use crate::volume::Volume;

async fn archived(scene: &Scene, volume: VolumeId, snapshot: SnapshotId, point: &str) -> Handle {
    let origin = PointSource {
        cluster_uid: "c".into(),
        namespace: "shop".into(),
        claim_name: "data".into(),
        volume_mode: "Block".into(),
        fs_type: None,
    };
    let run = ArchiveRun {
        source: Handle { pool: scene.pool.id(), volume, snapshot: Some(snapshot) },
        point: point.into(),
        origin,
        point_in_time: "2026-11-23T05:00:00Z".into(),
        expires_at: None,
        bytes_per_second: 0,
    };
    let (progress, _) = watch::channel(Progress::default());
    archive(&scene.host, &scene.pool, &run, &progress).await.unwrap()
}

/// Blocks 0..64 of version 1, archived; then 32..40 of version 2.
struct Archived {
    scene: Scene,
    volume: Volume,
    id: VolumeId,
    snapshot: SnapshotId,
    point: Handle,
}

async fn written(encrypted: bool) -> Archived {
    let scene = Scene::new(encrypted).await;
    let id = scene.create("data", None).await;
    let volume = scene.open(id).await;
    write(&volume, 0..64, 1).await;
    let snapshot = volume.snapshot("first", "").await.unwrap();
    let point = archived(&scene, id, snapshot, "point").await;
    write(&volume, 32..40, 2).await;
    Archived { scene, volume, id, snapshot, point }
}

async fn check(scene: &Scene, id: VolumeId) {
    let volume = scene.open(id).await;
    let read = volume.read(0, 64 * BLOCK_BYTES).await.unwrap();
    for (lba, block) in read.chunks(BLOCK_BYTES as usize).enumerate() {
        let version = if (32..40).contains(&lba) { 2 } else { 1 };
        assert!(block == &content(lba as u64, version)[..], "block {lba}");
    }
    scene.detach(&volume).await;
}

#[tokio::test]
async fn what_is_lost_comes_back_from_an_archived_point() {
    for encrypted in [false, true] {
        let Archived { mut scene, volume, id, point, .. } = written(encrypted).await;
        let key = layout::segment(id, scene.segment_of(&volume, 0).await.id);
        scene.detach(&volume).await;
        scene.delete(&key).await;
        scene.forget();
        let repaired = scene.host.repair(&scene.pool, id, point, &|_| {}).await.unwrap();
        assert_eq!((repaired.repaired_bytes, repaired.left.len()), (56 * BLOCK_BYTES, 0));
        scene.forget();
        check(&scene, id).await;
        // The snapshot still names what is gone; the head does not.
        let scrubbed = scene.scrub(id).await;
        let damage = only(&scrubbed);
        assert_eq!((&damage.key, damage.fault), (&key, Fault::Missing));
        assert!(damage.affects.iter().all(|at| at.place != Place::Head), "{damage:#?}");
        let again = scene.host.repair(&scene.pool, id, point, &|_| {}).await.unwrap();
        assert_eq!((again.repaired_bytes, again.left.len()), (0, 0));
    }
}

#[tokio::test]
async fn one_damaged_chunk_is_put_back_and_nothing_else() {
    let Archived { mut scene, volume, id, point, .. } = written(true).await;
    let view = volume.frozen().unwrap();
    let location = view.lookup(16..17).await.unwrap()[0].location.unwrap();
    let key = layout::segment(id, location.segment.id);
    scene.detach(&volume).await;
    scene.flip(&key, location.stored_offset as usize + 9).await;
    scene.forget();
    let repaired = scene.host.repair(&scene.pool, id, point, &|_| {}).await.unwrap();
    assert_eq!((repaired.repaired_bytes, repaired.left.len()), (16 * BLOCK_BYTES, 0));
    scene.forget();
    check(&scene, id).await;
}

#[tokio::test]
async fn what_was_written_after_the_point_is_left_damaged() {
    let Archived { mut scene, volume, id, point, .. } = written(false).await;
    let key = layout::segment(id, scene.segment_of(&volume, 32).await.id);
    scene.detach(&volume).await;
    scene.delete(&key).await;
    scene.forget();
    let repaired = scene.host.repair(&scene.pool, id, point, &|_| {}).await.unwrap();
    assert_eq!(repaired.repaired_bytes, 0);
    let [left] = repaired.left.as_slice() else { panic!("{repaired:?}") };
    assert_eq!((left.offset, left.len), (32 * BLOCK_BYTES, 8 * BLOCK_BYTES));
    assert_eq!(only(&scene.scrub(id).await).affects, [at(&Place::Head, 32..40)]);
}

#[tokio::test]
async fn an_archive_gets_blocks_back_from_the_volume() {
    let Archived { mut scene, volume, id, snapshot, point } = written(true).await;
    scene.detach(&volume).await;
    let key = scene.keys(&layout::segments(point.volume)).await.remove(0);
    scene.delete(&key).await;
    scene.forget();
    let source = Handle { volume: id, snapshot: Some(snapshot), ..point };
    let repaired = scene.host.repair(&scene.pool, point.volume, source, &|_| {}).await.unwrap();
    assert!(repaired.repaired_bytes > 0 && repaired.left.is_empty(), "{repaired:?}");
    scene.forget();
    let head = scene.host.scrub(&scene.pool, point.volume, Scope::Head, &|_| {}).await.unwrap();
    assert!(head.is_sound(), "{head:#?}");
}

#[tokio::test]
async fn only_a_known_copy_is_a_source() {
    let Archived { scene, volume, id, snapshot, point } = written(false).await;
    let other = scene.create("other", None).await;
    let refused = scene.host.repair(&scene.pool, other, point, &|_| {}).await;
    assert!(matches!(refused, Err(SalvageError::NoCopy { .. })), "{refused:?}");
    let itself = Handle { volume: id, snapshot: Some(snapshot), ..point };
    let refused = scene.host.repair(&scene.pool, id, itself, &|_| {}).await;
    assert!(matches!(refused, Err(SalvageError::NoCopy { .. })), "{refused:?}");
    // A volume that a node has open is not touched.
    let key = layout::segment(id, scene.segment_of(&volume, 0).await.id);
    scene.delete(&key).await;
    let refused = scene.host.repair(&scene.pool, id, point, &|_| {}).await;
    assert!(matches!(refused, Err(SalvageError::Control(_))), "{refused:?}");
    assert!(scene.host.describe(&scene.pool, id, deadline()).await.unwrap().1.session.is_some());
}
