//! Pools: places in an object store that hold volumes.
//!
//! A pool is made by the first who opens it: `holdfast.json` gives it its random id, and a master key if it is
//! encrypted. Local names of pools are only names; handles hold the id.
//!
//! # Guarantees
//! - Of all who open an empty place at once, one makes the pool and all see the same id and master key.
//! - A pool is opened only if its store has passed the self-test, its format is known, and its key fits; else nothing
//!   has been written, besides the self-test's own objects.
//! - What is bound to a name, described or pinned is decided by create-only objects: repeating a call, also after a
//!   lost reply or a crash, finds what the first call did.
//!
//! # Assumptions
//! Nobody but Holdfast writes below the pool's URL.
//!
//! # Crash behaviour
//! A crash while a pool is made leaves a first key generation that the next opener adopts.

mod connection;
mod create;
mod description;
mod error;
mod keys;
pub mod layout;
mod names;
mod nodes;
mod parameters;
mod pins;
mod set;
mod snapshot_names;
#[cfg(test)]
mod testing;
mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::codec::{DataKey, MasterKey, UserKey};
use crate::env::Env;
use crate::ids::{PoolId, VolumeId};
use crate::lineage::Source;
use crate::store::{Listed, PoolConfig, Store, StoreError, retry, self_test};

use connection::Connection;
pub use connection::{RequestCounts, RequestKind};
use description::Unlocked;
pub use error::PoolError;
pub use names::NamedVolume;
pub use pins::Pin;
pub use set::{PoolEntry, PoolKind, PoolSet, PoolSource, UnknownPool};
pub use snapshot_names::NamedSnapshot;
pub use volumes::{NewVolume, Parent, VolumeJson};

/// How long opening a pool may take, besides its self-test.
const OPEN_TIME: Duration = Duration::from_secs(60);
/// Objects asked for in one listing.
const LIST_PAGE: usize = 1000;
/// Objects read at once for a listing.
const PARALLEL_READS: usize = 16;
/// Data keys kept unwrapped. More volumes than this only cost reading a key again.
const DATA_KEYS_MAX: usize = 4096;

/// What the credentials of a pool allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything. Opening makes the pool if there is none, and tests its store.
    ReadWrite,
    /// Only reading: archives, as nodes see them.
    ReadOnly,
}

/// Part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What was found.
    pub items: Vec<T>,
    /// Where the next part begins; `None` after the last one.
    pub next: Option<String>,
}

/// An open pool.
#[derive(Debug)]
pub struct Pool {
    name: String,
    id: PoolId,
    access: Access,
    master: Option<MasterKey>,
    connection: Arc<Connection>,
    env: Env,
    data_keys: Mutex<BTreeMap<VolumeId, DataKey>>,
}

impl Pool {
    /// Opens the pool that `config` describes, under the local name `name`. Directories must lie below one of `roots`;
    /// no roots allow every directory.
    pub async fn open(
        name: &str,
        config: &PoolConfig,
        roots: &[PathBuf],
        access: Access,
        env: Env,
    ) -> Result<Arc<Self>, PoolError> {
        let unusable = |reason| PoolError::Config { pool: name.to_owned(), reason };
        let store = config.connect(roots).map_err(unusable)?;
        let key = config.user_key().map_err(unusable)?;
        let pool = Self::unopened(name, &config.url, store, access, env);
        // A wrong key or a newer format is found first: then nothing at all is written.
        let found = pool.find(key.as_ref(), Instant::now() + OPEN_TIME).await?;
        if access == Access::ReadWrite {
            self_test(&*pool.connection.store(), &pool.env).await.map_err(|reason| PoolError::Unfit {
                pool: pool.name.clone(),
                url: config.url.clone(),
                reason,
            })?;
        }
        pool.opened(found, key.as_ref()).await
    }

    /// Opens the pool in `store`, which the caller knows to be fit for one.
    pub async fn over(
        name: &str,
        url: &str,
        store: Arc<dyn Store>,
        key: Option<&UserKey>,
        access: Access,
        env: Env,
    ) -> Result<Arc<Self>, PoolError> {
        let pool = Self::unopened(name, url, store, access, env);
        let found = pool.find(key, Instant::now() + OPEN_TIME).await?;
        pool.opened(found, key).await
    }

    fn unopened(name: &str, url: &str, store: Arc<dyn Store>, access: Access, env: Env) -> Self {
        Self {
            name: name.to_owned(),
            id: PoolId::NONE,
            access,
            master: None,
            connection: Arc::new(Connection::new(url.to_owned(), store)),
            env,
            data_keys: Mutex::default(),
        }
    }

    async fn opened(
        mut self,
        found: Option<Unlocked>,
        key: Option<&UserKey>,
    ) -> Result<Arc<Self>, PoolError> {
        let Unlocked { id, master } = match found {
            Some(found) => found,
            None => self.make(key, Instant::now() + OPEN_TIME).await?,
        };
        self.id = id;
        self.master = master;
        Ok(Arc::new(self))
    }

    /// Its id, by which handles name it.
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// Its local name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is now.
    pub fn url(&self) -> String {
        self.connection.url()
    }

    /// What its credentials allow.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether its data are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.master.is_some()
    }

    /// Its store.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.connection) as Arc<dyn Store>
    }

    /// Its environment.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// What has gone to and from its store.
    pub fn requests(&self, kind: RequestKind) -> RequestCounts {
        self.connection.counts(kind)
    }

    /// How a volume of this pool is read.
    pub async fn source(&self, volume: VolumeId, deadline: Instant) -> Result<Source, PoolError> {
        Ok(Source { store: self.store(), key: self.data_key(volume, deadline).await? })
    }

    /// The key of a volume's data; `None` if the pool is not encrypted.
    pub async fn data_key(&self, volume: VolumeId, deadline: Instant) -> Result<Option<DataKey>, PoolError> {
        if self.master.is_none() {
            return Ok(None);
        }
        let known = self.known_keys().get(&volume).cloned();
        match known {
            Some(key) => Ok(Some(key)),
            None => self.volume_json(volume, deadline).await.and_then(|json| self.key_of(&json)),
        }
    }

    fn known_keys(&self) -> std::sync::MutexGuard<'_, BTreeMap<VolumeId, DataKey>> {
        self.data_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets requests go the way that `newer` goes, and so take up its credentials.
    fn reconnect(&self, newer: &Self) {
        self.connection.replace(newer.url(), newer.connection.store());
    }

    fn store_error(&self, reason: StoreError) -> PoolError {
        PoolError::Store { pool: self.name.clone(), reason }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<Listed>, PoolError> {
        retry(&self.env, deadline, || self.connection.list(prefix, after, limit))
            .await
            .map_err(|error| self.store_error(error))
    }

    async fn delete(&self, key: &str, deadline: Instant) -> Result<(), PoolError> {
        retry(&self.env, deadline, || self.connection.delete(key))
            .await
            .map_err(|error| self.store_error(error))
    }
}
