//! What the cache does for one volume.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::stats::add;
use super::{AheadRoom, ChunkCache, ChunkKey, OpenedKey};

/// Chunks, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// How many.
    pub chunks: u64,
    /// Their bytes: of blocks where they are open, else as stored.
    pub bytes: u64,
}

/// Where the chunks of a volume came from, for reads and for reading ahead, since it was opened. Who waits for a chunk
/// that is on its way from the store already counts nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeCacheStats {
    /// Found open, in memory.
    pub memory_hits: Count,
    /// Found sealed, on the disk.
    pub disk_hits: Count,
    /// Got from the store.
    pub misses: Count,
}

#[derive(Debug, Default)]
struct Counter {
    chunks: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn count(&self, chunk: &Bytes) {
        add(&self.chunks, 1);
        add(&self.bytes, chunk.len() as u64);
    }

    fn get(&self) -> Count {
        Count { chunks: self.chunks.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// A cache that all volumes share, as one of them uses it.
#[derive(Debug)]
pub struct CountedCache {
    shared: Arc<dyn ChunkCache>,
    memory_hits: Counter,
    disk_hits: Counter,
    misses: Counter,
}

impl CountedCache {
    /// Counts what is done with `shared` through this.
    pub fn new(shared: Arc<dyn ChunkCache>) -> Self {
        let (memory_hits, disk_hits, misses) = Default::default();
        Self { shared, memory_hits, disk_hits, misses }
    }

    /// What it has counted.
    pub fn stats(&self) -> VolumeCacheStats {
        VolumeCacheStats {
            memory_hits: self.memory_hits.get(),
            disk_hits: self.disk_hits.get(),
            misses: self.misses.get(),
        }
    }
}

#[async_trait]
impl ChunkCache for CountedCache {
    async fn get(&self, key: ChunkKey) -> Option<Bytes> {
        self.shared.get(key).await.inspect(|chunk| self.disk_hits.count(chunk))
    }

    fn insert(&self, key: ChunkKey, stored: Bytes) {
        self.misses.count(&stored);
        self.shared.insert(key, stored);
    }

    fn opened(&self, key: &OpenedKey) -> Option<Bytes> {
        self.shared.opened(key).inspect(|chunk| self.memory_hits.count(chunk))
    }

    fn keep_opened(&self, key: OpenedKey, blocks: &Bytes) {
        self.shared.keep_opened(key, blocks);
    }

    fn ahead(&self) -> Option<Arc<AheadRoom>> {
        self.shared.ahead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{DiskCache, MemoryCache, Tiers};
    use crate::ids::{ObjectId, VolumeId};
    use crate::lineage::SourceId;

    #[tokio::test(start_paused = true)]
    async fn volumes_share_a_cache_and_are_counted_apart() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(DiskCache::open(dir.path(), 64 << 20).unwrap());
        let tiers = Tiers { memory: Arc::new(MemoryCache::new(1 << 20)), disk: Some(Arc::clone(&disk)) };
        let shared: Arc<dyn ChunkCache> = Arc::new(tiers);
        let (one, two) = (CountedCache::new(Arc::clone(&shared)), CountedCache::new(shared));
        let chunk = ChunkKey { segment: ObjectId([1; 16]), stored_offset: 0 };
        let opened = OpenedKey { chunk, source: SourceId::of(VolumeId([1; 16]), None) };
        assert!(one.opened(&opened).is_none() && one.get(chunk).await.is_none());
        one.insert(chunk, vec![1; 500].into());
        one.keep_opened(opened, &vec![2; 4096].into());
        disk.drained().await;
        assert!(two.opened(&opened).is_some() && two.get(chunk).await.is_some());

        let count = |chunks, bytes| Count { chunks, bytes };
        let misses = VolumeCacheStats { misses: count(1, 500), ..VolumeCacheStats::default() };
        assert_eq!(one.stats(), misses);
        let (memory_hits, disk_hits) = (count(1, 4096), count(1, 500));
        assert_eq!(two.stats(), VolumeCacheStats { memory_hits, disk_hits, misses: Count::default() });
    }
}
