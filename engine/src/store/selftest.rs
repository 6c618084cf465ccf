//! Finding out whether a store keeps the promises that volumes are built on, before anything is entrusted to it.
//!
//! A store that ignores put-if-absent, or lets two racing creators win, would corrupt volumes. Some are right one by
//! one and wrong in a race, so the test races.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::{Store, StoreError};
use crate::env::Env;
use crate::ids::ObjectId;

/// Creators that race for one key.
const RACERS: usize = 16;
/// Keys they race for.
const ROUNDS: usize = 6;
/// Larger than a small body: some stores take another path for those.
const BODY_BYTES: usize = 16 << 10;
/// How long the test may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a store is not fit for a pool.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UnfitStore {
    /// It broke a promise.
    #[error("the store must not be used as a pool: {promise}; volumes in it would be corrupted")]
    Breaks {
        /// What it did.
        promise: &'static str,
    },
    /// It could not be tested.
    #[error("the store could not be tested: {0}")]
    Untested(#[from] StoreError),
}

/// Tests `store`, with objects below `selftest/` that are deleted again.
pub async fn self_test(store: &dyn Store, env: &Env) -> Result<(), UnfitStore> {
    let run = ObjectId::random(&*env.entropy);
    let prefix = format!("selftest/{run}/");
    let outcome = match tokio::time::timeout(PATIENCE, test(store, &prefix)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let reason = format!("the test took longer than {} s", PATIENCE.as_secs());
            Err(StoreError::Unavailable { key: prefix.clone(), reason }.into())
        }
    };
    let cleaned = clean(store, &prefix).await;
    outcome?;
    Ok(cleaned?)
}

async fn test(store: &dyn Store, prefix: &str) -> Result<(), UnfitStore> {
    let breaks = |promise| Err(UnfitStore::Breaks { promise });
    for round in 0..ROUNDS {
        let key = format!("{prefix}{round:02}");
        let bodies: Vec<Bytes> =
            (0..RACERS).map(|racer| Bytes::from(vec![racer as u8; BODY_BYTES])).collect();
        let outcomes = join_all(bodies.iter().map(|body| store.put_if_absent(&key, body.clone()))).await;
        let mut winners = Vec::new();
        for (body, outcome) in bodies.iter().zip(outcomes) {
            match outcome {
                Ok(()) => winners.push(body),
                // A store may be too busy for this many racers: who was turned away has not won.
                Err(StoreError::AlreadyExists { .. } | StoreError::Unavailable { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if winners.len() > 1 {
            return breaks("of several clients that created one key at once, more than one succeeded");
        }
        let found = store.get(&key).await?;
        if winners.first().is_some_and(|winner| **winner != found) {
            return breaks("an object does not hold what its creator put");
        }
        match store.put_if_absent(&key, Bytes::from_static(b"late")).await {
            Err(StoreError::AlreadyExists { .. }) => {}
            Ok(()) => return breaks("it replaced an object that existed"),
            Err(error) => return Err(error.into()),
        }
        if store.get(&key).await? != found {
            return breaks("a refused put changed the object");
        }
        let (from, to) = (BODY_BYTES as u64 / 2, BODY_BYTES as u64 - 1);
        if store.get_range(&key, from..to).await? != found.slice(from as usize..to as usize) {
            return breaks("a ranged get returned other bytes");
        }
    }
    let listed = store.list(prefix, None, ROUNDS).await?;
    let keys: Vec<String> = (0..ROUNDS).map(|round| format!("{prefix}{round:02}")).collect();
    if !listed.iter().map(|found| &found.key).eq(&keys) {
        return breaks("a listing is not complete or not in key order");
    }
    let after = store.list(prefix, Some(&keys[1]), ROUNDS).await?;
    if !after.iter().map(|found| &found.key).eq(&keys[2..]) {
        return breaks("a listing after a key is not complete or not in key order");
    }
    store.delete(&keys[0]).await?;
    store.delete(&keys[0]).await?;
    match store.get(&keys[0]).await {
        Err(StoreError::NotFound { .. }) => Ok(()),
        Ok(_) => breaks("a deleted object is still there"),
        Err(error) => Err(error.into()),
    }
}

async fn clean(store: &dyn Store, prefix: &str) -> Result<(), StoreError> {
    for listed in store.list(prefix, None, 1000).await? {
        store.delete(&listed.key).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use async_trait::async_trait;

    use super::*;
    use crate::store::{Listed, Memory};

    /// How a store can be wrong.
    #[derive(Debug, Clone, Copy)]
    enum Flaw {
        /// Put-if-absent is a put.
        Ignores,
        /// The check and the put are two steps: right one by one, wrong in a race.
        Races,
    }

    #[derive(Debug)]
    struct Flawed {
        inner: Memory,
        flaw: Flaw,
    }

    #[async_trait]
    impl Store for Flawed {
        async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
            if matches!(self.flaw, Flaw::Races) && self.inner.get(key).await.is_ok() {
                return Err(StoreError::AlreadyExists { key: key.into() });
            }
            tokio::task::yield_now().await;
            self.inner.delete(key).await?;
            self.inner.put_if_absent(key, body).await
        }

        async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
            self.inner.get(key).await
        }

        async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
            self.inner.get_range(key, range).await
        }

        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            limit: usize,
        ) -> Result<Vec<Listed>, StoreError> {
            self.inner.list(prefix, after, limit).await
        }

        async fn delete(&self, key: &str) -> Result<(), StoreError> {
            self.inner.delete(key).await
        }
    }

    #[tokio::test]
    async fn stores_that_keep_their_promises_pass() {
        let env = Env::system();
        let memory = Memory::default();
        self_test(&memory, &env).await.unwrap();
        assert!(memory.list("", None, 1).await.unwrap().is_empty(), "the test left objects behind");
        let directory = tempfile::tempdir().unwrap();
        let store = crate::store::Directory::new(directory.path().to_owned());
        self_test(&store, &env).await.unwrap();
    }

    #[tokio::test]
    async fn stores_that_ignore_or_race_creation_are_refused() {
        for flaw in [Flaw::Ignores, Flaw::Races] {
            let store = Flawed { inner: Memory::default(), flaw };
            let refused = self_test(&store, &Env::system()).await;
            assert!(matches!(refused, Err(UnfitStore::Breaks { .. })), "{flaw:?}: {refused:?}");
        }
    }
}
