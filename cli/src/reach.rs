//! Reaching pools, and the volumes and snapshots that arguments name.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use holdfast_api::HumanDuration;
use holdfast_engine::archive::PointMeta;
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::control::ControlError;
use holdfast_engine::env::Env;
use holdfast_engine::host::Host;
use holdfast_engine::ids::{Handle, PoolId, SnapshotId, VolumeId};
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolEntry, PoolKind, PoolSet, PoolSource};
use tokio::time::Instant;

use crate::error::CliError;
use crate::output::working;

/// Memory for pages of maps.
const PAGES_BYTES: usize = 256 << 20;
/// Memory for chunks.
const CHUNKS_BYTES: u64 = 64 << 20;

/// Where the pools are described.
#[derive(Debug, Args)]
pub struct Reach {
    /// A directory of pool files, NAME.yaml
    #[arg(long, global = true, value_name = "DIR", env = "HOLDFAST_POOLS_DIR")]
    pools_dir: Option<PathBuf>,
    /// A directory of archive targets' files, NAME.yaml
    #[arg(long, global = true, value_name = "DIR", env = "HOLDFAST_TARGETS_DIR")]
    targets_dir: Option<PathBuf>,
    /// A pool file
    #[arg(long = "pool-file", global = true, value_name = "FILE")]
    pool_files: Vec<PathBuf>,
    /// An archive target's file
    #[arg(long = "target-file", global = true, value_name = "FILE")]
    target_files: Vec<PathBuf>,
    /// The only directory below which pools at file:/// URLs may lie; may be given several times
    #[arg(long = "file-root", global = true, value_name = "DIR")]
    file_roots: Vec<PathBuf>,
    /// How long to wait for stores
    #[arg(long, global = true, default_value = "60s")]
    timeout: HumanDuration,
}

/// Pools that were reached.
pub struct Reached {
    /// What the engine needs.
    pub host: Host,
    timeout: HumanDuration,
}

impl Reach {
    fn sources(&self, access: Access) -> Result<Vec<PoolSource>, CliError> {
        let pools = self.pools_dir.iter().chain(&self.pool_files).map(|path| (PoolKind::Pool, path));
        let targets = self.targets_dir.iter().chain(&self.target_files).map(|path| (PoolKind::Target, path));
        let sources: Vec<PoolSource> = pools
            .chain(targets)
            .map(|(kind, path)| {
                if path.exists() {
                    Ok(PoolSource { kind, directory: path.clone(), access })
                } else {
                    Err(CliError::NoSuchFile { path: path.clone() })
                }
            })
            .collect::<Result<_, _>>()?;
        if sources.is_empty() { Err(CliError::NoPools) } else { Ok(sources) }
    }

    /// Opens the pools. With [`Access::ReadWrite`] this makes pools that do not exist yet, and tests their stores.
    pub async fn open(&self, access: Access) -> Result<Reached, CliError> {
        let pools = PoolSet::new(self.sources(access)?, self.file_roots.clone(), Env::system());
        let _working = working("opening pools");
        pools.refresh().await;
        let host = Host {
            pools: Arc::new(pools),
            pages: PageCache::new(PAGES_BYTES),
            cache: Arc::new(MemoryCache::new(CHUNKS_BYTES)),
        };
        Ok(Reached { host, timeout: self.timeout })
    }
}

impl Reached {
    /// When to give up.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.to_std()
    }

    /// All configured pools.
    pub fn entries(&self) -> Vec<PoolEntry> {
        self.host.pools.entries()
    }

    /// The pool that `name` names; the only one that is configured if no name is given. Targets are found too.
    pub fn pool(&self, name: Option<&str>) -> Result<Arc<Pool>, CliError> {
        let Some(name) = name else {
            let entries = self.entries();
            let mut entries = entries.into_iter();
            return match (entries.next(), entries.next()) {
                (Some(only), None) => Ok(only.pool?),
                (None, _) => Err(CliError::NoPools),
                (Some(_), Some(_)) => {
                    Err(CliError::WhichPool { names: self.entries().into_iter().map(|e| e.name).collect() })
                }
            };
        };
        match self.host.pools.named(PoolKind::Pool, name) {
            Ok(pool) => Ok(pool?),
            Err(unknown) => match self.host.pools.named(PoolKind::Target, name) {
                Ok(target) => Ok(target?),
                Err(_) => Err(unknown.into()),
            },
        }
    }

    /// The pool with an id.
    pub fn pool_by_id(&self, id: PoolId) -> Result<Arc<Pool>, CliError> {
        self.host.pools.get(id).ok_or(CliError::PoolNotLoaded { pool: id })
    }

    /// The volume that `text` names: by its handle, or by its name in `pool`.
    pub async fn volume(&self, text: &str, pool: Option<&str>) -> Result<(Arc<Pool>, VolumeId), CliError> {
        if let Ok(Handle { pool, volume, snapshot: None }) = text.parse() {
            return Ok((self.pool_by_id(pool)?, volume));
        }
        let pool = self.pool(pool)?;
        match pool.volume_named(text, self.deadline()).await? {
            Some(volume) => Ok((pool, volume)),
            None => Err(CliError::NoSuchVolume { pool: pool.name().into(), name: text.into() }),
        }
    }

    /// The snapshot that a handle names.
    pub fn snapshot(&self, text: &str) -> Result<(Arc<Pool>, VolumeId, SnapshotId), CliError> {
        match text.parse() {
            Ok(Handle { pool, volume, snapshot: Some(snapshot) }) => {
                Ok((self.pool_by_id(pool)?, volume, snapshot))
            }
            Ok(Handle { snapshot: None, .. }) | Err(_) => Err(CliError::NotASnapshot { text: text.into() }),
        }
    }

    /// Whether a snapshot is an archived point; one that is gone is none.
    pub async fn is_archived_point(
        &self,
        pool: &Pool,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<bool, CliError> {
        match self.host.describe(pool, volume, self.deadline()).await {
            Ok((_, control)) => {
                let found = control.snapshots.get(&snapshot);
                Ok(found.is_some_and(|found| PointMeta::from_note(&found.meta).is_some()))
            }
            Err(ControlError::NoSuchVolume { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
