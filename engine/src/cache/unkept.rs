//! A cache for who reads everything once.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{ChunkCache, ChunkKey, OpenedKey};

/// Shows what is in another cache, and puts nothing there: what is read once must not throw out what others use.
#[derive(Debug, Clone)]
pub struct Unkept(pub Arc<dyn ChunkCache>);

#[async_trait]
impl ChunkCache for Unkept {
    async fn get(&self, key: ChunkKey) -> Option<Bytes> {
        self.0.get(key).await
    }

    fn opened(&self, key: &OpenedKey) -> Option<Bytes> {
        self.0.opened(key)
    }
}
