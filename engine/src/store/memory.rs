//! A store in memory, for tests and for the simulator to build on.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Listed, Store, StoreError};

/// Objects in a map. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    objects: Arc<Mutex<BTreeMap<String, (Bytes, u64)>>>,
    /// Counts the calls that change something: the store's clock.
    clock: Arc<Mutex<u64>>,
}

impl Memory {
    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, (Bytes, u64)>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the store's clock, in milliseconds: what objects put from now on are said to be modified at.
    pub fn set_time_ms(&self, now_ms: u64) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = now_ms;
    }
}

#[async_trait]
impl Store for Memory {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let now_ms = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        match self.objects().entry(key.into()) {
            std::collections::btree_map::Entry::Occupied(_) => {
                Err(StoreError::AlreadyExists { key: key.into() })
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert((body, now_ms));
                Ok(())
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let objects = self.objects();
        objects.get(key).map(|(body, _)| body.clone()).ok_or_else(|| StoreError::NotFound { key: key.into() })
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let body = self.get(key).await?;
        if range.end > body.len() as u64 || range.start > range.end {
            let reason = format!("bytes {range:?} of an object of {} bytes", body.len());
            return Err(StoreError::Refused { key: key.into(), reason });
        }
        Ok(body.slice(range.start as usize..range.end as usize))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let objects = self.objects();
        let from = after.filter(|after| *after >= prefix).map_or(Bound::Included(prefix), Bound::Excluded);
        let listed = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, (body, modified_ms))| Listed {
                key: key.clone(),
                size_bytes: body.len() as u64,
                modified_ms: *modified_ms,
            });
        Ok(listed.collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.objects().remove(key);
        Ok(())
    }
}
