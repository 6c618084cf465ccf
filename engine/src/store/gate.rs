//! A store for tests that count its calls, or stop one of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use super::{Listed, Memory, Store, StoreError};

/// A store that counts calls, and lets one of them wait until it is let go.
#[derive(Debug)]
pub(crate) struct Gate {
    inner: Memory,
    calls: AtomicUsize,
    stop_at: usize,
    stop_key: String,
    pub(crate) arrived: Notify,
    pub(crate) go: Notify,
}

impl Gate {
    /// Call number `stop_at` waits, if its key contains `stop_key`; later ones with that key if it does not.
    pub(crate) fn new(inner: &Memory, stop_at: usize, stop_key: &str) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            calls: AtomicUsize::new(0),
            stop_at,
            stop_key: stop_key.into(),
            arrived: Notify::new(),
            go: Notify::new(),
        })
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    async fn pass(&self, key: &str) {
        if key.contains(&self.stop_key) && self.calls.fetch_add(1, Ordering::Relaxed) == self.stop_at {
            self.arrived.notify_one();
            self.go.notified().await;
        }
    }
}

#[async_trait]
impl Store for Gate {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.pass(key).await;
        self.inner.put_if_absent(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.pass(key).await;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.pass(key).await;
        self.inner.get_range(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.pass(prefix).await;
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.pass(key).await;
        self.inner.delete(key).await
    }
}
