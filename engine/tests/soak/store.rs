//! A store that counts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_engine::store::{Listed, Memory, Store, StoreError};

#[derive(Debug, Clone, Default)]
pub struct Counting {
    inner: Memory,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    put_bytes: AtomicU64,
}

impl Counting {
    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.counts.requests.load(Ordering::Relaxed)
    }

    /// Bytes put so far.
    pub fn put_bytes(&self) -> u64 {
        self.counts.put_bytes.load(Ordering::Relaxed)
    }

    /// What lies there. Not counted.
    pub async fn objects(&self) -> Vec<Listed> {
        self.inner.list("", None, usize::MAX).await.unwrap()
    }

    pub async fn stored_bytes(&self) -> u64 {
        self.objects().await.iter().map(|listed| listed.size_bytes).sum()
    }

    fn count(&self) {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Store for Counting {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.count();
        self.counts.put_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        self.inner.put_if_absent(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.count();
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.count();
        self.inner.get_range(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.count();
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.count();
        self.inner.delete(key).await
    }
}
