//! Openers, readers and collectors at once, at every store call.

use std::sync::Arc;

use super::scene::{BLOCKS, Gate, Scene};
use crate::gc::Collector;
use crate::ids::BLOCK_BYTES;
use crate::pool::layout;
use crate::store::Store;

/// A volume with garbage that a first round has found, and its collector, whose calls pass a gate.
async fn prepared(stop_at: usize) -> (Scene, Arc<Gate>, Collector) {
    let mut scene = Scene::new().await;
    // Calls count from here on.
    let idle = Gate::new(&scene.store, usize::MAX, "");
    let volume = scene.open_through(idle.clone(), scene.grant("a").await).await;
    let mut collector = Collector::new(volume.clone());
    for _ in 0..2 {
        scene.write(&volume, 0..64).await;
        scene.scatter(&volume, 12, 3).await;
        scene.write(&volume, 0..64).await;
        volume.flush().await.unwrap();
        collector.round().await.unwrap();
    }
    volume.close().await.unwrap();
    // The same again in a session behind the gate.
    let gate = Gate::new(&scene.store, stop_at, "");
    let grant = scene.grant("a").await;
    let volume = scene.open_through(gate.clone(), grant).await;
    let mut collector = Collector::new(volume.clone());
    scene.write(&volume, 0..48).await;
    volume.flush().await.unwrap();
    collector.round().await.unwrap();
    scene.write(&volume, 0..24).await;
    volume.flush().await.unwrap();
    (scene, gate, collector)
}

#[tokio::test(start_paused = true)]
async fn an_opener_finds_everything_wherever_the_collector_stands() {
    // Where the last round begins and ends.
    let (_, gate, mut collector) = prepared(usize::MAX).await;
    let begin = gate.calls();
    let round = collector.round().await.unwrap();
    assert!(round.deleted > 10, "{round:?}");
    let end = gate.calls();
    assert!(end - begin > 30);
    for stop_at in begin..end {
        let (mut scene, gate, mut collector) = prepared(stop_at).await;
        let round = tokio::spawn(async move { collector.round().await.map(|_| ()) });
        gate.arrived.notified().await;
        // The collector is somewhere in its round, and stays there while the volume moves on.
        let volume = scene.take_over("a", "b").await;
        scene.check(&volume).await;
        scene.write(&volume, 10..40).await;
        volume.flush().await.unwrap();
        gate.go.notify_one();
        let _ = round.await.unwrap();
        scene.check(&volume).await;
        volume.abandon();
        let again = scene.take_over("b", "c").await;
        scene.check(&again).await;
        let mut collector = Collector::new(again.clone());
        for _ in 0..2 {
            collector.round().await.unwrap();
            scene.check(&again).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_whose_segment_is_collected_meanwhile_resolves_again() {
    let mut scene = Scene::new().await;
    let gate = Gate::new(&scene.store, usize::MAX, "");
    let grant = scene.grant("a").await;
    let volume = scene.open_through(gate, grant).await;
    scene.write(&volume, 224..256).await;
    volume.flush().await.unwrap();
    // A reader of the same session whose gets are slow.
    let slow = Gate::new(&scene.store, 0, "/seg/");
    let options = scene.options(slow.clone() as Arc<dyn Store>, grant);
    let fetcher = crate::volume::Fetcher::new(options.lineage, options.cache, scene.log.env.clone());
    let reader = crate::volume::BlockReader::new(scene.log.volume, volume.reader().blocks().clone(), fetcher);
    let read = tokio::spawn(async move {
        let mut out = vec![0; 4 * BLOCK_BYTES as usize];
        reader.read(250, 254, &mut out).await.map(|()| out)
    });
    slow.arrived.notified().await;
    // Its segment is rewritten and collected before its get.
    let before = scene.segments().await;
    scene.write(&volume, 224..250).await;
    volume.flush().await.unwrap();
    let mut collector = Collector::new(volume.clone());
    for _ in 0..5 {
        collector.round().await.unwrap();
    }
    let left = scene.segments().await;
    assert!(!before.iter().any(|key| left.contains(key)), "the first segments are still there");
    slow.go.notify_one();
    let out = read.await.unwrap().unwrap();
    let expected: Vec<u8> =
        (250..254).flat_map(|lba| super::scene::content(lba, scene.model[lba as usize])).collect();
    assert_eq!(out, expected);
}

#[tokio::test(start_paused = true)]
async fn writes_snapshots_and_rounds_at_once_lose_nothing() {
    let mut scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    let mut collector = Collector::new(volume.clone());
    let rounds = tokio::spawn(async move {
        for _ in 0..12 {
            collector.round().await.unwrap();
        }
    });
    let mut snapshots = Vec::new();
    for n in 0..6u64 {
        scene.write(&volume, n * 100..n * 100 + 300).await;
        scene.scatter(&volume, 20, 4).await;
        let id = volume.snapshot(&format!("s{n}"), "").await.unwrap();
        snapshots.push((id, scene.model.clone()));
        tokio::task::yield_now().await;
    }
    rounds.await.unwrap();
    scene.check(&volume).await;
    for (id, model) in &snapshots {
        scene.check_snapshot(*id, model).await;
    }
    assert!(scene.keys(&layout::maps(scene.log.volume)).await.len() < 200);
    assert_eq!(scene.model.len() as u64, BLOCKS);
    volume.abandon();
    scene.check_reopened(grant).await;
}
