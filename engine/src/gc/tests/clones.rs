//! Collectors of clones.

use std::sync::Arc;

use super::scene::{BLOCKS, check_blocks, deadline, host};
use super::source::Source;
use crate::gc::Collector;
use crate::ids::BLOCK_BYTES;
use crate::pool::layout;
use crate::store::Store;

#[tokio::test]
async fn what_a_clone_wrote_is_collected_though_its_sources_map_cannot_be_read() {
    let mut source = Source::new().await;
    let (pool, host) = host(Arc::new(source.scene.store.clone())).await;
    let clone = host.create_volume(&pool, &source.clone_in(&pool), deadline()).await.unwrap();
    let volume = source.opened(&host, &pool, clone).await;
    source.scene.model = source.model.clone();
    let mut away = Vec::new();
    for key in source.scene.keys(&layout::maps(source.scene.log.volume)).await {
        away.push((key.clone(), source.scene.store.get(&key).await.unwrap()));
        source.scene.store.delete(&key).await.unwrap();
    }
    assert!(!away.is_empty());

    let mut collector = Collector::new(volume.clone());
    source.scene.write(&volume, 32..BLOCKS).await;
    let snapshot = volume.snapshot("held", "").await.unwrap();
    let held = source.scene.model.clone();
    let (mut moved_bytes, mut deleted) = (0, 0);
    for _ in 0..12 {
        source.scene.scatter(&volume, 256, 64).await;
        let round = collector.round().await.unwrap();
        (moved_bytes, deleted) = (moved_bytes + round.moved_bytes, deleted + round.deleted);
    }
    assert!(moved_bytes > BLOCKS * BLOCK_BYTES / 2 && deleted > 20, "{moved_bytes} moved, {deleted} deleted");

    for (key, body) in away {
        source.scene.store.put_if_absent(&key, body).await.unwrap();
    }
    source.scene.check(&volume).await;
    let reader = host.snapshot_reader(&pool, clone, snapshot, deadline()).await.unwrap();
    let mut read = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
    reader.read(0, BLOCKS, &mut read).await.unwrap();
    check_blocks(&read, &held);
}
