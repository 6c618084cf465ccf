//! What caches count.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a cache has done since it was opened, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Chunks asked for that were there.
    pub hits: u64,
    /// Chunks asked for that were not.
    pub misses: u64,
    /// Chunks taken in.
    pub insertions: u64,
    /// Chunks turned away: there was no room, the disk was behind, or it is failing.
    pub rejections: u64,
    /// Chunks thrown out to make room.
    pub evictions: u64,
    /// Failed operations on the disk, and entries that were not what was put there.
    pub errors: u64,
    /// Chunks held.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The counters behind [`CacheStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) insertions: AtomicU64,
    pub(super) rejections: AtomicU64,
    pub(super) evictions: AtomicU64,
    pub(super) errors: AtomicU64,
}

impl Counters {
    pub(super) fn looked_up(&self, found: bool) {
        add(if found { &self.hits } else { &self.misses }, 1);
    }

    pub(super) fn snapshot(&self, entries: u64, bytes: u64) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            insertions: self.insertions.load(Ordering::Relaxed),
            rejections: self.rejections.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            entries,
            bytes,
        }
    }
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
