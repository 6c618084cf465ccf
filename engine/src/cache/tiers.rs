//! Memory before disk.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{AheadRoom, ChunkCache, ChunkKey, DiskCache, MemoryCache, OpenedKey};

/// Opened chunks in memory, before sealed ones on the disk, if there is one.
#[derive(Debug)]
pub struct Tiers<D = DiskCache> {
    /// The fast tier.
    pub memory: Arc<MemoryCache>,
    /// The large tier.
    pub disk: Option<Arc<D>>,
}

#[async_trait]
impl<D: ChunkCache> ChunkCache for Tiers<D> {
    async fn get(&self, key: ChunkKey) -> Option<Bytes> {
        self.disk.as_ref()?.get(key).await
    }

    fn insert(&self, key: ChunkKey, stored: Bytes) {
        if let Some(disk) = &self.disk {
            disk.insert(key, stored);
        }
    }

    fn opened(&self, key: &OpenedKey) -> Option<Bytes> {
        self.memory.opened(key)
    }

    fn keep_opened(&self, key: OpenedKey, blocks: &Bytes) {
        self.memory.keep_opened(key, blocks);
    }

    fn ahead(&self) -> Option<Arc<AheadRoom>> {
        self.memory.ahead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ObjectId, VolumeId};
    use crate::lineage::SourceId;

    #[tokio::test(start_paused = true)]
    async fn memory_holds_what_was_opened_and_the_disk_what_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(DiskCache::open(dir.path(), 64 << 20).unwrap());
        let tiers = Tiers { memory: Arc::new(MemoryCache::new(3000)), disk: Some(disk.clone()) };
        let key = |stored_offset| ChunkKey { segment: ObjectId([1; 16]), stored_offset };
        let source = SourceId::of(VolumeId([1; 16]), None);
        let opened = |stored_offset| OpenedKey { chunk: key(stored_offset), source };
        for offset in 0..2 {
            tiers.insert(key(offset), vec![offset as u8; 500].into());
            tiers.keep_opened(opened(offset), &vec![!(offset as u8); 2000].into());
        }
        disk.drained().await;
        assert_eq!(tiers.opened(&opened(0)), None, "there was room for one");
        assert_eq!(tiers.opened(&opened(1)), Some(vec![!1; 2000].into()));
        for offset in 0..2 {
            assert_eq!(tiers.get(key(offset)).await, Some(vec![offset as u8; 500].into()));
        }
    }
}
