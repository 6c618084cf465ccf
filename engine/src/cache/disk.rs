//! The tier on a local disk: chunks in a directory, up to a number of bytes, there again after a restart.
//!
//! Chunks are put one after the other on *shelves* (a pair of files each, see `shelf`); when the cache is full the oldest shelf
//! goes, and what was used of it moves to the newest: first in, first out, with a second chance. So the disk sees only
//! sequential writes, a crash can tear nothing but the newest entry, and making room is one unlink. A general hybrid
//! cache would do as well (foyer was looked at): it brings twenty crates, a pre-release and a second LZ4 among them, for what
//! entries that never change, never go stale and check themselves do not need.
//!
//! # Guarantees
//! - What [`ChunkCache::get`] returns is byte for byte what was inserted.
//! - The files never take more than the capacity and one shelf. Memory: some 80 bytes an entry, and no more entries
//!   than one for each 8 KiB of capacity.
//! - Nothing waits for the disk but `get`, and that a limited time.
//!
//! # Assumptions
//! The directory belongs to this cache; one process at a time uses it (a lock file sees to that).
//!
//! # Crash behaviour
//! What had reached its shelf is found again, also after SIGKILL. After a power failure, what the disk has lost is
//! found out by its checksum and is a miss. A disk that fails, hangs or is full makes the cache a miss for a while,
//! longer each time (counted in requests), and is tried again; nothing else fails.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::shelf::{self, Filling, Place, Shelf};
use super::stats::{Counters, add};
use super::{CacheStats, ChunkCache, ChunkKey};

/// The capacity is divided into so many shelves, which bounds the descriptors that are open.
const SHELVES: u64 = 128;
/// Bytes of the smallest and the largest shelf.
const SHELF_BYTES: std::ops::RangeInclusive<u64> = 256 << 10..=1 << 30;
/// Bytes for each of which a shelf may hold one entry.
const ENTRY_SHARE_BYTES: u64 = 8 << 10;
/// Bytes of the largest chunk taken: a sealed chunk is at most 64 KiB and a trailer.
const CHUNK_BYTES_MAX: usize = 128 << 10;
/// Chunks that wait for the disk; more are turned away.
const QUEUE: usize = 256;
/// Reads that are under way together.
const READS: usize = 64;
/// How long a read may take before the store is asked instead.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most requests that are left out after a failure.
const SKIP_MAX: u64 = 4096;

/// Why a directory cannot be used as a cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory, or something in it, cannot be made or read.
    #[error("the cache directory {} cannot be used: {source}", dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("the cache directory {} is in use by another process", dir.display())]
    InUse {
        /// Which.
        dir: PathBuf,
    },
    /// The operating system starts no thread for it.
    #[error("no thread could be started for the cache: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// Chunks on a local disk.
#[derive(Debug)]
pub struct DiskCache {
    shared: Arc<Shared>,
    jobs: SyncSender<Job>,
    reads: Semaphore,
    /// Keeps other processes out.
    _lock: File,
}

#[derive(Debug)]
enum Job {
    Insert(ChunkKey, Bytes),
    /// Answered once everything before it is done.
    Answer(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    capacity_bytes: u64,
    index: Mutex<Index>,
    counters: Counters,
    breaker: Breaker,
}

#[derive(Debug, Default)]
struct Index {
    /// Oldest first; new chunks go to the last.
    shelves: VecDeque<Stocked>,
    places: HashMap<ChunkKey, Entry>,
    bytes: u64,
}

/// A shelf, and what was put on it.
#[derive(Debug)]
struct Stocked {
    shelf: Arc<Shelf>,
    keys: Vec<ChunkKey>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    shelf: Arc<Shelf>,
    place: Place,
    used: bool,
}

impl Index {
    fn enter(&mut self, key: ChunkKey, place: Place) {
        let Some(stocked) = self.shelves.back_mut() else { return };
        stocked.keys.push(key);
        stocked.bytes += u64::from(place.len);
        self.bytes += u64::from(place.len);
        let entry = Entry { shelf: Arc::clone(&stocked.shelf), place, used: false };
        self.places.insert(key, entry);
    }

    fn stock(&mut self, shelf: Shelf) {
        self.shelves.push_back(Stocked { shelf: Arc::new(shelf), keys: Vec::new(), bytes: 0 });
    }

    /// Takes the oldest shelf out: its number, and the entries that are still on it.
    fn take_oldest(&mut self) -> Option<(u64, Vec<(ChunkKey, Entry)>)> {
        let Stocked { shelf, keys, bytes } = self.shelves.pop_front()?;
        self.bytes -= bytes;
        let here = |entry: &Entry| entry.shelf.number == shelf.number;
        let mut take = |key| if here(self.places.get(&key)?) { self.places.remove_entry(&key) } else { None };
        let entries = keys.into_iter().filter_map(&mut take).collect();
        Some((shelf.number, entries))
    }
}

/// Leaves requests out after a failure: one at first, twice as many after each further failure.
#[derive(Debug, Default)]
struct Breaker {
    skip: AtomicU64,
    last: AtomicU64,
}

impl Breaker {
    fn allows(&self) -> bool {
        let left = |skip: u64| skip.checked_sub(1);
        self.skip.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_err()
    }

    fn failed(&self) {
        let skip = (self.last.load(Ordering::Relaxed) * 2).clamp(1, SKIP_MAX);
        self.last.store(skip, Ordering::Relaxed);
        self.skip.store(skip, Ordering::Relaxed);
    }

    fn worked(&self) {
        self.last.store(0, Ordering::Relaxed);
    }
}

impl DiskCache {
    /// Opens the cache in `dir`, which is made if it does not exist, with what an earlier process has left there.
    /// Blocks while it reads the rows of all shelves.
    pub fn open(dir: &Path, capacity_bytes: u64) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Directory { dir: dir.into(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let lock = File::create(dir.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(CacheError::InUse { dir: dir.into() }),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        let shared = Arc::new(Shared {
            dir: dir.into(),
            capacity_bytes,
            index: Mutex::default(),
            counters: Counters::default(),
            breaker: Breaker::default(),
        });
        let numbers = shelf::numbers(dir).map_err(failed)?;
        let next = numbers.last().map_or(0, |last| last + 1);
        numbers.into_iter().for_each(|number| shared.load(number));

        let (jobs, queue) = sync_channel(QUEUE);
        let writer = Writer { shared: Arc::clone(&shared), next, filling: None };
        std::thread::Builder::new()
            .name("chunk-cache".into())
            .spawn(move || writer.run(&queue))
            .map_err(|source| CacheError::Thread { source })?;
        Ok(Self { shared, jobs, reads: Semaphore::new(READS), _lock: lock })
    }

    /// What it has done since it was opened, and what it holds.
    pub fn stats(&self) -> CacheStats {
        let index = self.shared.index();
        self.shared.counters.snapshot(index.places.len() as u64, index.bytes)
    }

    /// Waits until everything inserted so far is on the disk, or was given up. For a shutdown that wants a warm start.
    pub async fn drained(&self) {
        let (answer, done) = oneshot::channel();
        let jobs = self.jobs.clone();
        // The queue may be full: this one waits for its place in it, as nothing else does.
        let queued = tokio::task::spawn_blocking(move || jobs.send(Job::Answer(answer)));
        let _ = queued.await;
        // An error means that the writer is gone, and everything with it.
        let _ = done.await;
    }

    async fn read(&self, shelf: Arc<Shelf>, place: Place) -> io::Result<Bytes> {
        let read = async {
            // An error would mean that it is closed, which nobody does; the read is right all the same.
            let _permit = self.reads.acquire().await;
            tokio::task::spawn_blocking(move || shelf.read(&place)).await?
        };
        tokio::time::timeout(PATIENCE, read).await?
    }
}

#[async_trait]
impl ChunkCache for DiskCache {
    async fn get(&self, key: ChunkKey) -> Option<Bytes> {
        let shared = &self.shared;
        let entry = shared.index().places.get_mut(&key).map(|entry| {
            entry.used = true;
            (Arc::clone(&entry.shelf), entry.place)
        });
        let found = match entry {
            Some((shelf, place)) if shared.breaker.allows() => match self.read(shelf, place).await {
                Ok(chunk) => {
                    shared.breaker.worked();
                    Some(chunk)
                }
                Err(error) => {
                    shared.failed("read a chunk", &error);
                    shared.index().places.remove(&key);
                    None
                }
            },
            Some(_) | None => None,
        };
        shared.counters.looked_up(found.is_some());
        found
    }

    fn insert(&self, key: ChunkKey, stored: Bytes) {
        let shared = &self.shared;
        if shared.index().places.contains_key(&key) {
            return;
        }
        // A copy: the chunk may be a small slice of a large response, which it would keep alive in the queue.
        let copy = || Job::Insert(key, Bytes::copy_from_slice(&stored));
        let fits = stored.len() <= CHUNK_BYTES_MAX;
        if !fits || !shared.breaker.allows() || self.jobs.try_send(copy()).is_err() {
            add(&shared.counters.rejections, 1);
        }
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, what: &str, error: &io::Error) {
        add(&self.counters.errors, 1);
        tracing::warn!(dir = %self.dir.display(), %error, "the chunk cache could not {what}");
        if error.kind() != io::ErrorKind::InvalidData {
            self.breaker.failed();
        }
    }

    /// Takes over a shelf of an earlier process; one that cannot be read is removed.
    fn load(&self, number: u64) {
        match Shelf::load(&self.dir, number) {
            Ok((shelf, entries)) => {
                let mut index = self.index();
                index.stock(shelf);
                entries.into_iter().for_each(|(key, place)| index.enter(key, place));
            }
            Err(error) => {
                self.failed("load a shelf", &error);
                self.remove(number);
            }
        }
    }

    fn remove(&self, number: u64) {
        if let Err(error) = shelf::remove(&self.dir, number) {
            self.failed("remove a shelf", &error);
        }
    }
}

/// The one thread that changes the directory.
#[derive(Debug)]
struct Writer {
    shared: Arc<Shared>,
    next: u64,
    /// The shelf that chunks go to: the last of the index.
    filling: Option<(Arc<Shelf>, Filling)>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        for job in queue {
            match job {
                Job::Insert(key, chunk) => match self.insert(&key, &chunk) {
                    Ok(()) => self.shared.breaker.worked(),
                    Err(error) => self.give_up(&error),
                },
                Job::Answer(answer) => {
                    // Whoever asked may have gone.
                    let _ = answer.send(());
                }
            }
        }
    }

    fn shelf_bytes(&self) -> u64 {
        (self.shared.capacity_bytes / SHELVES).clamp(*SHELF_BYTES.start(), *SHELF_BYTES.end())
    }

    fn insert(&mut self, key: &ChunkKey, chunk: &[u8]) -> io::Result<()> {
        if self.shared.index().places.contains_key(key) {
            return Ok(());
        }
        self.make_room(chunk.len() as u64)?;
        self.put(key, chunk)?;
        add(&self.shared.counters.insertions, 1);
        Ok(())
    }

    /// Sees to it that a shelf with room is there, and that the cache stays within its capacity.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let entries_max = self.shelf_bytes() / ENTRY_SHARE_BYTES;
        let has_room = self.filling.as_ref().is_some_and(|(_, filling)| {
            u64::from(filling.bytes) + bytes <= self.shelf_bytes() && u64::from(filling.entries) < entries_max
        });
        if has_room {
            return Ok(());
        }
        self.filling = None;
        let (shelf, filling) = Shelf::create(&self.shared.dir, self.next)?;
        self.next += 1;
        let mut index = self.shared.index();
        index.stock(shelf);
        self.filling = index.shelves.back().map(|stocked| (Arc::clone(&stocked.shelf), filling));
        drop(index);
        while self.is_too_large() {
            self.evict_oldest()?;
        }
        Ok(())
    }

    /// Whether there is no room for one more full shelf.
    fn is_too_large(&self) -> bool {
        let index = self.shared.index();
        let full = index.bytes + self.shelf_bytes() > self.shared.capacity_bytes;
        index.shelves.len() > 1 && (full || index.shelves.len() as u64 > 2 * SHELVES)
    }

    /// Removes the oldest shelf. What was used since it was put there moves to the newest, up to half of that: it
    /// would throw out everything else if all of a cache were in use.
    fn evict_oldest(&mut self) -> io::Result<()> {
        let Some((number, entries)) = self.shared.index().take_oldest() else { return Ok(()) };
        let half = self.shelf_bytes() / 2;
        let mut moved = Ok(());
        let mut evicted = 0;
        for (key, entry) in entries {
            let room =
                |(_, filling): &(_, Filling)| u64::from(filling.bytes) + u64::from(entry.place.len) <= half;
            let moves = moved.is_ok() && entry.used && self.filling.as_ref().is_some_and(room);
            match if moves { entry.shelf.read(&entry.place) } else { Err(io::ErrorKind::NotFound.into()) } {
                Ok(chunk) => moved = self.put(&key, &chunk),
                Err(_) => evicted += 1,
            }
        }
        add(&self.shared.counters.evictions, evicted);
        self.shared.remove(number);
        moved
    }

    fn put(&mut self, key: &ChunkKey, chunk: &[u8]) -> io::Result<()> {
        let Some((shelf, filling)) = &mut self.filling else { return Ok(()) };
        let place = shelf.put(filling, key, chunk)?;
        self.shared.index().enter(*key, place);
        Ok(())
    }

    /// After an error the newest shelf takes no more; on a full disk the oldest makes room.
    fn give_up(&mut self, error: &io::Error) {
        self.shared.failed("put a chunk", error);
        add(&self.shared.counters.rejections, 1);
        if let Some((shelf, filling)) = self.filling.take()
            && filling.entries == 0
        {
            self.shared.index().shelves.pop_back();
            self.shared.remove(shelf.number);
        }
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            && let Some((number, entries)) = self.shared.index().take_oldest()
        {
            add(&self.shared.counters.evictions, entries.len() as u64);
            self.shared.remove(number);
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
