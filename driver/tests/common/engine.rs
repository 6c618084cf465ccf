//! A real volume in a directory, opened as the node process does.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_driver::frontend::Region;
use holdfast_engine::buffer::{Budget, Ring};
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::control::publish;
use holdfast_engine::env::Env;
use holdfast_engine::ids::VolumeId;
use holdfast_engine::lineage::{Lineage, Source};
use holdfast_engine::log::{Decision, GrantMode, Log, Op};
use holdfast_engine::map::{PageCache, VolumePages};
use holdfast_engine::store::{Directory, Listed, Store, StoreError};
use holdfast_engine::volume::{Limits, OpenOptions, Volume};
use tokio::time::Instant;

/// A directory that takes only so many bytes in a second.
#[derive(Debug)]
pub struct SlowStore {
    inner: Directory,
    bytes_per_second: u64,
    /// One put at a time.
    line: tokio::sync::Mutex<()>,
}

#[async_trait]
impl Store for SlowStore {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let _line = self.line.lock().await;
        tokio::time::sleep(Duration::from_secs_f64(body.len() as f64 / self.bytes_per_second as f64)).await;
        self.inner.put_if_absent(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
}

/// Opens the volume in `pool`, which is made of `size_bytes` if it is not there, with its dirty buffer in
/// `region`.
pub async fn open_volume(pool: &Path, size_bytes: u64, region: Arc<Region>) -> Volume {
    std::fs::create_dir_all(pool).unwrap();
    open_volume_on(Arc::new(Directory::new(pool.into())), size_bytes, region).await
}

/// The same in a pool that takes `bytes_per_second`.
pub async fn open_slow_volume(
    pool: &Path,
    bytes_per_second: u64,
    size_bytes: u64,
    region: Arc<Region>,
) -> Volume {
    std::fs::create_dir_all(pool).unwrap();
    let (inner, line) = (Directory::new(pool.into()), tokio::sync::Mutex::default());
    open_volume_on(Arc::new(SlowStore { inner, bytes_per_second, line }), size_bytes, region).await
}

async fn open_volume_on(store: Arc<dyn Store>, size_bytes: u64, region: Arc<Region>) -> Volume {
    let deadline = Instant::now() + Duration::from_secs(60);
    let env = Env::system();
    let log = Log { store, volume: VolumeId([7; 16]), key: None, env };
    let create = |control: &holdfast_engine::log::Control| {
        Ok(if control.last.is_none() {
            Decision::Append(vec![Op::Create { size_bytes }])
        } else {
            Decision::Answer(())
        })
    };
    log.decide(deadline, create).await.unwrap();
    let grant = publish(&log, "node", GrantMode::ReadWrite, deadline).await.unwrap();
    let lineage = Lineage::default();
    lineage.insert(log.volume, Source { store: log.store.clone(), key: None });
    let pages = VolumePages::new(PageCache::new(16 << 20), lineage.clone(), log.volume, log.env.clone());
    let options = OpenOptions {
        grant,
        endpoint: String::new(),
        buffer: Arc::new(Ring::open(region, &Budget::unlimited()).unwrap()),
        cache: Arc::new(MemoryCache::new(64 << 20)),
        pages,
        lineage,
        limits: Limits::default(),
    };
    Volume::open(log, options, deadline).await.unwrap()
}
