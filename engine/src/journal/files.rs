//! The directory that journals lie in.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::disk::{self, JournalDisk, JournalFile};

/// A directory on a disk of the node.
///
/// # Guarantees asked of an implementation
/// - What `create`, `rename` and `remove` have done when they return survives a loss of power.
/// - A new file appears whole, or not at all.
#[async_trait]
pub trait JournalDir: Send + Sync + Debug {
    /// Where it is.
    fn path(&self) -> &Path;

    /// The names of its files, with their sizes in bytes.
    async fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// Makes a file of `len_bytes` zeros.
    async fn create(&self, file: &str, len_bytes: u64) -> io::Result<()>;

    /// Opens a file. `NotFound` if there is none, `ResourceBusy` while somebody else has it open.
    async fn open(&self, file: &str) -> io::Result<Arc<dyn JournalDisk>>;

    /// Gives a file another name.
    async fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. `NotFound` if there is none.
    async fn remove(&self, file: &str) -> io::Result<()>;
}

/// A directory of the node's file system.
#[derive(Debug)]
pub(super) struct JournalFiles {
    dir: PathBuf,
}

impl JournalFiles {
    /// The directory `dir`, which is made and belongs to this process. What a predecessor had not finished making is
    /// removed. Blocks.
    pub fn new(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        for (file, _) in list(&dir)? {
            let path = dir.join(file);
            if path.extension().is_some_and(|extension| extension == disk::UNFINISHED) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Self { dir })
    }
}

fn list(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string() {
            files.push((name, entry.metadata()?.len()));
        }
    }
    Ok(files)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

#[async_trait]
impl JournalDir for JournalFiles {
    fn path(&self) -> &Path {
        &self.dir
    }

    async fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let dir = self.dir.clone();
        blocking(move || list(&dir)).await
    }

    async fn create(&self, file: &str, len_bytes: u64) -> io::Result<()> {
        let path = self.dir.join(file);
        blocking(move || JournalFile::create(&path, len_bytes)).await
    }

    async fn open(&self, file: &str) -> io::Result<Arc<dyn JournalDisk>> {
        let path = self.dir.join(file);
        blocking(move || Ok(Arc::new(JournalFile::open(&path)?) as Arc<dyn JournalDisk>)).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.dir.join(from), self.dir.join(to));
        blocking(move || std::fs::rename(&from, &to).and_then(|()| disk::sync_dir(&to))).await
    }

    async fn remove(&self, file: &str) -> io::Result<()> {
        let path = self.dir.join(file);
        blocking(move || std::fs::remove_file(&path).and_then(|()| disk::sync_dir(&path))).await
    }
}
