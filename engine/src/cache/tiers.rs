//! Memory before disk.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{ChunkCache, ChunkKey, DiskCache, MemoryCache};

/// Looks into memory first, then on the disk, if there is one; puts chunks into both.
#[derive(Debug, Clone)]
pub struct Tiers {
    /// The fast tier.
    pub memory: Arc<MemoryCache>,
    /// The large tier.
    pub disk: Option<Arc<DiskCache>>,
}

#[async_trait]
impl ChunkCache for Tiers {
    async fn get(&self, key: ChunkKey) -> Option<Bytes> {
        if let Some(found) = self.memory.get(key).await {
            return Some(found);
        }
        let found = self.disk.as_ref()?.get(key).await?;
        self.memory.insert(key, found.clone());
        Some(found)
    }

    fn insert(&self, key: ChunkKey, stored: Bytes) {
        self.memory.insert(key, stored.clone());
        if let Some(disk) = &self.disk {
            disk.insert(key, stored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ObjectId;

    #[tokio::test]
    async fn what_memory_has_dropped_comes_from_the_disk_and_back_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(DiskCache::open(dir.path(), 64 << 20).unwrap());
        let tiers = Tiers { memory: Arc::new(MemoryCache::new(3000)), disk: Some(disk.clone()) };
        let key = |stored_offset| ChunkKey { segment: ObjectId([1; 16]), stored_offset };
        for offset in 0..2 {
            tiers.insert(key(offset), vec![offset as u8; 2000].into());
        }
        disk.drained().await;
        assert_eq!(tiers.memory.get(key(0)).await, None);
        assert_eq!(tiers.get(key(0)).await, Some(vec![0; 2000].into()));
        assert_eq!(tiers.memory.get(key(0)).await, Some(vec![0; 2000].into()));
    }
}
