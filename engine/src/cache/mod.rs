//! Chunks kept near. On the disk they are sealed, as they came from the store: a disk never sees plaintext, and every use
//! checks what it got. In memory they are open: checked when they were opened, by this process, and not again. They are
//! shown only to who would open them with the same key. Chunks are named by random ids, so an entry is never stale, and
//! clones share entries.
//!
//! [`MemoryCache`] is the small, fast tier, [`DiskCache`] the large one that survives a restart; [`Tiers`] puts the one
//! before the other. One of them serves all volumes of a process; [`CountedCache`] counts what one volume has of it.
//! That a chunk which many wait for is fetched once is the reader's business.

mod ahead;
mod counted;
mod disk;
mod memory;
mod shelf;
mod stats;
mod tiers;
mod unkept;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use ahead::{AheadReader, AheadRoom};
pub use counted::{Count, CountedCache, VolumeCacheStats};
pub use disk::{CacheError, DiskCache};
pub use memory::MemoryCache;
pub use stats::CacheStats;
pub use tiers::Tiers;
pub use unkept::Unkept;

use crate::ids::ObjectId;
use crate::lineage::SourceId;

/// A chunk: its segment's id and where it begins in it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkKey {
    /// The segment.
    pub segment: ObjectId,
    /// The chunk's first byte in it.
    pub stored_offset: u32,
}

/// A chunk that has been opened, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenedKey {
    /// The chunk.
    pub chunk: ChunkKey,
    /// The volume whose segment it lies in, and its data key.
    pub source: SourceId,
}

/// Somewhere to keep chunks, sealed, opened or both. Losing an entry costs a request, never data.
#[async_trait]
pub trait ChunkCache: Send + Sync + Debug {
    /// The sealed chunk, if it is at hand.
    async fn get(&self, _key: ChunkKey) -> Option<Bytes> {
        None
    }

    /// Keeps a sealed chunk, if there is room. Never waits.
    fn insert(&self, _key: ChunkKey, _stored: Bytes) {}

    /// The blocks of a chunk that this process has opened, if they are at hand. Never waits.
    fn opened(&self, _key: &OpenedKey) -> Option<Bytes> {
        None
    }

    /// Keeps the blocks of a chunk that has been opened, if there is room. Never waits.
    fn keep_opened(&self, _key: OpenedKey, _blocks: &Bytes) {}

    /// What may be read ahead into it; none if what it keeps would be gone before it is used.
    fn ahead(&self) -> Option<Arc<AheadRoom>> {
        None
    }
}
