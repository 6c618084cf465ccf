//! A node's local disk, with the chunk cache on it: it outlives processes, fails, and loses what was not synced when the
//! power goes. The cache is the real one, on real files; only their damage comes from the seed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use holdfast_engine::cache::{ChunkCache, ChunkKey, DiskCache};
use tempfile::TempDir;
use tokio::task::unconstrained;

use crate::chance::Chance;
use crate::process::Process;

/// Bytes of chunks that fit: some shelves.
const CAPACITY_BYTES: u64 = 1 << 20;
/// What a disk writes at once.
const SECTOR_BYTES: u64 = 512;

/// A disk. One process at a time has the cache open.
#[derive(Debug)]
pub struct LocalDisk {
    dir: TempDir,
    cache: Mutex<Option<DiskCache>>,
}

impl LocalDisk {
    /// An empty disk.
    pub fn fresh() -> Arc<Self> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        Arc::new(Self { dir, cache: Mutex::default() })
    }

    fn cache(&self) -> MutexGuard<'_, Option<DiskCache>> {
        self.cache.lock().expect("no holder panics")
    }

    /// The cache, as `process` has it open. An earlier process is dead, or loses it.
    pub fn open(self: &Arc<Self>, process: &Arc<Process>, chance: &Chance) -> NearChunks {
        self.close();
        let opened = DiskCache::open(self.dir.path(), CAPACITY_BYTES);
        *self.cache() = Some(opened.expect("a cache opens whatever its files have become"));
        NearChunks { disk: Arc::clone(self), process: Arc::clone(process), chance: chance.fork() }
    }

    /// Nothing is under way: what is inserted is waited for.
    fn close(&self) {
        self.cache().take();
    }

    /// The node's power fails: the cache syncs nothing, so any sector may be missing, or a whole file.
    pub fn lose_power(&self, chance: &Chance) {
        self.close();
        for path in self.files() {
            if chance.hits(150) {
                std::fs::remove_file(path).expect("a file can be removed");
            } else {
                damage(&open(&path), chance);
            }
        }
    }

    /// The disk fails under the running process.
    pub fn fail(&self, chance: &Chance) {
        if chance.hits(200) {
            // Nothing new can be put there any more, and what is there is still open. A disk may fail twice.
            if self.dir.path().exists() {
                std::fs::remove_dir_all(self.dir.path()).expect("a directory can be removed");
            }
            return;
        }
        self.files().iter().for_each(|path| damage(&open(path), chance));
    }

    /// The cache's files, always in the same order.
    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.dir.path()) else { return Vec::new() };
        let paths = entries.map(|entry| entry.expect("a directory can be read").path());
        let mut files: Vec<PathBuf> = paths.filter(|path| !path.ends_with("lock")).collect();
        files.sort();
        files
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("a file can be opened")
}

/// Cuts the file, zeroes sectors of it, or flips bits.
fn damage(file: &File, chance: &Chance) {
    let len = file.metadata().expect("a file has a length").len();
    if len == 0 {
        return;
    }
    match chance.among(0..4) {
        0 => file.set_len(chance.among(0..len)).expect("a file can be cut"),
        1 => {
            for _ in 0..chance.among(1..20) {
                let at = chance.among(0..len) / SECTOR_BYTES * SECTOR_BYTES;
                let lost = vec![0; SECTOR_BYTES.min(len - at) as usize];
                file.write_all_at(&lost, at).expect("a file can be written");
            }
        }
        2 => {
            for _ in 0..chance.among(1..20) {
                let at = chance.among(0..len);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("a file can be read");
                file.write_all_at(&[byte[0] ^ 1 << chance.among(0..8)], at).expect("a file can be written");
            }
        }
        _ => {}
    }
}

/// The cache, as one process reaches it.
#[derive(Debug)]
pub struct NearChunks {
    disk: Arc<LocalDisk>,
    process: Arc<Process>,
    chance: Chance,
}

#[async_trait]
impl ChunkCache for NearChunks {
    /// Takes no virtual time. Now and then a bit is wrong that was right on the disk.
    async fn get(&self, key: ChunkKey) -> Option<Bytes> {
        self.process.live().await;
        let cache = self.disk.cache();
        let found = block_on(unconstrained(cache.as_ref()?.get(key)))?;
        if self.chance.hits(970) {
            return Some(found);
        }
        let mut wrong = found.to_vec();
        let at = self.chance.among(0..wrong.len() as u64) as usize;
        wrong[at] ^= 1 << self.chance.among(0..8);
        Some(wrong.into())
    }

    /// Waits for the disk, as the real one never does: a seed decides what is found there, and not a thread.
    fn insert(&self, key: ChunkKey, stored: Bytes) {
        if let Some(cache) = self.disk.cache().as_ref().filter(|_| !self.process.is_dead()) {
            cache.insert(key, stored);
            block_on(unconstrained(cache.drained()));
        }
    }
}
