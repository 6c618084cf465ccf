//! A pool's way to its store: counts what goes through, and stays the same when the store is reached anew.
//!
//! Credentials change while volumes are open. Everything that reads or writes holds the pool's connection, so new
//! credentials reach all of it at once.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::{Listed, Store, StoreError};

/// What is asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestKind {
    /// Creating an object.
    Put,
    /// Reading an object or a part of one.
    Get,
    /// Listing.
    List,
    /// Deleting an object.
    Delete,
}

impl RequestKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Put, Self::Get, Self::List, Self::Delete];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// What has gone through a connection since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestCounts {
    /// Requests, also failed ones.
    pub requests: u64,
    /// Those that failed because the store was unavailable, denied access, was full or refused.
    pub failures: u64,
    /// Bytes of objects put or read.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn note<T>(&self, outcome: &Result<T, StoreError>, bytes: impl FnOnce(&T) -> usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(answer) => {
                self.bytes.fetch_add(bytes(answer) as u64, Ordering::Relaxed);
            }
            // Answers, and expected ones.
            Err(StoreError::NotFound { .. } | StoreError::AlreadyExists { .. }) => {}
            Err(
                StoreError::Denied { .. }
                | StoreError::Full { .. }
                | StoreError::Unavailable { .. }
                | StoreError::Refused { .. },
            ) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Connection {
    way: RwLock<(String, Arc<dyn Store>)>,
    counters: [Counter; RequestKind::ALL.len()],
}

impl Connection {
    pub(super) fn new(url: String, store: Arc<dyn Store>) -> Self {
        Self { way: RwLock::new((url, store)), counters: Default::default() }
    }

    /// Requests from now on go to `store` at `url`, which must show the same objects.
    pub(super) fn replace(&self, url: String, store: Arc<dyn Store>) {
        *self.way.write().unwrap_or_else(PoisonError::into_inner) = (url, store);
    }

    /// Where requests go now.
    pub(super) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.way().1)
    }

    /// The URL of where requests go now.
    pub(super) fn url(&self) -> String {
        self.way().0.clone()
    }

    fn way(&self) -> RwLockReadGuard<'_, (String, Arc<dyn Store>)> {
        self.way.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self, kind: RequestKind) -> RequestCounts {
        let counter = self.counter(kind);
        RequestCounts {
            requests: counter.requests.load(Ordering::Relaxed),
            failures: counter.failures.load(Ordering::Relaxed),
            bytes: counter.bytes.load(Ordering::Relaxed),
        }
    }

    fn counter(&self, kind: RequestKind) -> &Counter {
        &self.counters[kind as usize]
    }
}

#[async_trait]
impl Store for Connection {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let bytes = body.len();
        let outcome = self.store().put_if_absent(key, body).await;
        self.counter(RequestKind::Put).note(&outcome, |()| bytes);
        outcome
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let outcome = self.store().get(key).await;
        self.counter(RequestKind::Get).note(&outcome, Bytes::len);
        outcome
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let outcome = self.store().get_range(key, range).await;
        self.counter(RequestKind::Get).note(&outcome, Bytes::len);
        outcome
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let outcome = self.store().list(prefix, after, limit).await;
        self.counter(RequestKind::List).note(&outcome, |_| 0);
        outcome
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let outcome = self.store().delete(key).await;
        self.counter(RequestKind::Delete).note(&outcome, |()| 0);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;

    #[tokio::test]
    async fn requests_are_counted_by_kind_and_answers_are_no_failures() {
        let connection = Connection::new("memory".into(), Arc::new(Memory::default()));
        connection.put_if_absent("k", Bytes::from_static(b"four")).await.unwrap();
        connection.put_if_absent("k", Bytes::from_static(b"more")).await.unwrap_err();
        connection.get_range("k", 1..3).await.unwrap();
        connection.get("missing").await.unwrap_err();
        connection.get_range("k", 1..9).await.unwrap_err();
        let put = RequestCounts { requests: 2, failures: 0, bytes: 4 };
        let get = RequestCounts { requests: 3, failures: 1, bytes: 2 };
        assert_eq!(connection.counts(RequestKind::Put), put);
        assert_eq!(connection.counts(RequestKind::Get), get);
        assert_eq!(connection.counts(RequestKind::List), RequestCounts::default());
    }

    #[tokio::test]
    async fn a_replaced_store_is_used_at_once() {
        let connection = Connection::new("memory".into(), Arc::new(Memory::default()));
        let other = Memory::default();
        other.put_if_absent("k", Bytes::from_static(b"there")).await.unwrap();
        connection.replace("other".into(), Arc::new(other));
        assert_eq!(connection.get("k").await.unwrap(), "there");
        assert_eq!(connection.url(), "other");
    }
}
