//! Create-only objects in JSON: writing one, and finding out whose it became.
//!
//! Every body holds a random nonce, so two of them are equal only if one is a repetition of the other. That is how a
//! create whose reply was lost is told from one that another has won.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{Pool, PoolError};
use crate::store::{Backoff, Store, StoreError, retry};

/// What lies at a key after an attempt to create it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Created<T> {
    /// What was sent.
    Ours,
    /// What another had put there before.
    Theirs(T),
}

impl Pool {
    /// Creates `key` with `value` unless there is something, and says what is there now.
    pub(super) async fn create<T>(
        &self,
        key: &str,
        value: &T,
        deadline: Instant,
    ) -> Result<Created<T>, PoolError>
    where
        T: Serialize + DeserializeOwned,
    {
        let body = serde_json::to_vec(value).map(Bytes::from).map_err(|error| PoolError::Malformed {
            pool: self.name.clone(),
            key: key.to_owned(),
            reason: error.to_string(),
        })?;
        let mut backoff = Backoff::default();
        loop {
            let error = match self.connection.put_if_absent(key, body.clone()).await {
                Ok(()) => return Ok(Created::Ours),
                Err(error @ StoreError::AlreadyExists { .. }) => match self.bytes(key, deadline).await? {
                    Some(found) if found == body => return Ok(Created::Ours),
                    Some(found) => return self.parse(key, &found).map(Created::Theirs),
                    // Deleted between the two calls, or the store speaks of a conflict that is over: try again.
                    None => error,
                },
                Err(error @ StoreError::Unavailable { .. }) => error,
                Err(error) => return Err(self.store_error(error)),
            };
            if Instant::now() >= deadline {
                return Err(self.store_error(error));
            }
            backoff.pause(&self.env).await;
        }
    }

    /// Reads the JSON object `key`; `None` if there is none.
    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        key: &str,
        deadline: Instant,
    ) -> Result<Option<T>, PoolError> {
        self.bytes(key, deadline).await?.map(|bytes| self.parse(key, &bytes)).transpose()
    }

    async fn bytes(&self, key: &str, deadline: Instant) -> Result<Option<Bytes>, PoolError> {
        match retry(&self.env, deadline, || self.connection.get(key)).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.store_error(error)),
        }
    }

    fn parse<T: DeserializeOwned>(&self, key: &str, bytes: &Bytes) -> Result<T, PoolError> {
        serde_json::from_slice(bytes).map_err(|error| PoolError::Malformed {
            pool: self.name.clone(),
            key: key.to_owned(),
            reason: error.to_string(),
        })
    }
}
