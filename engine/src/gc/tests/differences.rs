//! What is remembered of snapshots from round to round.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::scene::{BLOCKS, Gate, Scene, deadline};
use crate::gc::{Collector, Rhythm, maintain};
use crate::ids::{BLOCK_BYTES, ObjectId};
use crate::log::Op;
use crate::map::{Diff, Extent, MapView};
use crate::snapshot;

/// A block, and where its data lies.
type Named = (u64, ObjectId, u32, u8);

fn blocks(extents: impl Iterator<Item = Extent>) -> BTreeSet<Named> {
    let blocks =
        extents.flat_map(|extent| (extent.lba..extent.end()).map(move |lba| extent.slice(lba, lba + 1)));
    let place = |block: Extent| {
        block.location.map(|at| (block.lba, at.segment.id, at.stored_offset, at.chunk_offset))
    };
    blocks.filter_map(place).collect()
}

/// What the older of two snapshot maps names and the newer one does not; none if one of them is gone.
async fn compared(scene: &Scene, newer: ObjectId, older: ObjectId) -> Option<BTreeSet<Named>> {
    let pages = scene.options(Arc::new(scene.store.clone()), ObjectId::NONE).pages;
    let newer = snapshot::read_map(&scene.log, newer, deadline()).await.ok()?;
    let older = snapshot::read_map(&scene.log, older, deadline()).await.ok()?;
    let view = |map| MapView::from_stored(pages.clone(), map);
    let mut diff = Diff::new(&view(&newer.map), &view(&older.map), 0);
    let mut only = Vec::new();
    while let Some(extent) = diff.next().await.ok()? {
        only.push(extent);
    }
    Some(blocks(only.into_iter()))
}

#[tokio::test]
async fn what_is_remembered_is_what_comparing_the_maps_shows_also_after_moves() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    let mut collector = Collector::new(volume.clone());
    scene.write(&volume, 0..BLOCKS).await;
    let mut taken = Vec::new();
    let mut checked = 0;
    for n in 0..24 {
        scene.scatter(&volume, 200, 64).await;
        taken.push((volume.snapshot(&format!("s{n}"), "").await.unwrap(), scene.model.clone()));
        if n % 3 == 2 {
            let (snapshot, _) = taken.remove(n / 6);
            volume.append(vec![Op::DeleteSnapshot { snapshot }], false).await.unwrap();
        }
        collector.round().await.unwrap();
        for ((newer, older), known) in collector.differences.pairs() {
            if let Some(fresh) = compared(&scene, newer, older).await {
                assert_eq!(blocks(known.from(0)), fresh);
                checked += 1;
            }
        }
    }
    let restated = scene.control().await.snapshots.values().filter(|found| found.generation > 0).count();
    assert!(restated > 8 && checked > 200, "{restated} were restated, {checked} were checked");
    for (id, then) in &taken {
        scene.check_snapshot(*id, then).await;
    }
    scene.check(&volume).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_taken_while_data_moves_keeps_no_copy_of_its_own() {
    let begun = async |stop_at: usize| {
        let mut scene = Scene::new().await;
        let gate = Gate::new(&scene.store, stop_at, "/seg/");
        let volume = scene.open_through(gate.clone(), scene.grant("a").await).await;
        scene.write(&volume, 0..BLOCKS).await;
        scene.scatter(&volume, 700, 64).await;
        (scene, gate, volume)
    };
    let (_, gate, volume) = begun(usize::MAX).await;
    let mut collector = Collector::new(volume);
    while collector.round().await.unwrap().moved_bytes == 0 {}
    // The last copy is on its way. Another run may choose a segment less.
    let mut last = gate.calls();
    let (scene, gate, volume, rounds) = loop {
        last -= 1;
        let (scene, gate, volume) = begun(last).await;
        let mut collector = Collector::new(volume.clone());
        let mut rounds = tokio::spawn(async move {
            while collector.round().await.unwrap().moved_bytes == 0 {}
            collector
        });
        tokio::select! {
            () = gate.arrived.notified() => break (scene, gate, volume, rounds),
            _ = &mut rounds => {}
        }
    };
    let late = volume.snapshot("late", "").await.unwrap();
    gate.go.notify_one();
    let mut collector = rounds.await.unwrap();
    assert!(scene.control().await.snapshots[&late].generation > 0);
    for _ in 0..4 {
        collector.round().await.unwrap();
    }
    let (stored, needed) = (scene.stored_bytes().await, BLOCKS * BLOCK_BYTES);
    assert!(stored <= needed * 5 / 4, "{stored} bytes are stored for {needed}");
    scene.check_snapshot(late, &scene.model).await;
    scene.check(&volume).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_deleted_snapshot_held_is_given_back_though_nothing_is_written() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..BLOCKS).await;
    let snapshot = volume.snapshot("held", "").await.unwrap();
    scene.write(&volume, 0..BLOCKS).await;
    volume.flush().await.unwrap();
    let rhythm = Rhythm { bytes: u64::MAX, records: u64::MAX };
    let collecting = tokio::spawn(maintain(volume.clone(), rhythm, Arc::new(Semaphore::new(1))));
    volume.append(vec![Op::DeleteSnapshot { snapshot }], false).await.unwrap();
    // Time goes on when nobody has anything to do.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (stored, needed) = (scene.stored_bytes().await, BLOCKS * BLOCK_BYTES);
    assert!(stored <= needed * 5 / 4, "{stored} bytes are stored for {needed}");
    collecting.abort();
    scene.check(&volume).await;
}
