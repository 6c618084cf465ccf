//! Pools in memory, for the tests of this module.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Access, Pool};
use crate::env::Env;
use crate::store::{Listed, Memory, Store, StoreError};

/// A pool without encryption.
pub(super) async fn pool() -> Arc<Pool> {
    over(Arc::new(Memory::default())).await
}

/// A pool whose store delays requests, loses some, and loses the replies to others.
pub(super) async fn flaky_pool(seed: u64) -> Arc<Pool> {
    over(Arc::new(Flaky { inner: Memory::default(), random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)) }))
        .await
}

async fn over(store: Arc<dyn Store>) -> Arc<Pool> {
    Pool::over("p", "memory", store, None, Access::ReadWrite, Env::system())
        .await
        .expect("a store in memory holds a pool")
}

#[derive(Debug)]
struct Flaky {
    inner: Memory,
    random: Mutex<ChaCha8Rng>,
}

impl Flaky {
    /// Waits for a while; false if the request or the reply is lost.
    async fn passes(&self) -> bool {
        let (pause_ms, passes) = {
            let mut random = self.random.lock().expect("no holder of the lock panics");
            (random.random_range(0..20), random.random_bool(0.8))
        };
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        passes
    }

    async fn disturbed<T>(
        &self,
        key: &str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let lost = || Err(StoreError::Unavailable { key: key.into(), reason: "lost".into() });
        if !self.passes().await {
            return lost();
        }
        let outcome = request.await;
        if self.passes().await { outcome } else { lost() }
    }
}

#[async_trait]
impl Store for Flaky {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.disturbed(key, self.inner.put_if_absent(key, body)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.disturbed(key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.disturbed(key, self.inner.get_range(key, range)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.disturbed(prefix, self.inner.list(prefix, after, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.disturbed(key, self.inner.delete(key)).await
    }
}
