//! The tier in memory: the chunks used last, up to a number of bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::stats::{Counters, add};
use super::{CacheStats, ChunkCache, ChunkKey};

/// What an entry costs beyond its bytes, roughly: so that many tiny chunks are bounded too.
const ENTRY_OVERHEAD_BYTES: u64 = 160;

/// Chunks in memory; the one used longest ago goes first.
#[derive(Debug)]
pub struct MemoryCache {
    capacity_bytes: u64,
    chunks: Mutex<Chunks>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Chunks {
    by_key: HashMap<ChunkKey, (Bytes, u64)>,
    /// By the time of their last use, counted in uses.
    by_use: BTreeMap<u64, ChunkKey>,
    uses: u64,
    cost_bytes: u64,
}

fn cost_bytes(chunk: &Bytes) -> u64 {
    chunk.len() as u64 + ENTRY_OVERHEAD_BYTES
}

impl Chunks {
    fn get(&mut self, key: &ChunkKey) -> Option<Bytes> {
        let (chunk, used) = self.by_key.get_mut(key)?;
        self.uses += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.uses, *key);
        *used = self.uses;
        Some(chunk.clone())
    }

    fn put(&mut self, key: ChunkKey, chunk: Bytes) {
        self.uses += 1;
        self.cost_bytes += cost_bytes(&chunk);
        self.by_use.insert(self.uses, key);
        if let Some((old, used)) = self.by_key.insert(key, (chunk, self.uses)) {
            self.cost_bytes -= cost_bytes(&old);
            self.by_use.remove(&used);
        }
    }

    fn evict(&mut self) -> bool {
        let Some((_, key)) = self.by_use.pop_first() else { return false };
        if let Some((chunk, _)) = self.by_key.remove(&key) {
            self.cost_bytes -= cost_bytes(&chunk);
        }
        true
    }
}

impl MemoryCache {
    /// A cache of up to `capacity_bytes`.
    pub fn new(capacity_bytes: u64) -> Self {
        Self { capacity_bytes, chunks: Mutex::default(), counters: Counters::default() }
    }

    /// What it has done and holds.
    pub fn stats(&self) -> CacheStats {
        let chunks = self.chunks();
        let overhead = chunks.by_key.len() as u64 * ENTRY_OVERHEAD_BYTES;
        self.counters.snapshot(chunks.by_key.len() as u64, chunks.cost_bytes - overhead)
    }

    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ChunkCache for MemoryCache {
    async fn get(&self, key: ChunkKey) -> Option<Bytes> {
        let found = self.chunks().get(&key);
        self.counters.looked_up(found.is_some());
        found
    }

    fn insert(&self, key: ChunkKey, stored: Bytes) {
        if cost_bytes(&stored) > self.capacity_bytes {
            return add(&self.counters.rejections, 1);
        }
        // A copy: the chunk may be a small slice of a large response, which it would keep alive.
        let stored = Bytes::copy_from_slice(&stored);
        let mut chunks = self.chunks();
        chunks.put(key, stored);
        add(&self.counters.insertions, 1);
        while chunks.cost_bytes > self.capacity_bytes && chunks.evict() {
            add(&self.counters.evictions, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ObjectId;

    fn key(stored_offset: u32) -> ChunkKey {
        ChunkKey { segment: ObjectId([3; 16]), stored_offset }
    }

    #[tokio::test]
    async fn the_chunk_used_longest_ago_makes_room() {
        let cache = MemoryCache::new(3 * (1000 + ENTRY_OVERHEAD_BYTES));
        for offset in 0..3 {
            cache.insert(key(offset), vec![offset as u8; 1000].into());
        }
        assert!(cache.get(key(0)).await.is_some());
        cache.insert(key(3), vec![3; 1000].into());
        assert_eq!(cache.get(key(1)).await, None);
        for offset in [0, 2, 3] {
            assert_eq!(cache.get(key(offset)).await, Some(vec![offset as u8; 1000].into()));
        }
        let stats = cache.stats();
        assert_eq!(
            (stats.hits, stats.misses, stats.evictions, stats.entries, stats.bytes),
            (4, 1, 1, 3, 3000)
        );
    }

    #[tokio::test]
    async fn what_is_put_again_replaces_and_is_counted_once() {
        let cache = MemoryCache::new(10_000);
        cache.insert(key(1), vec![1; 2000].into());
        cache.insert(key(1), vec![2; 500].into());
        assert_eq!(cache.get(key(1)).await, Some(vec![2; 500].into()));
        assert_eq!((cache.stats().entries, cache.stats().bytes), (1, 500));
    }

    #[tokio::test]
    async fn what_never_fits_is_turned_away_and_throws_nothing_out() {
        let cache = MemoryCache::new(2000);
        cache.insert(key(1), vec![1; 100].into());
        cache.insert(key(2), vec![2; 2000].into());
        assert_eq!(cache.get(key(2)).await, None);
        assert!(cache.get(key(1)).await.is_some());
        assert_eq!(cache.stats().rejections, 1);
    }

    #[tokio::test]
    async fn tiny_chunks_are_bounded_by_what_they_really_cost() {
        let cache = MemoryCache::new(100 * ENTRY_OVERHEAD_BYTES);
        for offset in 0..1000 {
            cache.insert(key(offset), Bytes::from_static(b"x"));
        }
        assert!(cache.stats().entries < 100);
    }
}
