//! A scrub says exactly what is damaged, and whom it concerns.

use super::super::{Fault, Place, Scope};
use super::scene::{BLOCKS, Scene, at, content, deadline, only, write};
use crate::codec::ENVELOPE_BYTES;
use crate::ids::{BLOCK_BYTES, SnapshotId, VolumeId};
use crate::map::{PageRef, RunRef, map_objects};
use crate::pool::layout;
use crate::volume::Volume;

/// A volume with 64 blocks in a segment, 32 of them overwritten after a snapshot, and 2 blocks in a record. The head is
/// checkpointed.
struct Written {
    scene: Scene,
    volume: Volume,
    id: VolumeId,
    snapshot: SnapshotId,
    held: Place,
}

async fn written(encrypted: bool) -> Written {
    let scene = Scene::new(encrypted).await;
    let id = scene.create("data", None).await;
    let volume = scene.open(id).await;
    write(&volume, 0..64, 1).await;
    let snapshot = volume.snapshot("first", "").await.unwrap();
    write(&volume, 32..64, 2).await;
    write(&volume, 100..102, 1).await;
    volume.append(Vec::new(), true).await.unwrap();
    let held = Place::Snapshot { id: snapshot, name: "first".into() };
    Written { scene, volume, id, snapshot, held }
}

#[tokio::test]
async fn of_a_sound_volume_every_object_with_data_is_read_once() {
    for encrypted in [false, true] {
        let Written { mut scene, volume, id, .. } = written(encrypted).await;
        // A clone adds nothing of its own and needs what the snapshot needs.
        let inline = layout::record(id, scene.segment_of(&volume, 100).await.birth);
        let data_bytes = scene.bytes_below(&layout::segments(id)).await + scene.bytes_below(&inline).await;
        let scrubbed = scene.scrub(id).await;
        assert!(scrubbed.is_sound(), "{scrubbed:#?}");
        assert_eq!(scrubbed.mapped_bytes, 66 * BLOCK_BYTES);
        assert_eq!(scrubbed.size_bytes, BLOCKS * BLOCK_BYTES);
        assert_eq!(scrubbed.read_bytes, data_bytes);
    }
}

#[tokio::test]
async fn a_damaged_chunk_concerns_the_blocks_that_name_it_in_head_snapshot_and_clone() {
    for encrypted in [false, true] {
        let Written { mut scene, volume, id, snapshot, held } = written(encrypted).await;
        let clone = scene.create("clone", Some((id, snapshot))).await;
        // Blocks 0..16 are in head and snapshot, 48..64 only in the snapshot.
        for (block, head) in [(0, true), (48, false)] {
            let view = scene.host.snapshot_reader(&scene.pool, id, snapshot, deadline()).await.unwrap();
            let crate::volume::Blocks::Moment(view) = view.blocks() else { panic!("a moment") };
            let location = view.lookup(block..block + 1).await.unwrap()[0].location.unwrap();
            let key = layout::segment(id, location.segment.id);
            scene.flip(&key, location.stored_offset as usize + 100).await;

            let scrubbed = scene.scrub(id).await;
            let damage = only(&scrubbed);
            assert_eq!((&damage.key, damage.volume, damage.fault), (&key, id, Fault::Checksum));
            assert_eq!(damage.chunk_offset, Some(location.stored_offset));
            let mut affects = vec![at(&held, block..block + 16)];
            if head {
                affects.insert(0, at(&Place::Head, block..block + 16));
            }
            assert_eq!(damage.affects, affects);

            let scrubbed = scene.scrub(clone).await;
            let damage = only(&scrubbed);
            assert_eq!((&damage.key, damage.volume), (&key, id));
            assert_eq!(damage.affects, [at(&Place::Head, block..block + 16)]);
            scene.flip(&key, location.stored_offset as usize + 100).await;
        }
        drop(volume);
    }
}

#[tokio::test]
async fn a_lost_segment_concerns_all_that_it_held() {
    let Written { mut scene, volume, id, held, .. } = written(false).await;
    let key = layout::segment(id, scene.segment_of(&volume, 0).await.id);
    scene.delete(&key).await;
    let scrubbed = scene.scrub(id).await;
    let damage = only(&scrubbed);
    assert_eq!((&damage.key, damage.fault, damage.chunk_offset), (&key, Fault::Missing, None));
    assert_eq!(damage.affects, [at(&Place::Head, 0..32), at(&held, 0..64)]);
    assert_eq!(scrubbed.unopenable, None);
}

#[tokio::test]
async fn a_truncated_segment_concerns_the_chunks_that_are_cut_off() {
    for encrypted in [false, true] {
        let Written { mut scene, volume, id, held, .. } = written(encrypted).await;
        let key = layout::segment(id, scene.segment_of(&volume, 0).await.id);
        scene.change(&key, |body| body.truncate(body.len() - 20_000)).await;
        let scrubbed = scene.scrub(id).await;
        let damage = only(&scrubbed);
        assert_eq!((&damage.key, damage.fault), (&key, Fault::Truncated));
        assert_eq!(damage.affects, [at(&held, 48..64)]);
    }
}

#[tokio::test]
async fn a_damaged_table_is_told_and_hides_no_damage_of_a_chunk() {
    for encrypted in [false, true] {
        let Written { mut scene, volume, id, held, .. } = written(encrypted).await;
        let segment = scene.segment_of(&volume, 0).await;
        let key = layout::segment(id, segment.id);
        scene.flip(&key, ENVELOPE_BYTES + 10).await;
        let scrubbed = scene.scrub(id).await;
        let damage = only(&scrubbed);
        assert_eq!((damage.chunk_offset, damage.fault), (None, Fault::Checksum));
        assert_eq!(damage.affects, []);

        scene
            .change(&key, |body| {
                let end = body.len();
                body[end - 100] ^= 1
            })
            .await;
        let scrubbed = scene.scrub(id).await;
        assert_eq!(scrubbed.damage.len(), 2, "{scrubbed:#?}");
        assert_eq!(scrubbed.damage[1].affects, [at(&held, 48..64)]);
    }
}

#[tokio::test]
async fn another_segment_in_the_place_of_one_is_noticed() {
    let Written { mut scene, volume, id, .. } = written(true).await;
    let first = layout::segment(id, scene.segment_of(&volume, 0).await.id);
    let second = layout::segment(id, scene.segment_of(&volume, 32).await.id);
    let other = crate::store::Store::get(&scene.store, &second).await.unwrap();
    scene.change(&first, |body| *body = other.to_vec()).await;
    let scrubbed = scene.scrub(id).await;
    let whole = &scrubbed.damage[0];
    assert_eq!((&whole.key, whole.fault, whole.chunk_offset), (&first, Fault::Identity, None));
    // No chunk of it opens either.
    let blocks: u64 = scrubbed.damage[1..]
        .iter()
        .flat_map(|damage| &damage.affects)
        .filter(|at| at.place == Place::Head)
        .map(|at| at.len / BLOCK_BYTES)
        .sum();
    assert_eq!(blocks, 32);
}

#[tokio::test]
async fn a_damaged_page_concerns_what_no_newer_page_says() {
    for encrypted in [false, true] {
        let Written { mut scene, volume, id, snapshot, held } = written(encrypted).await;
        let log = scene.log(id).await;
        let map = crate::snapshot::find(&log, snapshot, deadline()).await.unwrap().map;
        let [RunRef::Pages(pages)] = map.map.runs.as_slice() else { panic!("{map:?}") };
        let [page] = pages.as_slice() else { panic!("{pages:?}") };
        let in_head = map_objects(&volume.frozen().unwrap()).await.unwrap().contains(&page.into());
        let key = layout::map(id, page.id);
        scene.flip(&key, 100).await;
        let scrubbed = scene.scrub(id).await;
        let damage = only(&scrubbed);
        assert_eq!((&damage.key, damage.fault, damage.chunk_offset), (&key, Fault::Checksum, None));
        let head = in_head.then(|| at(&Place::Head, 0..32));
        let affects: Vec<_> = head.into_iter().chain([at(&held, 0..64)]).collect();
        assert_eq!(damage.affects, affects);

        scene.flip(&key, 100).await;
        let key = layout::map(id, map.id);
        scene.delete(&key).await;
        let scrubbed = scene.scrub(id).await;
        let damage = only(&scrubbed);
        assert_eq!((&damage.key, damage.fault), (&key, Fault::Missing));
        assert_eq!(damage.affects, [at(&held, 0..BLOCKS)]);
    }
}

#[tokio::test]
async fn of_a_pack_that_is_lost_all_pages_are_told_together_and_of_one_that_is_there_each() {
    for encrypted in [false, true] {
        let mut scene = Scene::new(encrypted).await;
        // So many extents take three pages.
        let blocks = 6_000;
        let id = scene.create_of_size("data", 2 * blocks * BLOCK_BYTES, None).await;
        let volume = scene.open(id).await;
        for number in 0..blocks {
            volume.write(2 * number * BLOCK_BYTES, content(number, 1).into()).await.unwrap();
        }
        let snapshot = volume.snapshot("first", "").await.unwrap();
        let held = Place::Snapshot { id: snapshot, name: "first".into() };
        let map = crate::snapshot::find(&scene.log(id).await, snapshot, deadline()).await.unwrap().map;
        let [RunRef::Pages(pages)] = map.map.runs.as_slice() else { panic!("{map:?}") };
        let [first, second, third] = pages.as_slice() else { panic!("{pages:?}") };
        let place = second.place.expect("it lies in a pack");
        assert!(first.id == second.id && second.id == third.id, "{pages:?}");
        let key = layout::map(id, second.id);

        scene.flip(&key, place.offset as usize + 100).await;
        let scrubbed = scene.scrub(id).await;
        let damage = only(&scrubbed);
        assert_eq!((&damage.key, damage.fault), (&key, Fault::Checksum));
        assert_eq!(damage.chunk_offset, Some(place.offset));
        let lost = |place: &Place, from: &PageRef, to: &PageRef| at(place, from.first_lba..to.end_lba);
        assert_eq!(damage.affects, [lost(&Place::Head, second, second), lost(&held, second, second)]);
        scene.flip(&key, place.offset as usize + 100).await;

        scene.flip(&key, ENVELOPE_BYTES).await;
        let scrubbed = scene.scrub(id).await;
        let damage = only(&scrubbed);
        assert_eq!((&damage.key, damage.fault, damage.chunk_offset), (&key, Fault::Checksum, None));
        assert_eq!(damage.affects, [], "no reader needs the table of a pack");
        scene.flip(&key, ENVELOPE_BYTES).await;

        scene.delete(&key).await;
        let scrubbed = scene.scrub(id).await;
        let damage = only(&scrubbed);
        assert_eq!((&damage.key, damage.fault, damage.chunk_offset), (&key, Fault::Missing, None));
        let told = |place: &Place| -> u64 {
            damage.affects.iter().filter(|lost| lost.place == *place).map(|lost| lost.len).sum()
        };
        let named = pages.iter().map(|page| (page.end_lba - page.first_lba) * BLOCK_BYTES).sum();
        assert_eq!((told(&Place::Head), told(&held)), (named, named));
    }
}

#[tokio::test]
async fn a_damaged_root_is_what_keeps_a_volume_from_being_opened() {
    let Written { mut scene, id, .. } = written(true).await;
    let root = scene.newest_root(id).await;
    scene.flip(&root, 200).await;
    let scrubbed = scene.scrub(id).await;
    assert!(scrubbed.unopenable.is_some());
    assert_eq!(only(&scrubbed).key, root);
    // What an older root says is checked all the same.
    assert!(scrubbed.mapped_bytes > 0);
    scene.delete_all(&layout::roots(id)).await;
    scene.delete(&layout::record(id, crate::ids::RecordNumber(1))).await;
    let scrubbed = scene.scrub(id).await;
    assert!(scrubbed.unopenable.unwrap().contains("record 1 is not there"));
}

#[tokio::test]
async fn a_gap_in_the_log_is_noticed() {
    let Written { mut scene, volume, id, .. } = written(false).await;
    write(&volume, 200..201, 1).await;
    write(&volume, 201..202, 1).await;
    let first = scene.segment_of(&volume, 200).await.birth;
    let second = scene.segment_of(&volume, 201).await.birth;
    assert!(second > first);
    volume.abandon();
    scene.delete(&layout::record(id, first)).await;
    let scrubbed = scene.scrub(id).await;
    let missing = only(&scrubbed);
    assert_eq!((&missing.key, missing.fault), (&layout::record(id, first), Fault::Missing));
    assert!(scrubbed.unopenable.unwrap().contains(&format!("record {first} is not there")));
    let Written { mut scene, volume, id, .. } = written(false).await;
    write(&volume, 200..201, 1).await;
    let number = scene.segment_of(&volume, 200).await.birth;
    volume.abandon();
    scene.flip(&layout::record(id, number), 80).await;
    let scrubbed = scene.scrub(id).await;
    assert!(scrubbed.unopenable.is_some());
    assert!(scrubbed.damage.iter().any(|damage| damage.key == layout::record(id, number)));
}

#[tokio::test]
async fn one_snapshot_can_be_looked_at_alone() {
    let Written { scene, volume, id, snapshot, held } = written(true).await;
    let key = layout::segment(id, scene.segment_of(&volume, 32).await.id);
    scene.delete(&key).await;
    let quiet = |_| {};
    let scrubbed = scene.host.scrub(&scene.pool, id, Scope::Snapshot(snapshot), &quiet).await.unwrap();
    assert!(scrubbed.is_sound(), "{scrubbed:#?}");
    assert_eq!(scrubbed.mapped_bytes, 64 * BLOCK_BYTES);
    let key = layout::segment(id, scene.segment_of(&volume, 0).await.id);
    scene.delete(&key).await;
    let scrubbed = scene.host.scrub(&scene.pool, id, Scope::Snapshot(snapshot), &quiet).await.unwrap();
    assert_eq!(only(&scrubbed).affects, [at(&held, 0..64)]);
}
