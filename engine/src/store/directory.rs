//! A directory as a store: the embedded default.
//!
//! # Guarantees
//! - A put that returns is on the disk: the file and the directory entries that lead to it are synced.
//! - An object appears whole or not at all: it is written beside its place and then renamed into it, and the rename
//!   does not replace (`renameat2` with `RENAME_NOREPLACE`; ext4, xfs, btrfs and tmpfs have it).
//!
//! # Assumptions
//! The file system is local to the machine, or to the nodes of one kind cluster that share it. NFS is not: its clients
//! may repeat a rename whose reply was lost.
//!
//! # Crash behaviour
//! A crash may leave a file below `.tmp/`; the next process removes what is older than a day.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags};

use super::{Listed, Store, StoreError};

const TEMPORARY: &str = ".tmp";
/// How old a file below `.tmp/` is before nobody can still be writing it.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    counter: AtomicU64,
    /// Tells this process's temporary files from those of others, also across containers that share the directory.
    token: String,
}

impl Directory {
    /// The store in `root`, which must exist.
    pub fn open(root: &Path, entropy: &dyn crate::env::Entropy) -> Result<Self, StoreError> {
        let fail = |error: io::Error| io_error(&root.display().to_string(), error);
        let root = root.canonicalize().map_err(fail)?;
        let temporary = root.join(TEMPORARY);
        fs::create_dir_all(&temporary).map_err(fail)?;
        remove_abandoned(&temporary);
        let mut token = [0; 8];
        entropy.fill(&mut token);
        let inner = Inner { root, counter: AtomicU64::new(0), token: hex::encode(token) };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Inner, &str) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (inner, owned) = (Arc::clone(&self.inner), key.to_owned());
        let outcome = tokio::task::spawn_blocking(move || work(&inner, &owned)).await;
        match outcome {
            Ok(outcome) => outcome.map_err(|error| io_error(key, error)),
            Err(error) => Err(StoreError::Unavailable { key: key.into(), reason: error.to_string() }),
        }
    }
}

/// Failure to clean is no failure to work: what is left is tried again at the next start.
fn remove_abandoned(temporary: &Path) {
    let Ok(entries) = fs::read_dir(temporary) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn io_error(key: &str, error: io::Error) -> StoreError {
    let key = key.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StoreError::NotFound { key },
        io::ErrorKind::AlreadyExists => StoreError::AlreadyExists { key },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreError::Denied { key, reason: error.to_string() }
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { key },
        io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof | io::ErrorKind::Unsupported => {
            StoreError::Refused { key, reason: error.to_string() }
        }
        _ => StoreError::Unavailable { key, reason: error.to_string() },
    }
}

impl Inner {
    fn path(&self, key: &str) -> io::Result<PathBuf> {
        let relative = Path::new(key);
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if key.is_empty() || !plain || relative.starts_with(TEMPORARY) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a key of a pool"));
        }
        Ok(self.root.join(relative))
    }

    fn put(&self, key: &str, body: &[u8]) -> io::Result<()> {
        let path = self.path(key)?;
        let name = format!("{}-{}", self.token, self.counter.fetch_add(1, Ordering::Relaxed));
        let temporary = self.root.join(TEMPORARY).join(name);
        let outcome = self.put_by(&temporary, &path, body);
        if outcome.is_err() {
            // It may not have come into being; if it cannot be removed, a later start removes it.
            let _ = fs::remove_file(&temporary);
        }
        outcome
    }

    fn put_by(&self, temporary: &Path, path: &Path, body: &[u8]) -> io::Result<()> {
        if path.try_exists()? {
            // Somebody may be between rename and sync: what we say exists must be durable.
            sync(path.parent().unwrap_or(&self.root))?;
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut file = File::create_new(temporary)?;
        file.write_all(body)?;
        file.sync_all()?;
        let parent = path.parent().unwrap_or(&self.root);
        let rename = || rustix::fs::renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE);
        match rename() {
            Err(rustix::io::Errno::NOENT) => {
                self.make_directories(parent)?;
                rename()?;
            }
            Err(rustix::io::Errno::EXIST) => {
                sync(parent)?;
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            outcome => outcome?,
        }
        sync(parent)
    }

    fn make_directories(&self, directory: &Path) -> io::Result<()> {
        if directory == self.root {
            return Ok(());
        }
        let parent = directory.parent().unwrap_or(&self.root);
        match fs::create_dir(directory) {
            Ok(()) => sync(parent),
            // Who made it may not have synced it yet.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => sync(parent),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_directories(parent)?;
                self.make_directories(directory)
            }
            Err(error) => Err(error),
        }
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> io::Result<Bytes> {
        let mut file = File::open(self.path(key)?)?;
        file.seek(SeekFrom::Start(range.start))?;
        let mut body = vec![0; (range.end - range.start) as usize];
        file.read_exact(&mut body)?;
        Ok(body.into())
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> io::Result<Vec<Listed>> {
        let directory = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        let mut found = Vec::new();
        let path = self.root.join(directory);
        match self.walk(&path, directory, prefix, after.unwrap_or(""), limit, &mut found) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Vec::new())
            }
            outcome => outcome.map(|()| found),
        }
    }

    /// Adds what lies in `path`, whose keys begin with `base`, in key order.
    fn walk(
        &self,
        path: &Path,
        base: &str,
        prefix: &str,
        after: &str,
        limit: usize,
        found: &mut Vec<Listed>,
    ) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_directory = entry.file_type()?.is_dir();
            // Key order compares the slash too.
            let key = format!("{base}{name}{}", if is_directory { "/" } else { "" });
            if key.starts_with(prefix) && key != format!("{TEMPORARY}/") {
                names.push((key, entry));
            }
        }
        names.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (key, entry) in names {
            if found.len() == limit {
                return Ok(());
            }
            if key.ends_with('/') {
                // Everything below is at or before `after`, unless `after` lies in there or before.
                if key.as_str() > after || after.starts_with(&key) {
                    match self.walk(&entry.path(), &key, prefix, after, limit, found) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        outcome => outcome?,
                    }
                }
            } else if key.as_str() > after {
                match entry.metadata() {
                    Ok(metadata) => found.push(Listed {
                        key,
                        size_bytes: metadata.len(),
                        modified_ms: metadata.modified().map_or(0, millis),
                    }),
                    // Deleted meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        match fs::remove_file(self.path(key)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[async_trait]
impl Store for Directory {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.blocking(key, move |inner, key| inner.put(key, &body)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.blocking(key, |inner, key| fs::read(inner.path(key)?).map(Bytes::from)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.blocking(key, move |inner, key| inner.get_range(key, range)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let after = after.map(str::to_owned);
        self.blocking(prefix, move |inner, prefix| inner.list(prefix, after.as_deref(), limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.blocking(key, |inner, key| inner.delete(key)).await
    }
}
