//! What is left of a volume becomes a new one.

use super::super::{MapSource, Rebuilt, SalvageError};
use super::scene::{Scene, content, deadline, write};
use crate::codec::ENVELOPE_BYTES;
use crate::ids::{BLOCK_BYTES, ObjectId, VolumeId};
use crate::log::Op;
use crate::pool::layout;

/// Checks the first blocks of a volume, by their versions.
async fn check(scene: &Scene, volume: VolumeId, versions: &[u64]) {
    let volume = scene.open(volume).await;
    let read = volume.read(0, versions.len() as u64 * BLOCK_BYTES).await.unwrap();
    for (lba, version) in versions.iter().enumerate() {
        let at = lba * BLOCK_BYTES as usize;
        let same = read[at..at + BLOCK_BYTES as usize] == content(lba as u64, *version)[..];
        assert!(same, "block {lba} is not what version {version} wrote");
    }
    scene.detach(&volume).await;
}

async fn rebuild(scene: &mut Scene, volume: VolumeId) -> Rebuilt {
    scene.forget();
    let before = untouched(scene, volume).await;
    let rebuilt = scene.host.rebuild(&scene.pool, volume, "rebuilt", &|_| {}).await.unwrap();
    assert_eq!(untouched(scene, volume).await, before, "the damaged volume stays as it is");
    rebuilt
}

async fn untouched(scene: &Scene, volume: VolumeId) -> Vec<String> {
    scene.keys(&layout::volume(volume)).await
}

/// Blocks 0..64 of version 1, of which 32..48 are overwritten and 48..64 discarded after a checkpoint.
async fn written(encrypted: bool) -> (Scene, VolumeId) {
    let scene = Scene::new(encrypted).await;
    let id = scene.create("data", None).await;
    let volume = scene.open(id).await;
    write(&volume, 0..64, 1).await;
    volume.append(Vec::new(), true).await.unwrap();
    write(&volume, 32..48, 2).await;
    volume.discard(48 * BLOCK_BYTES, 16 * BLOCK_BYTES).await.unwrap();
    volume.flush().await.unwrap();
    volume.abandon();
    (scene, id)
}

fn versions(parts: &[(usize, u64)]) -> Vec<u64> {
    parts.iter().flat_map(|(blocks, version)| vec![*version; *blocks]).collect()
}

#[tokio::test]
async fn a_log_that_is_complete_from_its_first_record_needs_no_root() {
    for encrypted in [false, true] {
        let (mut scene, id) = written(encrypted).await;
        scene.delete_all(&layout::roots(id)).await;
        scene.delete_all(&layout::maps(id)).await;
        let rebuilt = rebuild(&mut scene, id).await;
        assert_eq!(rebuilt.map, MapSource::Replayed { root: None });
        assert!(rebuilt.is_whole(), "{rebuilt:#?}");
        assert_eq!(rebuilt.copied_bytes, 48 * BLOCK_BYTES);
        check(&scene, rebuilt.handle.volume, &versions(&[(32, 1), (16, 2), (100, 0)])).await;
    }
}

#[tokio::test]
async fn the_newest_root_that_can_be_read_and_the_records_after_it_are_exact() {
    let (mut scene, id) = written(true).await;
    let volume = scene.open(id).await;
    volume.append(Vec::new(), true).await.unwrap();
    volume.abandon();
    let roots = scene.keys(&layout::roots(id)).await;
    let [.., older, newest] = roots.as_slice() else { panic!("two roots: {roots:?}") };
    scene.flip(newest, 100).await;
    let rebuilt = rebuild(&mut scene, id).await;
    assert_eq!(rebuilt.map, MapSource::Replayed { root: layout::number_in(older) });
    check(&scene, rebuilt.handle.volume, &versions(&[(32, 1), (16, 2), (16, 0)])).await;
}

#[tokio::test]
async fn without_roots_and_first_records_the_order_of_writing_decides() {
    for encrypted in [false, true] {
        let (mut scene, id) = written(encrypted).await;
        scene.delete_all(&layout::roots(id)).await;
        scene.delete_all(&layout::maps(id)).await;
        scene.delete(&layout::record(id, crate::ids::RecordNumber(1))).await;
        let rebuilt = rebuild(&mut scene, id).await;
        assert_eq!(rebuilt.map, MapSource::PutTogether { root: None });
        assert!(rebuilt.is_whole(), "{rebuilt:#?}");
        // The record with the discard is still there.
        check(&scene, rebuilt.handle.volume, &versions(&[(32, 1), (16, 2), (16, 0)])).await;
    }
}

#[tokio::test]
async fn a_discard_whose_record_is_gone_comes_back() {
    let (mut scene, id) = written(false).await;
    // Behind the discard, or nothing would show that a record is gone.
    let volume = scene.open(id).await;
    write(&volume, 100..101, 3).await;
    volume.abandon();
    let log = scene.log(id).await;
    let mut number = crate::ids::RecordNumber(1);
    while let Some(record) = log.get(number, deadline()).await.unwrap() {
        let discards = |op: &Op| match op {
            Op::Write { extents } => extents.iter().any(|extent| extent.location.is_none()),
            _ => false,
        };
        if record.ops.iter().any(discards) {
            scene.delete(&layout::record(id, number)).await;
        }
        number = number.next();
    }
    let rebuilt = rebuild(&mut scene, id).await;
    let MapSource::PutTogether { root: Some(_) } = rebuilt.map else { panic!("{rebuilt:#?}") };
    let expected = versions(&[(32, 1), (16, 2), (16, 1), (36, 0), (1, 3)]);
    check(&scene, rebuilt.handle.volume, &expected).await;
}

#[tokio::test]
async fn a_lost_page_is_filled_in_from_segments_and_the_rest_of_the_map_is_kept() {
    for encrypted in [false, true] {
        let (mut scene, id) = written(encrypted).await;
        let volume = scene.open(id).await;
        volume.append(Vec::new(), true).await.unwrap();
        volume.abandon();
        // Else the log alone would tell everything.
        scene.delete(&layout::record(id, crate::ids::RecordNumber(1))).await;
        for page in scene.keys(&layout::maps(id)).await {
            scene.flip(&page, 90).await;
        }
        let rebuilt = rebuild(&mut scene, id).await;
        let MapSource::PutTogether { root: Some(_) } = rebuilt.map else { panic!("{rebuilt:#?}") };
        assert!(!rebuilt.is_whole() && rebuilt.lost.is_empty(), "{rebuilt:#?}");
        check(&scene, rebuilt.handle.volume, &versions(&[(32, 1), (16, 2)])).await;
    }
}

#[tokio::test]
async fn older_data_never_stand_in_for_newer_that_were_found_and_cannot_be_read() {
    for put_together in [false, true] {
        let scene = Scene::new(true).await;
        let id = scene.create("data", None).await;
        let volume = scene.open(id).await;
        write(&volume, 0..32, 1).await;
        volume.snapshot("holds the first version", "").await.unwrap();
        write(&volume, 0..32, 2).await;
        let view = volume.frozen().unwrap();
        let location = view.lookup(16..17).await.unwrap()[0].location.unwrap();
        let key = layout::segment(id, location.segment.id);
        volume.abandon();
        let mut scene = scene;
        if put_together {
            scene.delete_all(&layout::roots(id)).await;
            scene.delete_all(&layout::maps(id)).await;
            scene.delete(&layout::record(id, crate::ids::RecordNumber(1))).await;
        }
        scene.flip(&key, location.stored_offset as usize + 5).await;
        let rebuilt = rebuild(&mut scene, id).await;
        assert_eq!(matches!(rebuilt.map, MapSource::PutTogether { .. }), put_together);
        let [lost] = rebuilt.lost.as_slice() else { panic!("{rebuilt:#?}") };
        assert_eq!((lost.offset, lost.len), (16 * BLOCK_BYTES, 16 * BLOCK_BYTES));
        assert_eq!(rebuilt.copied_bytes, 16 * BLOCK_BYTES);
        check(&scene, rebuilt.handle.volume, &versions(&[(16, 2), (16, 0)])).await;
    }
}

#[tokio::test]
async fn a_truncated_segment_loses_only_what_is_cut_off() {
    let (mut scene, id) = written(false).await;
    let segments = scene.keys(&layout::segments(id)).await;
    let mut largest = (0, String::new());
    for key in segments {
        largest = largest.max((scene.bytes_below(&key).await, key));
    }
    // The first 64 blocks, of which the last 32 are not needed any more.
    scene.change(&largest.1, |body| body.truncate(ENVELOPE_BYTES + 150_000)).await;
    let rebuilt = rebuild(&mut scene, id).await;
    assert!(rebuilt.lost.is_empty(), "{rebuilt:#?}");
    check(&scene, rebuilt.handle.volume, &versions(&[(32, 1), (16, 2), (16, 0)])).await;
    scene.change(&largest.1, |body| body.truncate(ENVELOPE_BYTES + 100_000)).await;
    scene.host.delete_volume(&scene.pool, rebuilt.handle.volume, deadline()).await.unwrap();
    let rebuilt = rebuild(&mut scene, id).await;
    let [lost] = rebuilt.lost.as_slice() else { panic!("{rebuilt:#?}") };
    assert_eq!((lost.offset, lost.len), (16 * BLOCK_BYTES, 16 * BLOCK_BYTES));
    check(&scene, rebuilt.handle.volume, &versions(&[(16, 1), (16, 0), (16, 2), (16, 0)])).await;
}

#[tokio::test]
async fn an_unreadable_segment_is_named_when_the_map_is_put_together() {
    let (mut scene, id) = written(true).await;
    scene.delete_all(&layout::roots(id)).await;
    scene.delete(&layout::record(id, crate::ids::RecordNumber(1))).await;
    let key = scene.keys(&layout::segments(id)).await.remove(0);
    scene.flip(&key, ENVELOPE_BYTES + 3).await;
    let rebuilt = rebuild(&mut scene, id).await;
    assert!(rebuilt.unreadable.iter().any(|damage| damage.key == key), "{rebuilt:#?}");
}

#[tokio::test]
async fn a_clone_gets_what_it_shares_with_its_source() {
    for encrypted in [false, true] {
        let mut scene = Scene::new(encrypted).await;
        let parent = scene.create("parent", None).await;
        let volume = scene.open(parent).await;
        write(&volume, 0..64, 1).await;
        let snapshot = volume.snapshot("first", "").await.unwrap();
        write(&volume, 0..64, 7).await;
        let id = scene.create("clone", Some((parent, snapshot))).await;
        let clone = scene.open(id).await;
        write(&clone, 16..32, 2).await;
        clone.append(Vec::new(), true).await.unwrap();
        write(&clone, 40..42, 3).await;
        clone.abandon();
        scene.delete_all(&layout::roots(id)).await;
        scene.delete_all(&layout::maps(id)).await;
        let expected = versions(&[(16, 1), (16, 2), (8, 1), (2, 3), (22, 1), (16, 0)]);
        let rebuilt = rebuild(&mut scene, id).await;
        assert_eq!(rebuilt.map, MapSource::Replayed { root: None });
        check(&scene, rebuilt.handle.volume, &expected).await;
        scene.host.delete_volume(&scene.pool, rebuilt.handle.volume, deadline()).await.unwrap();
        scene.delete(&layout::record(id, crate::ids::RecordNumber(1))).await;
        let rebuilt = rebuild(&mut scene, id).await;
        assert_eq!(rebuilt.map, MapSource::PutTogether { root: None });
        check(&scene, rebuilt.handle.volume, &expected).await;
    }
}

#[tokio::test]
async fn runs_of_an_archive_are_told_apart_by_the_time_of_their_segments() {
    let mut scene = Scene::new(true).await;
    let id = scene.create("archive", None).await;
    for run in 1..=3u64 {
        scene.store.set_time_ms(run * 1000);
        let volume = scene.open(id).await;
        let name = ObjectId([run as u8; 16]);
        let mut bulk = volume.bulk(name);
        let data: Vec<u8> = (run * 8..64).flat_map(|lba| content(lba, run)).collect();
        bulk.write(run * 8, 0, &data).await.unwrap();
        volume.commit_bulk(bulk, vec![Op::RunCommitted { run: name }]).await.unwrap();
        scene.detach(&volume).await;
    }
    scene.delete_all(&layout::roots(id)).await;
    scene.delete_all(&layout::maps(id)).await;
    scene.delete(&layout::record(id, crate::ids::RecordNumber(1))).await;
    let rebuilt = rebuild(&mut scene, id).await;
    assert_eq!(rebuilt.map, MapSource::PutTogether { root: None });
    check(&scene, rebuilt.handle.volume, &versions(&[(8, 0), (8, 1), (8, 2), (40, 3), (8, 0)])).await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused_and_a_failure_leaves_none() {
    let (scene, id) = written(false).await;
    let refused = scene.host.rebuild(&scene.pool, id, "data", &|_| {}).await;
    assert!(matches!(refused, Err(SalvageError::NameTaken { .. })), "{refused:?}");
    scene.delete_all(&layout::records(id)).await;
    scene.delete_all(&layout::roots(id)).await;
    scene.delete_all(&layout::segments(id)).await;
    let refused = scene.host.rebuild(&scene.pool, id, "rebuilt", &|_| {}).await;
    assert!(matches!(refused, Err(SalvageError::Nothing { .. })), "{refused:?}");
    assert_eq!(scene.pool.volume_named("rebuilt", deadline()).await.unwrap(), None);
}
