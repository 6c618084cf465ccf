//! `holdfast.json`: what makes a place in a store a pool.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::create::Created;
use super::keys::Generation;
use super::{Access, Pool, PoolError, layout};
use crate::codec::{MasterKey, UserKey};
use crate::ids::{ObjectId, PoolId};

/// The format that this version writes, and the newest that it reads.
const FORMAT_VERSION: u32 = 1;

/// The body of `holdfast.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    format_version: u32,
    pool: PoolId,
    /// Tells the master key of an encrypted pool; absent from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_check: Option<String>,
    created_ms: u64,
    nonce: ObjectId,
}

/// A pool that exists and whose key fits.
pub(super) struct Unlocked {
    pub(super) id: PoolId,
    pub(super) master: Option<MasterKey>,
}

impl Pool {
    /// The pool that is here; `None` if there is none and one may be made.
    pub(super) async fn find(
        &self,
        key: Option<&UserKey>,
        deadline: Instant,
    ) -> Result<Option<Unlocked>, PoolError> {
        match self.read(layout::POOL, deadline).await? {
            Some(description) => self.unlock(&description, key, deadline).await.map(Some),
            None if self.access == Access::ReadOnly => Err(PoolError::Absent { pool: self.name.clone() }),
            None if self.list(layout::VOLUMES, None, 1, deadline).await?.is_empty() => Ok(None),
            None => Err(PoolError::Headless { pool: self.name.clone() }),
        }
    }

    /// Makes the pool. The first key generation comes first, and with it the id: whoever makes an encrypted pool at
    /// the same time, or after a crash, adopts both, so that the key of `holdfast.json` is never one that was lost.
    pub(super) async fn make(&self, key: Option<&UserKey>, deadline: Instant) -> Result<Unlocked, PoolError> {
        let entropy = &*self.env.entropy;
        let (pool, key_check) = match key {
            None => (PoolId::random(entropy), None),
            Some(key) => {
                let pool = PoolId::random(entropy);
                let first = Generation::new(1, pool, &MasterKey::random(entropy), key, entropy);
                let first = match self.create(&layout::key_generation(1), &first, deadline).await? {
                    Created::Ours => first,
                    Created::Theirs(theirs) => theirs,
                };
                let master = first.unwrap(key).map_err(|reason| self.key_error(reason))?;
                (first.pool(), Some(master.check_value(first.pool())))
            }
        };
        let description = Description {
            format_version: FORMAT_VERSION,
            pool,
            key_check,
            created_ms: self.env.clock.now_ms(),
            nonce: ObjectId::random(entropy),
        };
        let description = match self.create(layout::POOL, &description, deadline).await? {
            Created::Ours => description,
            Created::Theirs(theirs) => theirs,
        };
        self.unlock(&description, key, deadline).await
    }

    async fn unlock(
        &self,
        description: &Description,
        key: Option<&UserKey>,
        deadline: Instant,
    ) -> Result<Unlocked, PoolError> {
        let pool = || self.name.clone();
        if description.format_version > FORMAT_VERSION {
            let found = description.format_version;
            return Err(PoolError::Newer { pool: pool(), found, known: FORMAT_VERSION });
        }
        match (&description.key_check, key) {
            (None, None) => Ok(Unlocked { id: description.pool, master: None }),
            (None, Some(_)) => Err(PoolError::NotEncrypted { pool: pool() }),
            (Some(_), None) => Err(PoolError::KeyMissing { pool: pool() }),
            (Some(check), Some(key)) => {
                let master = self.master_key(description.pool, key, deadline).await?;
                if master.check_value(description.pool) != *check {
                    return Err(PoolError::Malformed {
                        pool: pool(),
                        key: layout::POOL.into(),
                        reason: "it names another master key than the pool's key generations hold".into(),
                    });
                }
                Ok(Unlocked { id: description.pool, master: Some(master) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use futures::future::join_all;

    use super::*;
    use crate::env::Env;
    use crate::store::{Memory, Store};

    async fn open(store: &Memory, key: Option<&UserKey>) -> Result<Arc<Pool>, PoolError> {
        Pool::over("p", "memory", Arc::new(store.clone()), key, Access::ReadWrite, Env::system()).await
    }

    fn user_key() -> UserKey {
        UserKey::random(&*Env::system().entropy)
    }

    async fn objects(store: &Memory) -> Vec<String> {
        store.list("", None, 100).await.unwrap().into_iter().map(|found| found.key).collect()
    }

    #[tokio::test]
    async fn all_who_open_an_empty_place_see_one_pool() {
        for key in [None, Some(user_key())] {
            let store = Memory::default();
            let opened = join_all((0..16).map(|_| open(&store, key.as_ref()))).await;
            let ids: Vec<_> = opened.iter().map(|pool| pool.as_ref().unwrap().id()).collect();
            assert!(ids.iter().all(|id| *id == ids[0] && !id.is_none()), "{ids:?}");
        }
    }

    #[tokio::test]
    async fn a_wrong_a_missing_and_a_superfluous_key_are_told_apart_and_write_nothing() {
        let encrypted = Memory::default();
        open(&encrypted, Some(&user_key())).await.unwrap();
        let before = objects(&encrypted).await;
        let wrong = open(&encrypted, Some(&user_key())).await;
        assert!(matches!(&wrong, Err(PoolError::Key { pool, .. }) if pool == "p"), "{wrong:?}");
        assert!(matches!(open(&encrypted, None).await, Err(PoolError::KeyMissing { .. })));
        assert_eq!(objects(&encrypted).await, before);

        let plain = Memory::default();
        open(&plain, None).await.unwrap();
        let superfluous = open(&plain, Some(&user_key())).await;
        assert!(matches!(superfluous, Err(PoolError::NotEncrypted { .. })));
        assert_eq!(objects(&plain).await, [layout::POOL]);
    }

    #[tokio::test]
    async fn a_crash_between_key_and_description_leaves_a_place_that_opens() {
        let (store, key) = (Memory::default(), user_key());
        let id = open(&store, Some(&key)).await.unwrap().id();
        store.delete(layout::POOL).await.unwrap();
        assert_eq!(open(&store, Some(&key)).await.unwrap().id(), id);
    }

    #[tokio::test]
    async fn volumes_without_a_description_are_not_taken_for_an_empty_place() {
        let store = Memory::default();
        store.put_if_absent("volumes/x", Bytes::new()).await.unwrap();
        assert!(matches!(open(&store, None).await, Err(PoolError::Headless { .. })));
        assert_eq!(objects(&store).await, ["volumes/x"]);
    }

    #[tokio::test]
    async fn a_reader_makes_no_pool() {
        let store = Memory::default();
        let shared = Arc::new(store.clone());
        let refused = Pool::over("p", "memory", shared, None, Access::ReadOnly, Env::system()).await;
        assert!(matches!(refused, Err(PoolError::Absent { .. })));
        assert!(objects(&store).await.is_empty());
    }

    #[tokio::test]
    async fn newer_and_damaged_pools_are_refused() {
        for (body, newer) in [
            (
                format!(r#"{{"formatVersion":9,"pool":"{0}","createdMs":0,"nonce":"{0}"}}"#, "07".repeat(16)),
                true,
            ),
            ("not json".into(), false),
        ] {
            let store = Memory::default();
            store.put_if_absent(layout::POOL, body.into()).await.unwrap();
            match open(&store, None).await {
                Err(PoolError::Newer { found: 9, .. }) => assert!(newer),
                Err(PoolError::Malformed { .. }) => assert!(!newer),
                other => panic!("{other:?}"),
            }
        }
    }
}
