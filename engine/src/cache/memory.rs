//! The tier in memory: the chunks used last, open, up to a number of bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::stats::{Counters, add};
use super::{AheadRoom, CacheStats, ChunkCache, OpenedKey};

/// What an entry costs beyond its bytes, roughly: so that many tiny chunks are bounded too.
const ENTRY_OVERHEAD_BYTES: u64 = 192;

/// What is read ahead may take one of so many parts: the rest is for what is read again.
const AHEAD_PARTS: u64 = 4;

/// Chunks in memory; the one used longest ago goes first.
#[derive(Debug)]
pub struct MemoryCache {
    capacity_bytes: u64,
    chunks: Mutex<Chunks>,
    counters: Counters,
    ahead: Arc<AheadRoom>,
}

#[derive(Debug, Default)]
struct Chunks {
    by_key: HashMap<OpenedKey, (Bytes, u64)>,
    /// By the time of their last use, counted in uses.
    by_use: BTreeMap<u64, OpenedKey>,
    uses: u64,
    cost_bytes: u64,
}

fn cost_bytes(chunk: &Bytes) -> u64 {
    chunk.len() as u64 + ENTRY_OVERHEAD_BYTES
}

impl Chunks {
    fn get(&mut self, key: &OpenedKey) -> Option<Bytes> {
        let (chunk, used) = self.by_key.get_mut(key)?;
        self.uses += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.uses, *key);
        *used = self.uses;
        Some(chunk.clone())
    }

    fn put(&mut self, key: OpenedKey, chunk: Bytes) {
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
        let ahead = Arc::new(AheadRoom::new(capacity_bytes / AHEAD_PARTS));
        Self { capacity_bytes, chunks: Mutex::default(), counters: Counters::default(), ahead }
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

impl ChunkCache for MemoryCache {
    fn opened(&self, key: &OpenedKey) -> Option<Bytes> {
        let found = self.chunks().get(key);
        self.counters.looked_up(found.is_some());
        found
    }

    fn keep_opened(&self, key: OpenedKey, blocks: &Bytes) {
        if cost_bytes(blocks) > self.capacity_bytes {
            return add(&self.counters.rejections, 1);
        }
        // A copy: the chunk may be a small slice of a large response, which it would keep alive.
        let blocks = Bytes::copy_from_slice(blocks);
        let mut chunks = self.chunks();
        chunks.put(key, blocks);
        add(&self.counters.insertions, 1);
        while chunks.cost_bytes > self.capacity_bytes && chunks.evict() {
            add(&self.counters.evictions, 1);
        }
    }

    fn ahead(&self) -> Option<Arc<AheadRoom>> {
        Some(Arc::clone(&self.ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::ChunkKey;
    use crate::codec::DataKey;
    use crate::ids::{ObjectId, VolumeId};
    use crate::lineage::SourceId;

    fn key(stored_offset: u32) -> OpenedKey {
        let chunk = ChunkKey { segment: ObjectId([3; 16]), stored_offset };
        OpenedKey { chunk, source: SourceId::of(VolumeId([1; 16]), None) }
    }

    #[test]
    fn the_chunk_used_longest_ago_makes_room() {
        let cache = MemoryCache::new(3 * (1000 + ENTRY_OVERHEAD_BYTES));
        for offset in 0..3 {
            cache.keep_opened(key(offset), &vec![offset as u8; 1000].into());
        }
        assert!(cache.opened(&key(0)).is_some());
        cache.keep_opened(key(3), &vec![3; 1000].into());
        assert_eq!(cache.opened(&key(1)), None);
        for offset in [0, 2, 3] {
            assert_eq!(cache.opened(&key(offset)), Some(vec![offset as u8; 1000].into()));
        }
        let stats = cache.stats();
        assert_eq!(
            (stats.hits, stats.misses, stats.evictions, stats.entries, stats.bytes),
            (4, 1, 1, 3, 3000)
        );
    }

    #[test]
    fn what_is_put_again_replaces_and_is_counted_once() {
        let cache = MemoryCache::new(10_000);
        cache.keep_opened(key(1), &vec![1; 2000].into());
        cache.keep_opened(key(1), &vec![2; 500].into());
        assert_eq!(cache.opened(&key(1)), Some(vec![2; 500].into()));
        assert_eq!((cache.stats().entries, cache.stats().bytes), (1, 500));
    }

    #[test]
    fn what_never_fits_is_turned_away_and_throws_nothing_out() {
        let cache = MemoryCache::new(2000);
        cache.keep_opened(key(1), &vec![1; 100].into());
        cache.keep_opened(key(2), &vec![2; 2000].into());
        assert_eq!(cache.opened(&key(2)), None);
        assert!(cache.opened(&key(1)).is_some());
        assert_eq!(cache.stats().rejections, 1);
    }

    #[test]
    fn tiny_chunks_are_bounded_by_what_they_really_cost() {
        let cache = MemoryCache::new(100 * ENTRY_OVERHEAD_BYTES);
        for offset in 0..1000 {
            cache.keep_opened(key(offset), &Bytes::from_static(b"x"));
        }
        assert!(cache.stats().entries < 100);
    }

    #[test]
    fn what_was_opened_with_one_key_is_not_shown_to_who_has_another() {
        let entropy = crate::env::Env::system().entropy;
        let keys = [DataKey::random(&*entropy), DataKey::random(&*entropy)];
        let sources = [Some(&keys[0]), Some(&keys[1]), None].map(|key| SourceId::of(VolumeId([1; 16]), key));
        let cache = MemoryCache::new(10_000);
        cache.keep_opened(OpenedKey { source: sources[0], ..key(1) }, &vec![1; 500].into());
        let shown = sources.map(|source| cache.opened(&OpenedKey { source, ..key(1) }).is_some());
        assert_eq!(shown, [true, false, false]);
    }
}
