//! The four things the engine asks of a store: put-if-absent, ranged get, list in key order, delete.
//!
//! # Guarantees that the engine builds on
//! - [`Store::put_if_absent`] is atomic: of all creators of one key exactly one wins, and a reader sees a whole body
//!   or none. What it acknowledged is durable.
//! - After an acknowledged put every get and list shows the object; after an acknowledged delete none does.
//! - [`Store::list`] shows every object that existed during the whole call; one put or deleted meanwhile may show or
//!   not.
//!
//! Conditional *update* is never asked for. A put that timed out may still land, at any later time.

mod config;
mod connect;
mod direct;
mod directory;
#[cfg(test)]
mod gate;
mod memory;
mod remote;
mod retry;
mod selftest;

use std::fmt::Debug;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

pub use config::{ConfigError, Credentials, Encryption, PoolConfig, parse_key};
pub use directory::Directory;
#[cfg(test)]
pub(crate) use gate::Gate;
pub use memory::Memory;
pub use remote::Remote;
pub use retry::{Backoff, retry};
pub use selftest::{UnfitStore, self_test};

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The key, relative to the pool.
    pub key: String,
    /// Its size.
    pub size_bytes: u64,
    /// When it was put, by the store's own clock, in milliseconds since the Unix epoch.
    pub modified_ms: u64,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No object has this key.
    #[error("{key}: no such object")]
    NotFound {
        /// The key.
        key: String,
    },
    /// An object has this key already (only from a put). A lost reply to our own put looks like this too: compare.
    #[error("{key}: exists already")]
    AlreadyExists {
        /// The key.
        key: String,
    },
    /// The credentials do not allow it, until the pool's administrator has changed that.
    #[error("{key}: the store denies access: {reason}")]
    Denied {
        /// The key.
        key: String,
        /// What the store said.
        reason: String,
    },
    /// The local disk that holds the store is full.
    #[error("{key}: no space left in the store")]
    Full {
        /// The key.
        key: String,
    },
    /// The store did not answer, or not in time, or said that it is busy. For a put: it may or may not have happened.
    #[error("{key}: the store is unavailable: {reason}")]
    Unavailable {
        /// The key.
        key: String,
        /// What happened.
        reason: String,
    },
    /// The request itself is refused: a bug, or a store that does not speak its protocol.
    #[error("{key}: the store refuses the request: {reason}")]
    Refused {
        /// The key.
        key: String,
        /// What the store said.
        reason: String,
    },
}

impl StoreError {
    /// Whether the same request may succeed later, since what stands in its way is mended outside: the store answers
    /// again, lets us in, or has room.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Denied { .. } | Self::Full { .. } => true,
            Self::NotFound { .. } | Self::AlreadyExists { .. } | Self::Refused { .. } => false,
        }
    }
}

/// An object store, seen from one pool: keys are relative to the pool's prefix.
///
/// One call is one attempt with a time limit of its own; who calls decides about retries.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// Creates `key` with `body`, or fails with [`StoreError::AlreadyExists`] and changes nothing.
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError>;

    /// The whole object.
    async fn get(&self, key: &str) -> Result<Bytes, StoreError>;

    /// The bytes `range` of the object; all of them, or an error.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Up to `limit` objects whose keys begin with `prefix` and are greater than `after`, in key order. Fewer than
    /// `limit` means that there are no more.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError>;

    /// Deletes the object; one that does not exist is deleted already.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
}
