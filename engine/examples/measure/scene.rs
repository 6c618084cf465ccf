//! Pools in directories, and volumes in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_engine::buffer::MemoryBuffer;
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::codec::{Codec, UserKey};
use holdfast_engine::control::{CreateVolume, SourceSnapshot, publish};
use holdfast_engine::env::Env;
use holdfast_engine::host::{Host, OpenAs};
use holdfast_engine::ids::{GrantId, VolumeId};
use holdfast_engine::log::GrantMode;
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolKind, PoolSet};
use holdfast_engine::store::Directory;
use holdfast_engine::volume::{Limits, Volume};
use tokio::time::Instant;

/// How long one step may take.
pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

/// A pool in the directory `name` below `dir`.
pub async fn pool(dir: &Path, name: &str, key: Option<&UserKey>) -> Arc<Pool> {
    let place = dir.join(name);
    std::fs::create_dir_all(&place).unwrap();
    let url = format!("file://{}", place.display());
    let store = Arc::new(Directory::new(place));
    Pool::over(name, &url, store, key, Access::ReadWrite, Env::system()).await.unwrap()
}

/// A process that knows these pools, with nothing in its caches.
pub fn host(pool: &Arc<Pool>, target: Option<&Arc<Pool>>) -> Host {
    let target = target.map(|target| (PoolKind::Target, Arc::clone(target)));
    let pools = [(PoolKind::Pool, Arc::clone(pool))].into_iter().chain(target);
    Host {
        pools: Arc::new(PoolSet::of(pools, Env::system())),
        pages: PageCache::new(1 << 30),
        cache: Arc::new(MemoryCache::new(64 << 20)),
    }
}

/// Creates a volume.
pub async fn create(
    host: &Host,
    pool: &Arc<Pool>,
    name: &str,
    size_bytes: u64,
    source: Option<SourceSnapshot>,
) -> VolumeId {
    let new = CreateVolume {
        name: name.into(),
        size_bytes,
        source,
        codec: Codec::Lz4,
        parameters: BTreeMap::new(),
    };
    host.create_volume(pool, &new, deadline()).await.unwrap()
}

/// Attaches a volume.
pub async fn grant(host: &Host, pool: &Arc<Pool>, volume: VolumeId) -> GrantId {
    let log = host.log(pool, volume, deadline()).await.unwrap();
    publish(&log, "node", GrantMode::ReadWrite, deadline()).await.unwrap()
}

/// Opens a volume under a grant.
pub async fn open(host: &Host, pool: &Arc<Pool>, volume: VolumeId, grant: GrantId) -> Volume {
    let buffer = Arc::new(MemoryBuffer::new(64 << 20));
    let open = OpenAs { grant, endpoint: String::new(), buffer, limits: Limits::default() };
    let found = host.find(pool, volume, deadline()).await.unwrap();
    host.open(&found, open, deadline()).await.unwrap()
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}
