//! How much room a volume takes.

use super::scene::{BLOCKS, Scene};
use crate::gc::Collector;
use crate::ids::BLOCK_BYTES;
use crate::pool::layout;

/// Overwrites at random, some way over the volume's size, with rounds in between.
async fn churned(flush_every: usize) -> Scene {
    let mut scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    let mut collector = Collector::new(volume.clone());
    scene.write(&volume, 0..BLOCKS).await;
    for _ in 0..12 {
        scene.scatter(&volume, 256, flush_every).await;
        collector.round().await.unwrap();
    }
    scene.check(&volume).await;
    for _ in 0..3 {
        collector.round().await.unwrap();
    }
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
    let body = crate::store::Store::get(&scene.store, &key).await.unwrap();
    let table =
        crate::codec::decode_segment_table(&body, scene.log.volume, segment.id, scene.log.key.as_ref())
            .unwrap();
    assert_eq!(table.session, volume.session());
    let copied: Vec<_> = table.chunks.iter().filter(|chunk| chunk.lba >= 56).collect();
    assert!(!copied.is_empty() && copied.iter().all(|chunk| chunk.session == wrote && chunk.order == 1));
    scene.check(&volume).await;
}
