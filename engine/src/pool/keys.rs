//! Generations of the master key: `keys/N`.
//!
//! The master key of a pool never changes; the volumes' data keys are wrapped by it. A generation is the master key
//! wrapped by one user key, so a new user key costs one small object and no data is written again.
//!
//! # Guarantees
//! - Rotation only adds: hosts whose configuration still has the old key go on working until
//!   [`Pool::retire_keys`] removes the older generations.
//! - The newest generation is never removed.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::create::Created;
use super::{LIST_PAGE, Pool, PoolError, layout};
use crate::codec::{KeyError, MasterKey, UserKey, WrappedKey};
use crate::env::Entropy;
use crate::ids::{ObjectId, PoolId};
use crate::store::Listed;

/// The body of a generation.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Generation {
    generation: u64,
    pool: PoolId,
    master: WrappedKey,
    nonce: ObjectId,
}

impl Generation {
    pub(super) fn new(
        generation: u64,
        pool: PoolId,
        master: &MasterKey,
        by: &UserKey,
        entropy: &dyn Entropy,
    ) -> Self {
        let nonce = ObjectId::random(entropy);
        Self { generation, pool, master: by.wrap(master, pool, entropy), nonce }
    }

    pub(super) fn pool(&self) -> PoolId {
        self.pool
    }

    pub(super) fn unwrap(&self, by: &UserKey) -> Result<MasterKey, KeyError> {
        by.unwrap(&self.master, self.pool)
    }
}

impl Pool {
    /// The master key, from the newest generation that the user's key opens.
    pub(super) async fn master_key(
        &self,
        pool: PoolId,
        key: &UserKey,
        deadline: Instant,
    ) -> Result<MasterKey, PoolError> {
        let mut refused = KeyError::WrongKey { what: format!("master key of pool {pool}") };
        for listed in self.generations(deadline).await?.iter().rev() {
            let Some(generation) = self.read::<Generation>(&listed.key, deadline).await? else { continue };
            match generation.unwrap(key) {
                Ok(master) => return Ok(master),
                Err(error) => refused = error,
            }
        }
        Err(self.key_error(refused))
    }

    /// Lets `key` open the pool too, beside the keys that open it now. Returns the number of the new generation.
    pub async fn rotate_key(&self, key: &UserKey, deadline: Instant) -> Result<u64, PoolError> {
        let Some(master) = &self.master else {
            return Err(PoolError::NotEncrypted { pool: self.name.clone() });
        };
        loop {
            let newest =
                self.generations(deadline).await?.last().and_then(|found| layout::number_in(&found.key));
            let next = newest.map_or(1, |newest| newest.0 + 1);
            let generation = Generation::new(next, self.id, master, key, &*self.env.entropy);
            match self.create(&layout::key_generation(next), &generation, deadline).await? {
                Created::Ours => return Ok(next),
                // Another rotation at the same time: ours comes after it.
                Created::Theirs(_) => {}
            }
        }
    }

    /// Removes all key generations but the newest: from now on only the newest user key opens the pool.
    pub async fn retire_keys(&self, deadline: Instant) -> Result<(), PoolError> {
        let generations = self.generations(deadline).await?;
        let Some((_, older)) = generations.split_last() else { return Ok(()) };
        for generation in older {
            self.delete(&generation.key, deadline).await?;
        }
        Ok(())
    }

    pub(super) fn key_error(&self, reason: KeyError) -> PoolError {
        PoolError::Key { pool: self.name.clone(), reason }
    }

    /// One listing is enough: a thousand rotations without a retirement are not a thing that happens.
    async fn generations(&self, deadline: Instant) -> Result<Vec<Listed>, PoolError> {
        self.list(layout::KEYS, None, LIST_PAGE, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::env::Env;
    use crate::pool::Access;
    use crate::store::Memory;

    #[tokio::test]
    async fn a_rotated_key_opens_the_pool_and_the_old_one_until_it_is_retired() {
        let (store, env) = (Memory::default(), Env::system());
        let deadline = Instant::now() + Duration::from_secs(60);
        let (old, new) = (UserKey::random(&*env.entropy), UserKey::random(&*env.entropy));
        let open = async |key: &UserKey| {
            let store = Arc::new(store.clone());
            Pool::over("p", "memory", store, Some(key), Access::ReadWrite, env.clone()).await
        };
        let pool = open(&old).await.unwrap();
        assert!(matches!(open(&new).await, Err(PoolError::Key { .. })));
        assert_eq!(pool.rotate_key(&new, deadline).await.unwrap(), 2);
        assert_eq!(open(&new).await.unwrap().id(), pool.id());
        assert_eq!(open(&old).await.unwrap().id(), pool.id());
        pool.retire_keys(deadline).await.unwrap();
        assert!(matches!(open(&old).await, Err(PoolError::Key { .. })));
        assert_eq!(open(&new).await.unwrap().rotate_key(&old, deadline).await.unwrap(), 3);
    }
}
