//! Chunks kept near: what was read from the store, still sealed, so that a disk never sees plaintext and every use
//! checks what it got. Keys are random ids, so an entry is never stale, and clones share entries.
//!
//! [`MemoryCache`] is the small, fast tier, [`DiskCache`] the large one that survives a restart; [`Tiers`] puts the one
//! before the other. One of them serves all volumes of a process. That a chunk which many wait for is fetched once is
//! the reader's business.

mod disk;
mod memory;
mod shelf;
mod stats;
mod tiers;

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

pub use disk::{CacheError, DiskCache};
pub use memory::MemoryCache;
pub use stats::CacheStats;
pub use tiers::Tiers;

use crate::ids::ObjectId;

/// A chunk: its segment's id and where it begins in it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkKey {
    /// The segment.
    pub segment: ObjectId,
    /// The chunk's first byte in it.
    pub stored_offset: u32,
}

/// Somewhere to keep chunks. Losing an entry costs a request, never data.
#[async_trait]
pub trait ChunkCache: Send + Sync + Debug {
    /// The sealed chunk, if it is at hand.
    async fn get(&self, key: ChunkKey) -> Option<Bytes>;

    /// Keeps a sealed chunk, if there is room. Never waits.
    fn insert(&self, key: ChunkKey, stored: Bytes);
}
