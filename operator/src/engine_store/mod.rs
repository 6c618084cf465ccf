//! The engine's view of pools: what the operator knows of them.
//!
//! Pools stay open between questions, so a store is tested once, when its target is first seen or its file changes.
//!
//! # Guarantees
//! - Nothing is written but a new pool's description and the self-test's own objects.
//! - A volume is said to read from no archive only on the strength of its log, read to the end.
//!
//! # Assumptions
//! A restored volume's own snapshots, taken before all was copied back, may need the archive longer than its head;
//! they are not looked at. The pins that they hold keep the archive's objects, so naming the target again gives
//! them back.

mod errors;
mod hydration;
mod size;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_api::ArchiveSource;
use holdfast_api::archived::VolumeMode;
use holdfast_api::jiff::Timestamp;
use holdfast_engine::archive;
use holdfast_engine::cache::{ChunkCache, MemoryCache};
use holdfast_engine::control::ControlError;
use holdfast_engine::env::Env;
use holdfast_engine::host::Host;
use holdfast_engine::ids::Handle;
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolKind, PoolSet};
use tokio::time::Instant;

use crate::engine_store::size::Size;
use crate::pool_file::PoolFile;
use crate::store::{ArchiveStore, ArchivedPoint, Hydration, PoolSummary, StoreError};

/// The longest that one question may take.
const QUESTION: Duration = Duration::from_secs(55);
/// Pools kept open. More only cost opening one again.
const MAX_OPEN: usize = 64;
/// Bytes of maps kept near.
const PAGE_CACHE_BYTES: usize = 64 << 20;

/// Pools by their files and by what was asked of them.
type OpenPools = BTreeMap<(String, bool), Arc<Pool>>;

/// The engine, asked about pools.
pub struct EngineStore {
    env: Env,
    /// Where `file:` pools may lie; none where no directory of the nodes is mounted.
    directory: Option<PathBuf>,
    pages: Arc<PageCache>,
    chunks: Arc<dyn ChunkCache>,
    open: Mutex<OpenPools>,
    /// By the pools' ids.
    sizes: Mutex<BTreeMap<String, Size>>,
}

impl EngineStore {
    /// An engine that may look at stores, and at directories below `directory`.
    pub fn new(env: Env, directory: Option<PathBuf>) -> Self {
        Self {
            env,
            directory,
            pages: PageCache::new(PAGE_CACHE_BYTES),
            // Only maps are read, never data.
            chunks: Arc::new(MemoryCache::new(0)),
            open: Mutex::default(),
            sizes: Mutex::default(),
        }
    }

    async fn open(&self, file: &PoolFile, access: Access) -> Result<Arc<Pool>, StoreError> {
        if self.directory.is_none() && file.config().url.starts_with("file:") {
            let message =
                "no directory of the nodes is set aside for file: pools (poolDirectory of the chart)";
            return Err(StoreError::Invalid(message.to_owned()));
        }
        let key = (file.text().to_owned(), access == Access::ReadWrite);
        if let Some(pool) = self.pools().get(&key) {
            return Ok(Arc::clone(pool));
        }
        let roots: Vec<PathBuf> = self.directory.iter().cloned().collect();
        let pool = Pool::open(file.name(), file.config(), &roots, access, self.env.clone()).await?;
        let mut open = self.pools();
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(key, Arc::clone(&pool));
        Ok(pool)
    }

    fn pools(&self) -> std::sync::MutexGuard<'_, OpenPools> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that the pool's objects take, measured now or not long ago.
    async fn size(&self, pool: &Pool) -> Result<Option<u64>, StoreError> {
        let id = pool.id().to_string();
        let last = self.sizes().get(&id).copied();
        if let Some(last) = last.filter(|size| !size.is_due(Instant::now())) {
            return Ok(last.bytes);
        }
        let size = size::measure(pool).await?;
        self.sizes().insert(id, size);
        Ok(size.bytes)
    }

    fn sizes(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Size>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self, pools: Vec<(PoolKind, Arc<Pool>)>) -> Host {
        Host {
            pools: Arc::new(PoolSet::of(pools, self.env.clone())),
            pages: Arc::clone(&self.pages),
            cache: Arc::clone(&self.chunks),
        }
    }
}

/// A point of the engine as the operator knows it. One whose note says nothing sensible is left out, and logged.
fn point(found: archive::Point) -> Option<ArchivedPoint> {
    let time = |text: &str| {
        let time: Result<Timestamp, _> = text.parse();
        time.inspect_err(|error| tracing::warn!(point = found.name, %error, "a time in its note")).ok()
    };
    let point_in_time = time(&found.meta.point_in_time)?;
    let expires_at = match &found.meta.expires_at {
        Some(text) => Some(time(text)?),
        None => None,
    };
    let source = found.meta.source;
    Some(ArchivedPoint {
        name: found.name,
        handle: found.handle.to_string(),
        point_in_time,
        source: ArchiveSource {
            cluster_uid: source.cluster_uid,
            namespace: source.namespace,
            claim_name: source.claim_name,
            volume_mode: VolumeMode::named(&source.volume_mode),
            fs_type: source.fs_type,
        },
        restore_size_bytes: found.size_bytes,
        changed_bytes: Some(found.meta.changed_bytes),
        expires_at,
        newest: found.newest,
    })
}

#[async_trait]
impl ArchiveStore for EngineStore {
    async fn probe(&self, file: &PoolFile) -> Result<PoolSummary, StoreError> {
        let pool = self.open(file, Access::ReadWrite).await?;
        // A pool that was open may have become unreachable since.
        pool.list_snapshot_names(None, 1, Instant::now() + QUESTION).await?;
        Ok(PoolSummary { pool_id: pool.id().to_string(), stored_bytes: self.size(&pool).await? })
    }

    async fn points(&self, file: &PoolFile) -> Result<Vec<ArchivedPoint>, StoreError> {
        let pool = self.open(file, Access::ReadWrite).await?;
        let host = self.host(vec![(PoolKind::Target, Arc::clone(&pool))]);
        let found = archive::list_points(&host, &pool).await?;
        Ok(found.into_iter().filter_map(point).collect())
    }

    async fn point(&self, file: &PoolFile, name: &str) -> Result<Option<ArchivedPoint>, StoreError> {
        let pool = self.open(file, Access::ReadWrite).await?;
        // Most questions come before the point is there, and this answers them with one request.
        if pool.snapshot_named(name, Instant::now() + QUESTION).await?.is_none() {
            return Ok(None);
        }
        Ok(self.points(file).await?.into_iter().find(|point| point.name == name))
    }

    async fn hydration(
        &self,
        pools: &[PoolFile],
        target: &PoolFile,
        volume_handle: &str,
        total_bytes: u64,
    ) -> Result<Option<Hydration>, StoreError> {
        let deadline = Instant::now() + QUESTION;
        let handle: Handle =
            volume_handle.parse().map_err(|_| StoreError::Invalid(format!("no handle: {volume_handle}")))?;
        let mut loaded = vec![(PoolKind::Target, self.open(target, Access::ReadWrite).await?)];
        let mut home = None;
        for file in pools {
            let pool = self.open(file, Access::ReadOnly).await?;
            if pool.id() == handle.pool {
                home = Some(Arc::clone(&pool));
            }
            loaded.push((PoolKind::Pool, pool));
        }
        let home =
            home.ok_or_else(|| StoreError::NotFound(format!("pool {} is not configured", handle.pool)))?;
        let host = self.host(loaded);
        let found = host.find(&home, handle.volume, deadline).await?;
        let foreign = found.foreign();
        if foreign.is_empty() {
            return Ok(None);
        }
        let lineage = host.lineage(&found, deadline).await?;
        let pages = host.page_source(&found.log, &lineage);
        let left_bytes = hydration::left_bytes(&found.log, pages, &foreign, deadline).await?;
        let total_bytes = match total_bytes {
            0 => {
                let restored = host.restored_bytes(&found, deadline).await;
                restored.map_err(ControlError::from)?.unwrap_or_default()
            }
            known => known,
        };
        // Whatever was recorded: what the map names is still needed.
        let total_bytes = total_bytes.max(left_bytes);
        let hydrated_bytes = total_bytes - left_bytes;
        Ok((total_bytes > 0).then_some(Hydration { hydrated_bytes, total_bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &std::path::Path) -> PoolFile {
        PoolFile::build("offsite", &format!("file://{}", directory.display()), None, None)
            .expect("a pool file")
    }

    #[tokio::test]
    async fn a_new_target_is_made_tested_and_empty() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = EngineStore::new(Env::system(), Some(directory.path().to_owned()));
        let file = file(&directory.path().join("archive"));
        let first = store.probe(&file).await.expect("a pool");
        assert_eq!(store.probe(&file).await.expect("the same pool"), first);
        let again = EngineStore::new(Env::system(), Some(directory.path().to_owned()));
        assert_eq!(again.probe(&file).await.expect("the pool that is there"), first);
        assert_eq!(store.points(&file).await.expect("a list"), Vec::new());
        assert_eq!(store.point(&file, "offsite-1").await.expect("an answer"), None);
    }

    #[tokio::test]
    async fn a_directory_that_is_not_set_aside_is_refused() {
        let (allowed, other) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        let store = EngineStore::new(Env::system(), Some(allowed.path().to_owned()));
        let refused = store.probe(&file(other.path())).await.expect_err("outside");
        assert_eq!(refused.reason(), "InvalidConfiguration");
        let none = EngineStore::new(Env::system(), None);
        let refused = none.probe(&file(other.path())).await.expect_err("no directory at all");
        assert!(refused.to_string().contains("poolDirectory"), "{refused}");
    }

    #[tokio::test]
    async fn a_volume_whose_pool_is_not_configured_is_no_proof_that_the_archive_can_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = EngineStore::new(Env::system(), Some(directory.path().to_owned()));
        let target = file(&directory.path().join("archive"));
        let handle = format!("{}-{}", "1".repeat(32), "2".repeat(32));
        let unknown = store.hydration(&[], &target, &handle, 0).await.expect_err("not known");
        assert!(matches!(unknown, StoreError::NotFound(_)), "{unknown}");
        let rubbish = store.hydration(&[], &target, "rubbish", 0).await.expect_err("no handle");
        assert!(matches!(rubbish, StoreError::Invalid(_)), "{rubbish}");
    }
}
