//! Writing through a volume, beside what its store does by itself.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, stream};
use holdfast_engine::buffer::{Budget, MemoryRegion, Ring};
use holdfast_engine::codec::UserKey;
use holdfast_engine::control::publish;
use holdfast_engine::env::Env;
use holdfast_engine::host::OpenAs;
use holdfast_engine::log::GrantMode;
use holdfast_engine::pool::{Access, Pool};
use holdfast_engine::store::{Directory, Listed, Store, StoreError};
use holdfast_engine::volume::{Limits, Volume};
use serde_json::{Value, json};

use crate::scene::{create, deadline, host, noise};

/// Bytes of a full segment.
const SEGMENT_BYTES: usize = 8 << 20;
/// Bytes of the dirty buffer, as the driver has it.
const BUFFER_BYTES: usize = 96 << 20;
/// Puts or writes under way together.
const PARALLEL: usize = 8;
const DEPTH: usize = 32;
const BLOCK: u64 = 4096;
const ROUNDS: usize = 3;

/// A directory that counts what is put.
#[derive(Debug)]
struct Counting {
    inner: Directory,
    puts: AtomicU64,
}

#[async_trait::async_trait]
impl Store for Counting {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.inner.put_if_absent(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
}

/// A pool of its own below `dir`, and what is measured there.
struct Scene {
    store: Arc<Counting>,
    volume: Volume,
    objects: AtomicU64,
    mib: u64,
}

/// Medians of what a volume does and what its store does, in one run.
pub async fn measure(dir: &Path, mib: u64, key: Option<&UserKey>) -> Value {
    let place = dir.join(if key.is_some() { "sealed" } else { "plain" });
    std::fs::create_dir_all(&place).unwrap();
    let store = Arc::new(Counting { inner: Directory::new(place.clone()), puts: AtomicU64::new(0) });
    let url = format!("file://{}", place.display());
    let pool =
        Pool::over("measured", &url, store.clone(), key, Access::ReadWrite, Env::system()).await.unwrap();
    let host = host(&pool, None);
    let id = create(&host, &pool, "written", mib << 20, None).await;
    let found = host.find(&pool, id, deadline()).await.unwrap();
    let grant = publish(&found.log, "node", GrantMode::ReadWrite, deadline()).await.unwrap();
    let buffer =
        Arc::new(Ring::open(Arc::new(MemoryRegion::new(BUFFER_BYTES)), &Budget::unlimited()).unwrap());
    let open = OpenAs { grant, endpoint: String::new(), buffer, limits: Limits::default() };
    let volume = host.open(&found, open, deadline()).await.unwrap();
    let scene = Scene { store, volume, objects: AtomicU64::new(0), mib };

    let (put_us, flush_us) = scene.flushes().await;
    let (mut raw, mut streamed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(scene.raw_puts().await);
        streamed.push(scene.stream().await);
    }
    let (raw, streamed) = (median(raw), median(streamed));
    let (iops, puts) = scene.random().await;
    scene.volume.close().await.unwrap();
    json!({
        "put_p50_us": put_us,
        "write_and_flush_p50_us": flush_us,
        "flush_ratio": flush_us / put_us,
        "raw_put_mib_per_s": raw,
        "sequential_mib_per_s": streamed,
        "sequential_ratio": streamed / raw,
        "random_iops": iops,
        "puts_per_8_mib": puts,
    })
}

impl Scene {
    async fn put(&self, body: Bytes) {
        let key = format!("measure/{}", self.objects.fetch_add(1, Ordering::Relaxed));
        self.store.inner.put_if_absent(&key, body).await.unwrap();
    }

    /// A put of a block, and a write of a block with its flush, in turn.
    async fn flushes(&self) -> (f64, f64) {
        let body = noise(1, BLOCK as usize);
        let (mut puts, mut flushes) = (Vec::new(), Vec::new());
        for round in 0..400 {
            let begun = Instant::now();
            self.put(body.clone()).await;
            puts.push(begun.elapsed().as_secs_f64() * 1e6);
            let begun = Instant::now();
            self.volume.write(scattered(round, self.mib), body.clone()).await.unwrap();
            self.volume.flush().await.unwrap();
            flushes.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        (median(puts), median(flushes))
    }

    /// Bytes a second of puts of whole segments.
    async fn raw_puts(&self) -> f64 {
        let body = noise(2, SEGMENT_BYTES);
        let begun = Instant::now();
        stream::iter(0..self.mib / 8).for_each_concurrent(PARALLEL, |_| self.put(body.clone())).await;
        self.mib as f64 / begun.elapsed().as_secs_f64()
    }

    /// The same bytes written in order, a MiB at a time, and flushed.
    async fn stream(&self) -> f64 {
        let data = noise(3, 1 << 20);
        let begun = Instant::now();
        for at in 0..self.mib {
            self.volume.write(at << 20, data.clone()).await.unwrap();
        }
        self.volume.flush().await.unwrap();
        self.mib as f64 / begun.elapsed().as_secs_f64()
    }

    /// Blocks written at random, half of the volume: how many a second, and how many puts for 8 MiB.
    async fn random(&self) -> (f64, f64) {
        let block = noise(4, BLOCK as usize);
        let blocks = (self.mib << 20) / BLOCK / 2;
        let before = self.store.puts.load(Ordering::Relaxed);
        let begun = Instant::now();
        stream::iter(0..blocks)
            .for_each_concurrent(DEPTH, |number| {
                let block = block.clone();
                async move { self.volume.write(scattered(number, self.mib), block).await.unwrap() }
            })
            .await;
        self.volume.flush().await.unwrap();
        let seconds = begun.elapsed().as_secs_f64();
        let puts = self.store.puts.load(Ordering::Relaxed) - before;
        (blocks as f64 / seconds, puts as f64 / (blocks * BLOCK) as f64 * SEGMENT_BYTES as f64)
    }
}

/// Byte offsets that visit each block once, in no order.
fn scattered(number: u64, mib: u64) -> u64 {
    let blocks = (mib << 20) / BLOCK;
    // Odd, so it visits every block of a power of two.
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15 >> 20 | 1) % blocks * BLOCK
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
