//! How much room a volume takes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::scene::{BLOCKS, Scene};
use crate::gc::Collector;
use crate::ids::BLOCK_BYTES;
use crate::pool::layout;
use crate::store::Store;
use crate::volume::Volume;

/// Overwrites at random, some way over the volume's size, with rounds in between.
async fn churn(scene: &mut Scene, volume: &Volume, collector: &mut Collector, flush_every: usize) {
    for _ in 0..12 {
        scene.scatter(volume, 256, flush_every).await;
        collector.round().await.unwrap();
    }
    for _ in 0..3 {
        collector.round().await.unwrap();
    }
}

async fn churned(flush_every: usize) -> Scene {
    let mut scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    let mut collector = Collector::new(volume.clone());
    scene.write(&volume, 0..BLOCKS).await;
    churn(&mut scene, &volume, &mut collector, flush_every).await;
    scene.check(&volume).await;
    volume.abandon();
    scene.check_reopened(grant).await;
    scene
}

#[tokio::test]
async fn random_overwrites_take_at_most_half_as_much_again_as_is_live() {
    let scene = churned(64).await;
    let (stored, live) = (scene.stored_bytes().await, BLOCKS * BLOCK_BYTES);
    assert!(stored * 2 <= live * 3, "{stored} bytes are stored for {live} live ones");
}

#[tokio::test]
async fn data_that_travelled_in_many_records_is_gathered() {
    let scene = churned(1).await;
    let (stored, live) = (scene.stored_bytes().await, BLOCKS * BLOCK_BYTES);
    assert!(stored * 2 <= live * 3, "{stored} bytes are stored for {live} live ones");
    let records = scene.keys(&layout::records(scene.log.volume)).await.len();
    assert!(records < 400, "{records} records are left of 3,000");
}

#[tokio::test]
async fn room_is_given_back_though_some_segments_are_damaged() {
    let mut scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    scene.write(&volume, 0..BLOCKS).await;
    volume.flush().await.unwrap();
    let mut damaged = BTreeMap::new();
    for key in scene.segments().await.into_iter().step_by(8) {
        let body = scene.store.get(&key).await.unwrap();
        scene.store.delete(&key).await.unwrap();
        scene.store.put_if_absent(&key, Bytes::from(vec![0; body.len()])).await.unwrap();
        damaged.insert(key, body);
    }
    assert!(damaged.len() > 2, "{} segments", damaged.len());
    let mut collector = Collector::new(volume.clone());
    churn(&mut scene, &volume, &mut collector, 64).await;
    let sound = scene.listed("").await.into_iter().filter(|listed| !damaged.contains_key(&listed.key));
    let (stored, live) = (sound.map(|listed| listed.size_bytes).sum::<u64>(), BLOCKS * BLOCK_BYTES);
    assert!(stored * 2 <= live * 3, "{stored} bytes are stored for {live} live ones");
    // Who mends them finds all that the head names.
    for (key, body) in damaged {
        scene.store.delete(&key).await.unwrap();
        scene.store.put_if_absent(&key, body).await.unwrap();
    }
    volume.abandon();
    scene.check_reopened(grant).await;
}

#[tokio::test]
async fn copies_keep_the_session_and_the_order_of_what_they_copy() {
    let mut scene = Scene::new().await;
    let first = scene.open(scene.grant("a").await).await;
    scene.write(&first, 0..64).await;
    first.flush().await.unwrap();
    first.abandon();
    let wrote = first.session();
    let volume = scene.take_over("a", "b").await;
    scene.write(&volume, 0..56).await;
    volume.flush().await.unwrap();
    let mut collector = Collector::new(volume.clone());
    let mut moved = 0;
    for _ in 0..3 {
        moved += collector.round().await.unwrap().moved_bytes;
    }
    assert!(moved >= 8 * BLOCK_BYTES);
    let extents = volume.frozen().unwrap().lookup(56..64).await.unwrap();
    let segment = extents[0].location.unwrap().segment;
    let key = layout::segment(scene.log.volume, segment.id);
    let body = scene.store.get(&key).await.unwrap();
    let table =
        crate::codec::decode_segment_table(&body, scene.log.volume, segment.id, scene.log.key.as_ref())
            .unwrap();
    assert_eq!(table.session, volume.session());
    let copied: Vec<_> = table.chunks.iter().filter(|chunk| chunk.lba >= 56).collect();
    assert!(!copied.is_empty() && copied.iter().all(|chunk| chunk.session == wrote && chunk.order == 1));
    scene.check(&volume).await;
}
