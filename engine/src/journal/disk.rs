//! Where a journal lies.
//!
//! A file is read past the page cache. After a sync that failed, Linux takes the pages that it could not write for clean:
//! a successor would find in memory what is not on the disk, and its own sync would not write it, but succeed. A file
//! system that has no such reads, as a tmpfs, survives no loss of power anyway.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::OFlags;

use crate::ids::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A fixed number of bytes on a disk of the node.
///
/// # Guarantees asked of an implementation
/// - When `write` returns `Ok`, what it has written survives a loss of power, and so does all that `read` has found
///   before, also what an earlier process has written.
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
    /// The same file, past the page cache.
    direct: Arc<File>,
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
        let mut past_the_cache = OpenOptions::new();
        past_the_cache.read(true).custom_flags(OFlags::DIRECT.bits().cast_signed());
        let (file, direct) = match past_the_cache.open(path) {
            Ok(direct) => (Arc::new(file), Arc::new(direct)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let file = Arc::new(file);
                (Arc::clone(&file), file)
            }
            Err(error) => return Err(error),
        };
        Ok(Self { file, direct, len_bytes })
    }
}

/// Reads `len` bytes at `at` in whole blocks, into memory that is aligned to them.
fn read_blocks(file: &File, at: u64, len: usize) -> io::Result<Bytes> {
    let begin = at / BLOCK_BYTES * BLOCK_BYTES;
    let skip = (at - begin) as usize;
    let whole = (skip + len).next_multiple_of(BLOCK);
    let mut memory = vec![0; whole + BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
    let blocks = &mut memory[start..start + whole];
    let mut got = 0;
    // What lies behind the file's end in its last block is not there to be read.
    while got < skip + len {
        match file.read_at(&mut blocks[got..], begin + got as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => got += more,
        }
    }
    Ok(Bytes::from(memory).slice(start + skip..start + skip + len))
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
        let file = Arc::clone(&self.direct);
        tokio::task::spawn_blocking(move || read_blocks(&file, at, len)).await?
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

#[cfg(test)]
mod tests {
    use rustix::fs::{fcntl_getfl, statfs};

    use super::*;

    const LEN_BYTES: u64 = (64 << 10) + 100;
    const TMPFS_MAGIC: i64 = 0x0102_1994;

    #[tokio::test]
    async fn a_file_is_read_past_the_page_cache_at_any_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        JournalFile::create(&path, LEN_BYTES).unwrap();
        let file = JournalFile::open(&path).unwrap();
        let is_direct = fcntl_getfl(&*file.direct).unwrap().contains(OFlags::DIRECT);
        assert!(is_direct || statfs(dir.path()).unwrap().f_type as i64 == TMPFS_MAGIC);
        let bytes: Vec<u8> = (0..LEN_BYTES).map(|n| (n % 251) as u8).collect();
        file.write(vec![(0, bytes.clone().into())]).await.unwrap();
        let end = LEN_BYTES as usize;
        for range in [0..4096, 1..2, 4095..8193, 5000..30_000, end - 101..end] {
            let read = file.read(range.start as u64, range.len()).await.unwrap();
            assert!(read == bytes[range.clone()], "{range:?}");
        }
        assert!(file.read(LEN_BYTES, 1).await.is_err());
    }
}
