//! A pool with volumes, and ways to damage it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::super::{Affected, Damage, Place, Scope, Scrubbed};
use crate::buffer::MemoryBuffer;
use crate::cache::MemoryCache;
use crate::codec::{Codec, UserKey};
use crate::control::{CreateVolume, SourceSnapshot, publish, unpublish};
use crate::env::Env;
use crate::host::{Host, OpenAs};
use crate::ids::{BLOCK_BYTES, SnapshotId, VolumeId};
use crate::log::{GrantMode, Log};
use crate::map::{PageCache, SegmentRef};
use crate::pool::{Access, Pool, PoolKind, PoolSet, layout};
use crate::store::{Memory, Store};
pub(crate) use crate::testing::content;
use crate::volume::{Limits, Volume};

pub const BLOCKS: u64 = 1024;
const NODE: &str = "node";

pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// A pool in memory.
pub struct Scene {
    pub store: Memory,
    pub host: Host,
    pub pool: Arc<Pool>,
    pub limits: Limits,
}

impl Scene {
    pub async fn new(encrypted: bool) -> Self {
        let (env, store) = (Env::system(), Memory::default());
        let key = encrypted.then(|| UserKey::random(&*env.entropy));
        let shared = Arc::new(store.clone());
        let pool = Pool::over("p", "memory", shared, key.as_ref(), Access::ReadWrite, env.clone());
        let pool = pool.await.unwrap();
        let limits = Limits {
            segment_bytes: 256 << 10,
            inline_bytes: 16 << 10,
            grace: Duration::ZERO,
            ..Limits::default()
        };
        Self { host: Self::host_of(&pool), store, pool, limits }
    }

    fn host_of(pool: &Arc<Pool>) -> Host {
        Host {
            pools: Arc::new(PoolSet::of([(PoolKind::Pool, Arc::clone(pool))], pool.env().clone())),
            pages: PageCache::new(1 << 20),
            cache: Arc::new(MemoryCache::new(1 << 20)),
        }
    }

    /// Forgets what was read: damage in the store must not be hidden by a cache.
    pub fn forget(&mut self) {
        self.host = Self::host_of(&self.pool);
    }

    pub async fn create(&self, name: &str, source: Option<(VolumeId, SnapshotId)>) -> VolumeId {
        self.create_of_size(name, BLOCKS * BLOCK_BYTES, source).await
    }

    pub async fn create_of_size(
        &self,
        name: &str,
        size_bytes: u64,
        source: Option<(VolumeId, SnapshotId)>,
    ) -> VolumeId {
        let source = source.map(|(volume, snapshot)| SourceSnapshot {
            pool: Arc::clone(&self.pool),
            volume,
            snapshot,
        });
        let new = CreateVolume {
            name: name.into(),
            size_bytes,
            source,
            codec: Codec::Lz4,
            parameters: BTreeMap::new(),
        };
        self.host.create_volume(&self.pool, &new, deadline()).await.unwrap()
    }

    pub async fn log(&self, volume: VolumeId) -> Log {
        self.host.log(&self.pool, volume, deadline()).await.unwrap()
    }

    pub async fn open(&self, volume: VolumeId) -> Volume {
        let found = self.host.find(&self.pool, volume, deadline()).await.unwrap();
        let grant = publish(&found.log, NODE, GrantMode::ReadWrite, deadline()).await.unwrap();
        let buffer = Arc::new(MemoryBuffer::new(32 << 20));
        let open = OpenAs { grant, endpoint: String::new(), buffer, limits: self.limits.clone() };
        self.host.open(&found, open, deadline()).await.unwrap()
    }

    pub async fn detach(&self, volume: &Volume) {
        volume.close().await.unwrap();
        unpublish(&self.log(volume.id()).await, NODE, deadline()).await.unwrap();
    }

    pub async fn scrub(&mut self, volume: VolumeId) -> Scrubbed {
        self.forget();
        self.host.scrub(&self.pool, volume, Scope::Volume, &|_| {}).await.unwrap()
    }

    /// Where the head's block lies.
    pub async fn segment_of(&self, volume: &Volume, lba: u64) -> SegmentRef {
        let view = volume.frozen().unwrap();
        view.lookup(lba..lba + 1).await.unwrap()[0].location.unwrap().segment
    }

    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = self.store.list(prefix, None, 1 << 20).await.unwrap();
        listed.into_iter().map(|listed| listed.key).collect()
    }

    pub async fn bytes_below(&self, prefix: &str) -> u64 {
        let listed = self.store.list(prefix, None, 1 << 20).await.unwrap();
        listed.into_iter().map(|listed| listed.size_bytes).sum()
    }

    pub async fn delete(&self, key: &str) {
        assert!(self.store.get(key).await.is_ok(), "{key} is there");
        self.store.delete(key).await.unwrap();
    }

    pub async fn change(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut body = self.store.get(key).await.unwrap().to_vec();
        change(&mut body);
        self.store.delete(key).await.unwrap();
        self.store.put_if_absent(key, Bytes::from(body)).await.unwrap();
    }

    /// Turns a bit over.
    pub async fn flip(&self, key: &str, at: usize) {
        self.change(key, |body| body[at] ^= 4).await;
    }

    pub async fn delete_all(&self, prefix: &str) {
        for key in self.keys(prefix).await {
            self.store.delete(&key).await.unwrap();
        }
    }

    pub async fn newest_root(&self, volume: VolumeId) -> String {
        self.keys(&layout::roots(volume)).await.pop().unwrap()
    }
}

/// Writes one version over a range of blocks and flushes.
pub async fn write(volume: &Volume, blocks: Range<u64>, version: u64) {
    let mut data = BytesMut::new();
    blocks.clone().for_each(|lba| data.extend_from_slice(&content(lba, version)));
    volume.write(blocks.start * BLOCK_BYTES, data.freeze()).await.unwrap();
    volume.flush().await.unwrap();
}

pub fn at(place: &Place, blocks: Range<u64>) -> Affected {
    let (offset, len) = (blocks.start * BLOCK_BYTES, (blocks.end - blocks.start) * BLOCK_BYTES);
    Affected { place: place.clone(), offset, len }
}

/// The only damage there is.
pub fn only(scrubbed: &Scrubbed) -> &Damage {
    assert_eq!(scrubbed.damage.len(), 1, "{scrubbed:#?}");
    &scrubbed.damage[0]
}
