//! The pools of this process, and how handles are resolved through them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::cache::ChunkCache;
use holdfast_engine::env::Env;
use holdfast_engine::host::{Found, Host};
use holdfast_engine::ids::PoolId;
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolEntry, PoolKind, PoolSet, PoolSource};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::args::PoolArgs;
use crate::handles::VolumeHandle;
use crate::health::{self, ListPools, LoadedPool};
use crate::status;

/// How often the files of the pools are looked at. The kubelet itself takes a minute or two to update them.
const REFRESH: Duration = Duration::from_secs(5);
/// How long a call may go on, less than the 60 s of the sidecars: nothing is put after it.
const CALL_LIMIT: Duration = Duration::from_secs(50);
/// Memory for pages of maps, shared by all volumes.
const PAGE_MEMORY_BYTES: usize = 256 << 20;

/// When a call that begins now must have ended.
pub fn deadline() -> Instant {
    Instant::now() + CALL_LIMIT
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Pools {
    host: Host,
}

impl Pools {
    /// The pools in the files of `args`, none of which is loaded before [`Self::load`]; archives with `archives`
    /// access. Chunks are kept in `cache`.
    pub fn new(args: &PoolArgs, archives: Access, cache: Arc<dyn ChunkCache>, env: Env) -> Self {
        let source =
            |kind, directory: &Path, access| PoolSource { kind, directory: directory.into(), access };
        let sources = vec![
            source(PoolKind::Pool, &args.pools_dir, Access::ReadWrite),
            source(PoolKind::Target, &args.targets_dir, archives),
        ];
        let pools = Arc::new(PoolSet::new(sources, args.file_roots.clone(), env));
        Self { host: Host { pools, pages: PageCache::new(PAGE_MEMORY_BYTES), cache } }
    }

    /// What the engine works with.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Loads what the files say now.
    pub async fn load(&self) {
        self.set().refresh().await;
    }

    /// Tells of each pool that is opened, or that turns out not to open, from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.set().changes()
    }

    fn set(&self) -> &PoolSet {
        &self.host.pools
    }

    /// Keeps the pools as the files say, and `node` registered in those for volumes, until `stop`.
    pub async fn watch(&self, node: Option<&str>, stop: &CancellationToken) {
        let mut registered = BTreeSet::new();
        loop {
            self.set().refresh().await;
            if let Some(node) = node {
                self.register(node, &mut registered).await;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    }

    /// Registers `node` where it is not yet: a volume can be published to it from then on.
    async fn register(&self, node: &str, registered: &mut BTreeSet<PoolId>) {
        for entry in self.set().entries() {
            let Ok(pool) = entry.pool else { continue };
            if entry.kind != PoolKind::Pool || registered.contains(&pool.id()) {
                continue;
            }
            match pool.register_node(node, deadline()).await {
                Ok(()) => {
                    registered.insert(pool.id());
                }
                Err(error) => tracing::warn!(pool = pool.name(), %error, "cannot register this node yet"),
            }
        }
    }

    /// Tells the health endpoint which pools are loaded.
    pub fn list(&self) -> ListPools {
        let set = Arc::clone(&self.host.pools);
        Arc::new(move || {
            let loaded = set.entries().into_iter().filter_map(|entry| {
                let kind = match entry.kind {
                    PoolKind::Pool => health::PoolKind::Pool,
                    PoolKind::Target => health::PoolKind::Target,
                };
                Some(LoadedPool { name: entry.name, id: entry.pool.ok()?.id().to_string(), kind })
            });
            loaded.collect()
        })
    }

    /// All pools by their local names, with those open that can be used now.
    pub fn usable(&self) -> Vec<(String, Option<Arc<Pool>>)> {
        self.set().entries().into_iter().map(|entry| (entry.name, entry.pool.ok())).collect()
    }

    /// The pools for volumes that can be used now.
    pub fn for_volumes(&self) -> Vec<Arc<Pool>> {
        let usable = |entry: PoolEntry| match entry.kind {
            PoolKind::Pool => entry.pool.ok(),
            PoolKind::Target => None,
        };
        self.set().entries().into_iter().filter_map(usable).collect()
    }

    /// The pools, archives too, that can be used now and written to.
    pub fn writable(&self) -> Vec<Arc<Pool>> {
        let pools = self.set().entries().into_iter().filter_map(|entry| entry.pool.ok());
        pools.filter(|pool| pool.access() == Access::ReadWrite).collect()
    }

    /// Whether a pool is an archive.
    pub fn is_archive(&self, id: PoolId) -> bool {
        self.set().entries().iter().any(|entry| {
            entry.kind == PoolKind::Target && entry.pool.as_ref().is_ok_and(|pool| pool.id() == id)
        })
    }

    /// The pool that a StorageClass names; the only one if it names none.
    pub fn named(&self, name: Option<&str>) -> Result<Arc<Pool>, Status> {
        let Some(name) = name else {
            let mut entries = self
                .set()
                .entries()
                .into_iter()
                .filter(|entry| entry.kind == PoolKind::Pool)
                .collect::<Vec<_>>();
            return match (entries.pop(), entries.is_empty()) {
                (Some(only), true) => only.pool.map_err(status::pool),
                (None, _) => Err(Status::unavailable("no pool is configured")),
                (Some(_), false) => Err(Status::invalid_argument(
                    "several pools are configured; the StorageClass must name one: parameters: {pool: NAME}",
                )),
            };
        };
        match self.set().named(PoolKind::Pool, name) {
            Ok(pool) => pool.map_err(status::pool),
            Err(unknown) => Err(Status::invalid_argument(unknown.to_string())),
        }
    }

    /// The pool with an id. `UNAVAILABLE` while it is not loaded: its file may still be on its way.
    pub fn pool(&self, id: PoolId) -> Result<Arc<Pool>, Status> {
        self.set().get(id).ok_or_else(|| {
            Status::unavailable(format!(
                "the pool with id {id} is not loaded here; its file is missing or it cannot be reached"
            ))
        })
    }

    /// A volume. `NOT_FOUND` if it is not described; it may be dead all the same.
    pub async fn find(&self, volume: VolumeHandle, deadline: Instant) -> Result<Found, Status> {
        let pool = self.pool(volume.pool)?;
        self.host.find(&pool, volume.volume, deadline).await.map_err(status::pool)
    }
}
