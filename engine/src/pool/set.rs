//! The pools that a process knows: a YAML file each, `NAME.yaml`, in directories that are watched.
//!
//! # Guarantees
//! - A file that is broken, or a store that is unreachable, concerns its own pool only. A pool that was open stays
//!   usable by its id, for the volumes it has; by its name the error is shown.
//! - New credentials reach all that is open: the pool stays the same object.
//! - Nothing blocks on a store while a pool is looked up.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Access, Pool, PoolError};
use crate::env::Env;
use crate::ids::PoolId;
use crate::store::{ConfigError, PoolConfig, UnfitStore};

/// What a pool is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolKind {
    /// Volumes: a StorageClass may name it.
    Pool,
    /// Archives.
    Target,
}

/// A directory of pool files.
#[derive(Debug, Clone)]
pub struct PoolSource {
    /// What its pools are used for.
    pub kind: PoolKind,
    /// The directory, which need not exist; or one pool file alone.
    pub directory: PathBuf,
    /// What the credentials in it allow.
    pub access: Access,
}

/// No pool has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no pool named {name:?} is configured; configured are: {}", if known.is_empty() { "none".into() } else { known.join(", ") })]
pub struct UnknownPool {
    /// The name.
    pub name: String,
    /// The names that there are.
    pub known: Vec<String>,
}

/// A configured pool.
#[derive(Debug, Clone)]
pub struct PoolEntry {
    /// What it is used for.
    pub kind: PoolKind,
    /// Its local name.
    pub name: String,
    /// The pool, or why it cannot be used.
    pub pool: Result<Arc<Pool>, PoolError>,
}

/// What is known of a file.
#[derive(Debug, Clone)]
struct Slot {
    digest: Vec<u8>,
    /// The pool as it was last open.
    open: Option<Arc<Pool>>,
    /// Why its present file does not open it.
    error: Option<PoolError>,
}

impl Slot {
    fn pool(&self) -> Option<Result<Arc<Pool>, PoolError>> {
        self.error.clone().map(Err).or_else(|| self.open.clone().map(Ok))
    }

    /// Whether there is anything to do for a file with this content.
    fn is_settled(&self, digest: &[u8]) -> bool {
        let for_good = match &self.error {
            // A directory may come to be there, or a disk be mended.
            Some(PoolError::Config { reason: ConfigError::Directory { .. }, .. }) => false,
            None
            | Some(PoolError::Config { .. } | PoolError::Unfit { reason: UnfitStore::Breaks { .. }, .. }) => {
                true
            }
            Some(_) => false,
        };
        for_good && self.digest == digest
    }
}

type Slots = BTreeMap<(PoolKind, String), Slot>;

/// The pools.
#[derive(Debug)]
pub struct PoolSet {
    sources: Vec<PoolSource>,
    roots: Vec<PathBuf>,
    env: Env,
    slots: RwLock<Slots>,
    refreshing: tokio::sync::Mutex<()>,
    changes: watch::Sender<()>,
}

impl PoolSet {
    /// The pools of `sources`, none of which is loaded before [`Self::refresh`]. Pools in directories must lie below
    /// one of `roots`; no roots allow every directory.
    pub fn new(sources: Vec<PoolSource>, roots: Vec<PathBuf>, env: Env) -> Self {
        Self::with(sources, roots, env, Slots::new())
    }

    /// A set of pools that are open already.
    pub fn of(pools: impl IntoIterator<Item = (PoolKind, Arc<Pool>)>, env: Env) -> Self {
        let slot = |(kind, pool): (PoolKind, Arc<Pool>)| {
            let name = pool.name().to_owned();
            ((kind, name), Slot { digest: Vec::new(), open: Some(pool), error: None })
        };
        Self::with(Vec::new(), Vec::new(), env, pools.into_iter().map(slot).collect())
    }

    fn with(sources: Vec<PoolSource>, roots: Vec<PathBuf>, env: Env, slots: Slots) -> Self {
        let (slots, refreshing) = (RwLock::new(slots), tokio::sync::Mutex::default());
        Self { sources, roots, env, slots, refreshing, changes: watch::Sender::default() }
    }

    /// Tells of each pool that is opened, or that turns out not to open, from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The pool with this id.
    pub fn get(&self, id: PoolId) -> Option<Arc<Pool>> {
        self.slots().values().filter_map(|slot| slot.open.as_ref()).find(|pool| pool.id() == id).cloned()
    }

    /// The pool with this local name, or why it cannot be used.
    pub fn named(&self, kind: PoolKind, name: &str) -> Result<Result<Arc<Pool>, PoolError>, UnknownPool> {
        let slots = self.slots();
        slots.get(&(kind, name.to_owned())).and_then(Slot::pool).ok_or_else(|| UnknownPool {
            name: name.to_owned(),
            known: slots.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect(),
        })
    }

    /// All configured pools, by kind and name.
    pub fn entries(&self) -> Vec<PoolEntry> {
        let slots = self.slots();
        let entry = |((kind, name), slot): (&(PoolKind, String), &Slot)| {
            Some(PoolEntry { kind: *kind, name: name.clone(), pool: slot.pool()? })
        };
        slots.iter().filter_map(entry).collect()
    }

    /// Reads the directories, and opens what is new, changed, or was out of reach. Each pool can be used as soon as it
    /// is open, however long others take.
    pub async fn refresh(&self) {
        let _one_at_a_time = self.refreshing.lock().await;
        if self.sources.is_empty() {
            return;
        }
        let mut found: BTreeMap<(PoolKind, String), (Access, Result<String, String>)> = BTreeMap::new();
        for source in &self.sources {
            match read_files(&source.directory) {
                Ok(files) => {
                    let files = files.into_iter();
                    found.extend(files.map(|(name, text)| ((source.kind, name), (source.access, text))));
                }
                // What is known stays: a directory that cannot be read says nothing about its files.
                Err(error) => {
                    tracing::warn!(directory = %source.directory.display(), %error, "cannot list pool files");
                    return;
                }
            }
        }
        let known = self.slots().clone();
        let mut pending: FuturesUnordered<_> = found
            .iter()
            .filter_map(|(key, (access, text))| {
                let digest = digest(&SHA256, text.as_ref().unwrap_or_else(|error| error).as_bytes());
                let before = known.get(key);
                if before.is_some_and(|slot| slot.is_settled(digest.as_ref())) {
                    return None;
                }
                let before = before.and_then(|slot| slot.open.clone());
                Some(self.load(key, digest.as_ref().to_vec(), *access, text, before))
            })
            .collect();
        self.slots_mut().retain(|key, _| found.contains_key(key));
        while let Some((key, slot)) = pending.next().await {
            self.slots_mut().insert(key, slot);
            self.changes.send_replace(());
        }
    }

    /// Refreshes `every` so often, until `stop` is cancelled.
    pub async fn watch(&self, every: Duration, stop: &CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => self.refresh().await,
            }
        }
    }

    async fn load(
        &self,
        key: &(PoolKind, String),
        digest: Vec<u8>,
        access: Access,
        text: &Result<String, String>,
        before: Option<Arc<Pool>>,
    ) -> ((PoolKind, String), Slot) {
        let name = &key.1;
        let opened = match text {
            Err(reason) => Err(PoolError::Unreadable { pool: name.clone(), reason: reason.clone() }),
            Ok(text) => match PoolConfig::parse(text) {
                Err(reason) => Err(PoolError::Config { pool: name.clone(), reason }),
                Ok(config) => Pool::open(name, &config, &self.roots, access, self.env.clone()).await,
            },
        };
        let slot = match opened {
            Ok(new) => {
                tracing::info!(pool = %name, id = %new.id(), "pool is open");
                let open = match before {
                    Some(before) if before.id() == new.id() && before.access() == access => {
                        before.reconnect(&new);
                        before
                    }
                    Some(_) | None => new,
                };
                Slot { digest, open: Some(open), error: None }
            }
            Err(error) => {
                tracing::warn!(pool = %name, %error, "pool cannot be used");
                Slot { digest, open: before, error: Some(error) }
            }
        };
        (key.clone(), slot)
    }

    fn slots_mut(&self) -> RwLockWriteGuard<'_, Slots> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> RwLockReadGuard<'_, Slots> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool files of a directory by the pools' names: each one's text, or why it cannot be read.
fn read_files(directory: &Path) -> io::Result<BTreeMap<String, Result<String, String>>> {
    let paths: Vec<PathBuf> = match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => vec![directory.to_owned()],
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut files = BTreeMap::new();
    for path in paths {
        let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        // A projected Secret keeps its own bookkeeping in names that begin with dots.
        if path.extension() == Some(OsStr::new("yaml")) && !name.is_empty() && !name.starts_with('.') {
            let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
            files.insert(name.to_owned(), text);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        files: tempfile::TempDir,
        stores: tempfile::TempDir,
        set: PoolSet,
    }

    impl Fixture {
        fn new() -> Self {
            let (files, stores) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let directory = files.path().to_owned();
            let source = PoolSource { kind: PoolKind::Pool, directory, access: Access::ReadWrite };
            let set = PoolSet::new(vec![source], vec![stores.path().canonicalize().unwrap()], Env::system());
            Self { files, stores, set }
        }

        /// Writes the file of pool `name`, in the directory `store`.
        fn write(&self, name: &str, store: &str, more: &str) {
            let path = self.stores.path().join(store);
            std::fs::create_dir_all(&path).unwrap();
            let text = format!("url: file://{}\n{more}", path.display());
            std::fs::write(self.files.path().join(format!("{name}.yaml")), text).unwrap();
        }

        fn named(&self, name: &str) -> Result<Arc<Pool>, PoolError> {
            self.set.named(PoolKind::Pool, name).unwrap()
        }
    }

    #[tokio::test]
    async fn files_come_change_and_go() {
        let fixture = Fixture::new();
        fixture.set.refresh().await;
        assert!(fixture.set.entries().is_empty());

        fixture.write("fast", "a", "");
        fixture.write("slow", "b", "");
        std::fs::write(fixture.files.path().join("notes.txt"), "no pool").unwrap();
        fixture.set.refresh().await;
        let names: Vec<_> = fixture.set.entries().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["fast", "slow"]);
        let fast = fixture.named("fast").unwrap();
        assert_eq!(fixture.set.get(fast.id()).unwrap().name(), "fast");

        fixture.write("fast", "a", "# a comment changes nothing\n");
        fixture.set.refresh().await;
        assert!(Arc::ptr_eq(&fixture.named("fast").unwrap(), &fast), "open volumes would lose their pool");

        fixture.write("fast", "b", "");
        fixture.set.refresh().await;
        assert_eq!(fixture.named("fast").unwrap().id(), fixture.named("slow").unwrap().id());
        assert!(fixture.set.get(fast.id()).is_none());

        std::fs::remove_file(fixture.files.path().join("fast.yaml")).unwrap();
        fixture.set.refresh().await;
        let unknown = fixture.set.named(PoolKind::Pool, "fast").unwrap_err();
        assert_eq!(unknown.known, ["slow"]);
    }

    #[tokio::test]
    async fn a_file_alone_is_a_set_of_one() {
        let fixture = Fixture::new();
        fixture.write("one", "a", "");
        fixture.write("other", "b", "");
        let directory = fixture.files.path().join("one.yaml");
        let source = PoolSource { kind: PoolKind::Target, directory, access: Access::ReadWrite };
        let set = PoolSet::new(vec![source], Vec::new(), Env::system());
        set.refresh().await;
        let names: Vec<_> = set.entries().into_iter().map(|entry| (entry.kind, entry.name)).collect();
        assert_eq!(names, [(PoolKind::Target, "one".to_owned())]);
    }

    #[tokio::test]
    async fn a_broken_file_concerns_its_own_pool_only() {
        let fixture = Fixture::new();
        fixture.write("good", "a", "");
        fixture.write("bad", "b", "colour: red\n");
        fixture.write("outside", "../..", "");
        fixture.set.refresh().await;
        assert!(fixture.named("good").is_ok());
        for name in ["bad", "outside"] {
            let error = fixture.named(name).unwrap_err();
            assert!(matches!(&error, PoolError::Config { pool, .. } if pool == name), "{error}");
        }
    }

    #[tokio::test]
    async fn a_pool_whose_file_breaks_still_serves_its_volumes() {
        let fixture = Fixture::new();
        fixture.write("p", "a", "");
        fixture.set.refresh().await;
        let id = fixture.named("p").unwrap().id();
        fixture.write("p", "a", "encryption: {key: short}\n");
        fixture.set.refresh().await;
        assert!(fixture.named("p").is_err());
        assert_eq!(fixture.set.get(id).unwrap().id(), id);
        fixture.write("p", "a", "");
        fixture.set.refresh().await;
        assert_eq!(fixture.named("p").unwrap().id(), id);
    }

    #[tokio::test]
    async fn a_store_that_hangs_holds_up_its_own_pool_only() {
        let fixture = Fixture::new();
        fixture.write("good", "a", "");
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = silent.local_addr().unwrap();
        let credentials = "credentials: {accessKeyId: a, secretAccessKey: b}";
        let text = format!("url: s3://bucket\nendpoint: http://{endpoint}\nallowHttp: true\n{credentials}\n");
        std::fs::write(fixture.files.path().join("silent.yaml"), text).unwrap();
        let mut changes = fixture.set.changes();
        tokio::select! {
            biased;
            () = fixture.set.refresh() => panic!("nobody answers for the other store"),
            changed = changes.changed() => changed.unwrap(),
        }
        assert!(fixture.named("good").is_ok());
        assert_eq!(fixture.set.entries().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn watching_finds_new_files_until_it_is_stopped() {
        let fixture = Fixture::new();
        let stop = CancellationToken::new();
        fixture.write("p", "a", "");
        let watch = fixture.set.watch(Duration::from_secs(10), &stop);
        let stopper = async {
            while fixture.set.entries().is_empty() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            stop.cancel();
        };
        tokio::join!(watch, stopper);
        assert!(fixture.named("p").is_ok());
    }
}
