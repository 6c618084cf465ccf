//! Many snapshots, many clones, and the largest volume: what an operation asks of the store does not grow with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_engine::cache::MemoryCache;
use holdfast_engine::codec::Codec;
use holdfast_engine::control::{CreateVolume, SourceSnapshot};
use holdfast_engine::env::Env;
use holdfast_engine::gc::Collector;
use holdfast_engine::host::Host;
use holdfast_engine::ids::BLOCK_BYTES;
use holdfast_engine::log::Op;
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolKind, PoolSet};
use holdfast_engine::volume::Limits;

use crate::model::{Model, Pattern, check};
use crate::store::Counting;
use crate::volume::{Site, deadline};

const MANY: usize = 1000;

#[tokio::test(start_paused = true)]
async fn a_thousand_snapshots_of_a_volume() {
    let blocks = 512;
    let site = Site::new(blocks, 256 << 10).await;
    let grant = site.grant().await;
    let volume = site.open(grant).await;
    let mut model = Model::new(Pattern::Uniform, blocks);
    let mut collector = Collector::new(volume.clone());
    let mut taken = Vec::new();
    for n in 1..=MANY {
        for _ in 0..4 {
            let lba = model.choose();
            let data = model.write(lba);
            volume.write(lba * BLOCK_BYTES, data).await.unwrap();
        }
        let (requests, put) = (site.store.requests(), site.store.put_bytes());
        let id = volume.snapshot(&format!("s{n}"), "").await.unwrap();
        let requests = site.store.requests() - requests;
        assert!(requests <= 24, "{requests} requests for snapshot {n}");
        let put = site.store.put_bytes() - put;
        // The root lists the snapshots.
        assert!(put <= 64 * 1024 + 128 * n as u64, "{put} bytes for snapshot {n}");
        taken.push((id, model.head.clone()));
        if n % 200 == 0 {
            collector.round().await.unwrap();
        }
    }
    for (id, versions) in taken.iter().step_by(97) {
        site.check_snapshot(*id, versions).await;
    }
    let ops = taken.iter().skip(1).map(|(id, _)| Op::DeleteSnapshot { snapshot: *id }).collect();
    volume.append(ops, false).await.unwrap();
    for _ in 0..4 {
        collector.round().await.unwrap();
    }
    site.check_snapshot(taken[0].0, &taken[0].1).await;
    let needed = 2 * blocks * BLOCK_BYTES;
    let stored = site.store.stored_bytes().await;
    assert!(stored < needed * 3 / 2, "{stored} bytes for {needed} once all but one are deleted");
    check(&volume.read(0, blocks * BLOCK_BYTES).await.unwrap(), &model.head);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_clones_of_a_snapshot() {
    let (store, env) = (Counting::default(), Env::system());
    let pool = Pool::over("p", "memory", Arc::new(store.clone()), None, Access::ReadWrite, env.clone());
    let pool = pool.await.unwrap();
    let host = Host {
        pools: Arc::new(PoolSet::of([(PoolKind::Pool, Arc::clone(&pool))], env)),
        pages: PageCache::new(4 << 20),
        cache: Arc::new(MemoryCache::new(1 << 20)),
    };
    let new = |name: String, source| CreateVolume {
        name,
        size_bytes: 16 << 20,
        source,
        codec: Codec::Lz4,
        parameters: BTreeMap::new(),
    };
    let parent = host.create_volume(&pool, &new("parent".into(), None), deadline()).await.unwrap();
    let snapshot = host.create_snapshot(&pool, parent, "golden", deadline()).await.unwrap();
    let mut clones = Vec::new();
    for n in 0..MANY {
        let source = SourceSnapshot { pool: Arc::clone(&pool), volume: parent, snapshot };
        let requests = store.requests();
        let clone = new(format!("clone-{n}"), Some(source));
        clones.push(host.create_volume(&pool, &clone, deadline()).await.unwrap());
        let requests = store.requests() - requests;
        assert!(requests <= 40, "{requests} requests for clone {n}");
    }
    // Collecting the parent lists the pins, a page of a thousand at a time.
    let requests = store.requests();
    host.collect(&pool, parent, Limits::default(), deadline()).await.unwrap();
    let requests = store.requests() - requests;
    assert!(requests <= 200, "{requests} requests to collect the parent");
    host.delete_snapshot(&pool, parent, snapshot, deadline()).await.unwrap();
    assert!(host.snapshot_reader(&pool, parent, snapshot, deadline()).await.is_ok(), "clones need it");
    assert!(host.describe(&pool, clones[MANY - 1], deadline()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_16_tib() {
    let blocks: u64 = (16 << 40) / BLOCK_BYTES;
    let site = Site::new(blocks, 8 << 20).await;
    let grant = site.grant().await;
    let volume = site.open(grant).await;
    let mut model = Model::new(Pattern::Uniform, 4096);
    // Far apart, and up to the last block.
    let place = |lba: u64| (lba + 1) * (blocks / 4096) - 1;
    for lba in 0..4096 {
        let data = model.write(lba);
        volume.write(place(lba) * BLOCK_BYTES, data).await.unwrap();
    }
    volume.snapshot("s", "").await.unwrap();
    volume.discard(0, blocks * BLOCK_BYTES / 2).await.unwrap();
    let mut collector = Collector::new(volume.clone());
    for _ in 0..3 {
        collector.round().await.unwrap();
    }
    volume.abandon();
    let requests = site.store.requests();
    let again = site.open(grant).await;
    let requests = site.store.requests() - requests;
    assert!(requests <= 24, "{requests} requests to open it");
    for (lba, version) in model.head.iter().enumerate() {
        let read = again.read(place(lba as u64) * BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
        let held = crate::testing::content(lba as u64, if lba < 2048 { 0 } else { *version });
        assert!(read == held, "block {lba}");
    }
}
