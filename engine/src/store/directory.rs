//! A directory as a store: the embedded default.
//!
//! # Guarantees
//! - A put that returns is on the disk: the file and the directory entries that lead to it are synced.
//! - An object appears whole or not at all: it is written to a file without a name (`O_TMPFILE`), which is then linked
//!   into its place; linking does not replace.
//! - What a get returns, or a put says exists, is on the disk too.
//! - A directory that is taken away, or replaced by another (its file system is unmounted), is a store that is away: it
//!   is never taken for an empty one, and nothing is put into what lies at its path instead.
//!
//! # Assumptions
//! The file system is local to the machine, or to the nodes of one kind cluster that share it, and knows unnamed files:
//! ext4, xfs, btrfs and tmpfs do. NFS does not, and would not do: its clients may repeat a link whose reply was lost.
//!
//! # Crash behaviour
//! A file that had no name yet is gone with the process that wrote it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::{Listed, Store, StoreError, direct};

/// How long after an object came into being its creator may still be syncing the directory.
const FRESH: Duration = Duration::from_secs(60);

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct Directory {
    root: Arc<Root>,
}

impl Directory {
    /// The store in `root`, which exists.
    pub fn new(root: PathBuf) -> Self {
        let identity = identity(&root).ok();
        Self { root: Arc::new(Root { path: root, identity }) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Root, &str) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (root, owned) = (Arc::clone(&self.root), key.to_owned());
        let outcome = tokio::task::spawn_blocking(move || {
            root.is_there()?;
            let outcome = work(&root, &owned);
            // What was not found may have been taken away with all the rest.
            root.is_there()?;
            outcome
        });
        match outcome.await {
            Ok(outcome) => outcome.map_err(|error| io_error(key, error)),
            Err(error) => Err(StoreError::Unavailable { key: key.into(), reason: error.to_string() }),
        }
    }
}

/// Device and inode of a directory.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
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
        io::ErrorKind::Unsupported | io::ErrorKind::IsADirectory => StoreError::Refused {
            key,
            reason: "the file system knows no unnamed files (O_TMPFILE); use ext4, xfs, btrfs or tmpfs"
                .into(),
        },
        io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            StoreError::Refused { key, reason: error.to_string() }
        }
        // The kinds may grow; what is not known here may pass, so it is tried again.
        _ => StoreError::Unavailable { key, reason: error.to_string() },
    }
}

/// Makes a directory durably, unless it is there. Its parent exists.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => {}
        // Who made it may not have synced it yet.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    path.parent().map_or(Ok(()), sync)
}

/// The blocking half of a [`Directory`].
#[derive(Debug)]
struct Root {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Root {
    /// Fails unless the directory is the one that it was.
    fn is_there(&self) -> io::Result<()> {
        let away = |what| io::Error::new(io::ErrorKind::HostUnreachable, what);
        match identity(&self.path) {
            Ok(found) if Some(found) == self.identity => Ok(()),
            Ok(_) => Err(away("another directory lies in its place; is its file system mounted?")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(away("its directory is missing")),
            Err(error) => Err(error),
        }
    }

    fn place(&self, key: &str) -> io::Result<PathBuf> {
        let relative = Path::new(key);
        if key.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a key of a pool"));
        }
        Ok(self.path.join(relative))
    }

    fn put(&self, key: &str, body: &[u8]) -> io::Result<()> {
        let path = self.place(key)?;
        let parent = path.parent().unwrap_or(&self.path);
        if path.try_exists()? {
            // Somebody may be between link and sync: what we say exists must be durable.
            sync(parent)?;
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // Where it will have its name: file systems spread directories, and search near one for room for its files.
        let mut file = match unnamed(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_directories(parent)?;
                unnamed(parent)
            }
            outcome => outcome,
        }?;
        direct::write(&mut file, body)?;
        file.sync_all()?;
        match link(&file, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            // Whoever's link it is: what exists from now on must be durable.
            outcome => sync(parent).and(outcome),
        }
    }

    fn make_directories(&self, directory: &Path) -> io::Result<()> {
        if directory == self.path {
            return Ok(());
        }
        match make_directory(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_directories(directory.parent().unwrap_or(&self.path))?;
                make_directory(directory)
            }
            outcome => outcome,
        }
    }

    fn get(&self, key: &str) -> io::Result<Bytes> {
        let path = self.place(key)?;
        let mut file = File::open(&path)?;
        let metadata = file.metadata()?;
        // Linked a moment ago: whoever builds on it must not find it gone after a power failure.
        let changed = UNIX_EPOCH + Duration::from_secs(metadata.ctime().max(0) as u64);
        if SystemTime::now().duration_since(changed).is_ok_and(|age| age < FRESH) {
            sync(path.parent().unwrap_or(&self.path))?;
        }
        let mut body = Vec::with_capacity(metadata.len() as usize);
        file.read_to_end(&mut body)?;
        Ok(body.into())
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> io::Result<Bytes> {
        let file = File::open(self.place(key)?)?;
        if range.start > range.end {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Before a buffer is made that no object could fill.
        if range.end > file.metadata()?.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the object is shorter"));
        }
        direct::read(&file, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> io::Result<Vec<Listed>> {
        let directory = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        let mut found = Vec::new();
        let path = self.path.join(directory);
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
            if key.starts_with(prefix) {
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
        let path = self.place(key)?;
        match fs::remove_file(&path) {
            Ok(()) => sync(path.parent().unwrap_or(&self.path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A file without a name, for `directory`.
fn unnamed(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::from_raw_mode(0o644))?.into())
}

/// Gives an unnamed file its name, if nothing has it.
fn link(file: &File, path: &Path) -> io::Result<()> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[async_trait]
impl Store for Directory {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.blocking(key, move |root, key| root.put(key, &body)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.blocking(key, |root, key| root.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.blocking(key, move |root, key| root.get_range(key, range)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let after = after.map(str::to_owned);
        self.blocking(prefix, move |root, prefix| root.list(prefix, after.as_deref(), limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.blocking(key, |root, key| root.delete(key)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_that_lead_elsewhere_are_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("pool")).unwrap();
        let store = Directory::new(root.path().join("pool"));
        for key in ["", "../outside", "/outside", "a/../../outside"] {
            let refused = store.put_if_absent(key, Bytes::from_static(b"x")).await;
            assert!(matches!(refused, Err(StoreError::Refused { .. })), "{key:?}: {refused:?}");
        }
        assert!(!root.path().join("outside").exists());
    }

    #[tokio::test]
    async fn a_directory_that_is_taken_away_or_replaced_is_a_store_that_is_away() {
        let parent = tempfile::tempdir().unwrap();
        let (root, aside) = (parent.path().join("pool"), parent.path().join("aside"));
        fs::create_dir(&root).unwrap();
        let store = Directory::new(root.clone());
        store.put_if_absent("log/1", Bytes::from_static(b"x")).await.unwrap();
        let is_away = async || {
            let put = store.put_if_absent("log/2", Bytes::from_static(b"y")).await;
            let answers =
                [put, store.get("log/1").await.map(drop), store.list("log/", None, 9).await.map(drop)];
            answers.iter().all(|answer| matches!(answer, Err(StoreError::Unavailable { .. })))
        };
        fs::rename(&root, &aside).unwrap();
        assert!(is_away().await);
        // As when the file system that was mounted there is unmounted.
        fs::create_dir(&root).unwrap();
        assert!(is_away().await);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        fs::remove_dir(&root).unwrap();
        fs::rename(&aside, &root).unwrap();
        assert_eq!(store.get("log/1").await.unwrap(), Bytes::from_static(b"x"));
        store.put_if_absent("log/2", Bytes::from_static(b"y")).await.unwrap();
    }

    #[tokio::test]
    async fn a_range_that_no_object_could_fill_is_refused_before_memory_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let store = Directory::new(root.path().to_owned());
        store.put_if_absent("k", Bytes::from_static(b"four")).await.unwrap();
        let refused = store.get_range("k", 0..u64::MAX).await;
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn nothing_but_objects_is_left_behind() {
        let root = tempfile::tempdir().unwrap();
        let store = Directory::new(root.path().to_owned());
        store.put_if_absent("a/b", Bytes::from_static(b"x")).await.unwrap();
        store.put_if_absent("a/b", Bytes::from_static(b"y")).await.unwrap_err();
        let names = |path: &Path| -> Vec<_> {
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names(root.path()), ["a"]);
        assert_eq!(names(&root.path().join("a")), ["b"]);
    }
}
