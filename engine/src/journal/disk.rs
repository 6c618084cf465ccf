//! Where a journal lies.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

/// A fixed number of bytes on a disk of the node.
///
/// # Guarantees asked of an implementation
/// - When `write` returns `Ok`, what it and all writes before it have written survives a loss of power, also what an
///   earlier process has written.
/// - After a failure, a crash or a loss of power, of each sector that was being written any bytes may be old, new or
///   something else; other sectors are as they were.
/// - One user at a time.
#[async_trait]
pub trait JournalDisk: Send + Sync + Debug {
    /// Size in bytes. Never changes.
    fn len_bytes(&self) -> u64;

    /// Reads `len` bytes at `at`. The range lies inside the disk.
    async fn read(&self, at: u64, len: usize) -> io::Result<Bytes>;

    /// Writes each of `writes` at its place, in any order, and makes all of it durable, and what was written before, also
    /// if there are none. The ranges lie inside the disk.
    async fn write(&self, writes: Vec<(u64, Bytes)>) -> io::Result<()>;
}

/// The extension of a file that is being filled.
pub(super) const UNFINISHED: &str = "new";

/// Bytes that are written together when a file is filled with zeros.
const FILL_BYTES: usize = 1 << 20;

/// A file. All its blocks are allocated and written when it is made, so that making a write durable later changes
/// nothing but data.
#[derive(Debug)]
pub struct JournalFile {
    file: Arc<File>,
    len_bytes: u64,
}

impl JournalFile {
    /// Makes the file `path` of `len_bytes` zeros. It appears whole, or not at all. Blocks while it is written.
    pub fn create(path: &Path, len_bytes: u64) -> io::Result<()> {
        let new = path.with_extension(UNFINISHED);
        let made = fill(&new, len_bytes).and_then(|()| std::fs::rename(&new, path));
        if made.is_err() {
            // What is in the way of a next attempt is overwritten by it.
            let _ = std::fs::remove_file(&new);
        }
        made?;
        sync_dir(path)
    }

    /// Opens the file `path`. `ResourceBusy` while somebody else has it open.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let len_bytes = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), len_bytes })
    }
}

fn fill(path: &Path, len_bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let zeros = vec![0; FILL_BYTES];
    let mut left = len_bytes;
    while left > 0 {
        let piece = left.min(FILL_BYTES as u64);
        file.write_all(&zeros[..piece as usize])?;
        left -= piece;
    }
    file.sync_all()
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[async_trait]
impl JournalDisk for JournalFile {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn read(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        let read = move || {
            let mut bytes = BytesMut::zeroed(len);
            file.read_exact_at(&mut bytes, at)?;
            Ok(bytes.freeze())
        };
        tokio::task::spawn_blocking(read).await?
    }

    async fn write(&self, writes: Vec<(u64, Bytes)>) -> io::Result<()> {
        // The file, and so its lock, stays until the write has ended, also if nobody waits for it any more.
        let file = Arc::clone(&self.file);
        let write = move || {
            for (at, bytes) in &writes {
                file.write_all_at(bytes, *at)?;
            }
            file.sync_data()
        };
        tokio::task::spawn_blocking(write).await?
    }
}
