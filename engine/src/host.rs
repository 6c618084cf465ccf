//! What a process brings to volumes: its pools, and the caches that all volumes share.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use crate::buffer::DirtyBuffer;
use crate::cache::ChunkCache;
use crate::ids::{GrantId, SnapshotId, VolumeId};
use crate::lineage::Lineage;
use crate::log::{Log, LogError};
use crate::map::{MapView, PageCache, PageSource, VolumePages};
use crate::pool::{Parent, Pool, PoolError, PoolSet};
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
    /// The log of a volume.
    pub async fn log(&self, pool: &Pool, volume: VolumeId, deadline: Instant) -> Result<Log, PoolError> {
        let key = pool.data_key(volume, deadline).await?;
        Ok(Log { store: pool.store(), volume, key, env: pool.env().clone() })
    }

    /// How the objects of a volume and of its ancestors are read. An ancestor whose pool is not loaded, or that is
    /// gone, is left out: a volume that has been hydrated does not need it, and a read that does says so.
    pub async fn lineage(
        &self,
        pool: &Pool,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<Lineage, PoolError> {
        let lineage = Lineage::default();
        lineage.insert(volume, pool.source(volume, deadline).await?);
        for parent in pool.volume_json(volume, deadline).await?.parents {
            let Some(home) = self.pools.get(parent.pool) else { continue };
            match home.source(parent.volume, deadline).await {
                Ok(source) => lineage.insert(parent.volume, source),
                Err(PoolError::NoSuchVolume { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(lineage)
    }

    /// The ancestors of a volume that live in other pools than its own.
    pub async fn foreign(
        &self,
        pool: &Pool,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<BTreeSet<VolumeId>, PoolError> {
        Ok(foreign_of(pool, &pool.volume_json(volume, deadline).await?.parents))
    }

    /// Bytes of blocks that lay in other pools when the volume was made, as the map of its source says. None if it was
    /// made of none, or its source cannot be read any more, as may be once it needs it no longer. Walks that map.
    pub async fn restored_bytes(
        &self,
        pool: &Pool,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<Option<u64>, HostError> {
        let parents = pool.volume_json(volume, deadline).await?.parents;
        let Some(source) = parents.first() else { return Ok(None) };
        let Some(home) = self.pools.get(source.pool) else { return Ok(None) };
        let log = match self.log(&home, source.volume, deadline).await {
            Err(PoolError::NoSuchVolume { .. }) => return Ok(None),
            log => log?,
        };
        let state = match snapshot::find(&log, source.snapshot, deadline).await {
            Err(SnapshotError::Log(LogError::Illegal { .. })) => return Ok(None),
            state => state?,
        };
        let pages = self.page_source(&log, &self.lineage(&home, source.volume, deadline).await?);
        let view = MapView::from_stored(pages, &state.map.map);
        let counted = bytes_in(&view, &foreign_of(pool, &parents)).await;
        Ok(Some(counted.map_err(|error| SnapshotError::from(LogError::from(error)))?))
    }

    /// Opens a volume for reading and writing. Its data are compressed as its description says.
    pub async fn open(
        &self,
        pool: &Pool,
        volume: VolumeId,
        open: OpenAs,
        deadline: Instant,
    ) -> Result<Volume, HostError> {
        let log = self.log(pool, volume, deadline).await?;
        let lineage = self.lineage(pool, volume, deadline).await?;
        let codec = pool.volume_json(volume, deadline).await?.codec;
        let OpenAs { grant, endpoint, buffer, limits } = open;
        let options = OpenOptions {
            grant,
            endpoint,
            buffer,
            cache: Arc::clone(&self.cache),
            pages: self.page_source(&log, &lineage),
            lineage,
            limits: Limits { codec, ..limits },
        };
        Ok(Volume::open(log, options, deadline).await?)
    }

    /// A reader of a snapshot's blocks.
    pub async fn snapshot_reader(
        &self,
        pool: &Pool,
        volume: VolumeId,
        snapshot: SnapshotId,
        deadline: Instant,
    ) -> Result<BlockReader, HostError> {
        let log = self.log(pool, volume, deadline).await?;
        let lineage = self.lineage(pool, volume, deadline).await?;
        let pages = self.page_source(&log, &lineage);
        let cache = Arc::clone(&self.cache);
        Ok(snapshot::reader(&log, snapshot, pages, lineage, cache, deadline).await?)
    }

    /// The pages of a volume's map.
    pub fn page_source(&self, log: &Log, lineage: &Lineage) -> Arc<dyn PageSource> {
        VolumePages::new(Arc::clone(&self.pages), lineage.clone(), log.volume, log.env.clone())
    }
}

/// Those of a volume's ancestors that live in other pools than its own.
fn foreign_of(own: &Pool, parents: &[Parent]) -> BTreeSet<VolumeId> {
    parents.iter().filter(|parent| parent.pool != own.id()).map(|parent| parent.volume).collect()
}
