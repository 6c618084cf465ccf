//! What a process brings to volumes: its pools, and the caches that all volumes share.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use crate::buffer::DirtyBuffer;
use crate::cache::ChunkCache;
use crate::ids::{GrantId, SnapshotId, VolumeId};
use crate::lineage::{Lineage, Source};
use crate::log::{Log, LogError};
use crate::map::{MapView, PageCache, PageSource, VolumePages};
use crate::pool::{Pool, PoolError, PoolSet, VolumeJson};
use crate::snapshot::{self, SnapshotError};
use crate::volume::{BlockReader, Limits, OpenError, OpenOptions, Volume, bytes_in};

/// What a process brings to volumes.
#[derive(Debug, Clone)]
pub struct Host {
    /// The pools it knows.
    pub pools: Arc<PoolSet>,
    /// Pages of maps, near.
    pub pages: Arc<PageCache>,
    /// Chunks, near.
    pub cache: Arc<dyn ChunkCache>,
}

/// A volume as it is found in its pool.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its pool.
    pub pool: Arc<Pool>,
    /// Its description.
    pub json: VolumeJson,
    /// Its log.
    pub log: Log,
}

impl Found {
    /// The volume that `json` describes, in the pool that it was read from.
    pub(crate) fn new(pool: &Arc<Pool>, json: VolumeJson) -> Result<Self, PoolError> {
        let key = pool.key_of(&json)?;
        let log = Log { store: pool.store(), volume: json.id, key, env: pool.env().clone() };
        Ok(Self { pool: Arc::clone(pool), json, log })
    }

    /// Those of its ancestors that live in other pools than its own.
    pub fn foreign(&self) -> BTreeSet<VolumeId> {
        let parents = self.json.parents.iter();
        parents.filter(|parent| parent.pool != self.pool.id()).map(|parent| parent.volume).collect()
    }
}

/// How to open a volume on a host.
#[derive(Debug, Clone)]
pub struct OpenAs {
    /// The grant to open under.
    pub grant: GrantId,
    /// Where the controller reaches this process (`host:port`); empty if nowhere.
    pub endpoint: String,
    /// Where answered writes wait for the log.
    pub buffer: Arc<dyn DirtyBuffer>,
    /// Bounds and rhythms.
    pub limits: Limits,
}

/// Why something could not be opened on a host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The pool failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The volume could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The snapshot could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl Host {
    /// Looks a volume up, by one request. It may be dead, or not made to the end.
    pub async fn find(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<Found, PoolError> {
        Found::new(pool, pool.volume_json(volume, deadline).await?)
    }

    /// The log of a volume.
    pub async fn log(&self, pool: &Pool, volume: VolumeId, deadline: Instant) -> Result<Log, PoolError> {
        let key = pool.data_key(volume, deadline).await?;
        Ok(Log { store: pool.store(), volume, key, env: pool.env().clone() })
    }

    /// How the objects of a volume and of its ancestors are read. An ancestor whose pool is not loaded, or that is
    /// gone, is left out: a volume that has been hydrated does not need it, and a read that does says so.
    pub async fn lineage(&self, found: &Found, deadline: Instant) -> Result<Lineage, PoolError> {
        let Found { json, log, .. } = found;
        let lineage = Lineage::default();
        lineage.insert(json.id, Source { store: Arc::clone(&log.store), key: log.key.clone() });
        for parent in &json.parents {
            let Some(home) = self.pools.get(parent.pool) else { continue };
            match home.source(parent.volume, deadline).await {
                Ok(source) => lineage.insert(parent.volume, source),
                Err(PoolError::NoSuchVolume { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(lineage)
    }

    /// Bytes of blocks that lay in other pools when the volume was made, as the map of its source says. None if it was
    /// made of none, or its source cannot be read any more, as may be once it needs it no longer. Walks that map.
    pub async fn restored_bytes(&self, found: &Found, deadline: Instant) -> Result<Option<u64>, HostError> {
        let Some(parent) = found.json.parents.first() else { return Ok(None) };
        let Some(home) = self.pools.get(parent.pool) else { return Ok(None) };
        let source = match self.find(&home, parent.volume, deadline).await {
            Err(PoolError::NoSuchVolume { .. }) => return Ok(None),
            source => source?,
        };
        let state = match snapshot::find(&source.log, parent.snapshot, deadline).await {
            Err(SnapshotError::Log(LogError::Illegal { .. })) => return Ok(None),
            state => state?,
        };
        let pages = self.page_source(&source.log, &self.lineage(&source, deadline).await?);
        let view = MapView::from_stored(pages, &state.map.map);
        let counted = bytes_in(&view, &found.foreign()).await;
        Ok(Some(counted.map_err(|error| SnapshotError::from(LogError::from(error)))?))
    }

    /// Opens a volume for reading and writing. Its data are compressed as its description says.
    pub async fn open(&self, found: &Found, open: OpenAs, deadline: Instant) -> Result<Volume, HostError> {
        let lineage = self.lineage(found, deadline).await?;
        let OpenAs { grant, endpoint, buffer, limits } = open;
        let options = OpenOptions {
            grant,
            endpoint,
            buffer,
            cache: Arc::clone(&self.cache),
            pages: self.page_source(&found.log, &lineage),
            lineage,
            limits: Limits { codec: found.json.codec, ..limits },
        };
        Ok(Volume::open(found.log.clone(), options, deadline).await?)
    }

    /// A reader of a snapshot's blocks.
    pub async fn snapshot_reader(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        snapshot: SnapshotId,
        deadline: Instant,
    ) -> Result<BlockReader, HostError> {
        let found = self.find(pool, volume, deadline).await?;
        let lineage = self.lineage(&found, deadline).await?;
        let pages = self.page_source(&found.log, &lineage);
        let cache = Arc::clone(&self.cache);
        Ok(snapshot::reader(&found.log, snapshot, pages, lineage, cache, deadline).await?)
    }

    /// The pages of a volume's map.
    pub fn page_source(&self, log: &Log, lineage: &Lineage) -> Arc<dyn PageSource> {
        VolumePages::new(Arc::clone(&self.pages), lineage.clone(), log.volume, log.env.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::buffer::MemoryBuffer;
    use crate::cache::MemoryCache;
    use crate::codec::{Codec, UserKey};
    use crate::control::{CreateVolume, SourceSnapshot, publish};
    use crate::env::Env;
    use crate::log::GrantMode;
    use crate::pool::{Access, PoolKind};
    use crate::store::{Gate, Memory, Store};

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// A process of its own, which reads and writes an encrypted pool through `store`.
    async fn host(store: Arc<dyn Store>) -> (Arc<Pool>, Host) {
        let env = Env::system();
        let key = UserKey::new([7; 32]);
        let pool =
            Pool::over("p", "memory", store, Some(&key), Access::ReadWrite, env.clone()).await.unwrap();
        let pools = Arc::new(PoolSet::of([(PoolKind::Pool, Arc::clone(&pool))], env));
        (pool, Host { pools, pages: PageCache::new(1 << 20), cache: Arc::new(MemoryCache::new(1 << 20)) })
    }

    async fn open(host: &Host, found: &Found) -> Volume {
        let grant = publish(&found.log, "node", GrantMode::ReadWrite, deadline()).await.unwrap();
        let buffer = Arc::new(MemoryBuffer::new(1 << 20));
        let open = OpenAs { grant, endpoint: String::new(), buffer, limits: Limits::default() };
        host.open(found, open, deadline()).await.unwrap()
    }

    #[tokio::test]
    async fn opening_a_clone_reads_its_description_once_and_its_sources_for_the_key() {
        let store = Memory::default();
        let (pool, maker) = host(Arc::new(store.clone())).await;
        let new = |name: &str, source| CreateVolume {
            name: name.into(),
            size_bytes: 1 << 20,
            source,
            codec: Codec::Raw,
            parameters: Default::default(),
        };
        let volume = maker.create_volume(&pool, &new("source", None), deadline()).await.unwrap();
        let source = open(&maker, &maker.find(&pool, volume, deadline()).await.unwrap()).await;
        let snapshot = source.snapshot("s", "").await.unwrap();
        let snapshot = SourceSnapshot { pool: Arc::clone(&pool), volume, snapshot };
        let clone = maker.create_volume(&pool, &new("clone", Some(snapshot)), deadline()).await.unwrap();

        // Who opens it has never seen either.
        let descriptions = Gate::new(&store, usize::MAX, "volume.json");
        let (pool, host) = host(descriptions.clone()).await;
        let found = host.find(&pool, clone, deadline()).await.unwrap();
        assert!(found.foreign().is_empty(), "both are in one pool");
        open(&host, &found).await.close().await.unwrap();
        assert_eq!(descriptions.calls(), 2);
    }
}
