//! What can go wrong with a pool.

use crate::codec::KeyError;
use crate::ids::VolumeId;
use crate::store::{ConfigError, StoreError, UnfitStore};

/// Why a pool could not be opened, or did not do what it was asked. `pool` is its local name.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    /// Its file is not usable.
    #[error("pool {pool}: {reason}")]
    Config {
        /// The pool.
        pool: String,
        /// What is wrong with it.
        reason: ConfigError,
    },
    /// Its file cannot be read.
    #[error("pool {pool}: its file cannot be read: {reason}")]
    Unreadable {
        /// The pool.
        pool: String,
        /// What the system said.
        reason: String,
    },
    /// Its store breaks a promise that volumes are built on. Only another store helps.
    #[error("pool {pool} ({url}): {reason}")]
    Unfit {
        /// The pool.
        pool: String,
        /// Where it is.
        url: String,
        /// What the store did.
        reason: UnfitStore,
    },
    /// Its store failed.
    #[error("pool {pool}: {reason}")]
    Store {
        /// The pool.
        pool: String,
        /// How.
        reason: StoreError,
    },
    /// There is no pool at the place, and none may be made: access is read-only.
    #[error(
        "pool {pool}: there is no pool at its URL yet; open it once with credentials that may write, which makes it"
    )]
    Absent {
        /// The pool.
        pool: String,
    },
    /// Its description is gone, its volumes are not.
    #[error(
        "pool {pool}: volumes are there, but holdfast.json is missing: restore it from a copy, or choose another URL"
    )]
    Headless {
        /// The pool.
        pool: String,
    },
    /// A newer version wrote it.
    #[error(
        "pool {pool} has format version {found}, this Holdfast knows up to {known}: upgrade this Holdfast"
    )]
    Newer {
        /// The pool.
        pool: String,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// It is encrypted, and its file gives no key.
    #[error("pool {pool} is encrypted: its file must give encryption.key")]
    KeyMissing {
        /// The pool.
        pool: String,
    },
    /// It is not encrypted, and its file gives a key.
    #[error(
        "pool {pool} is not encrypted, but its file gives encryption.key: remove the key, or choose another URL"
    )]
    NotEncrypted {
        /// The pool.
        pool: String,
    },
    /// A key does not open.
    #[error("pool {pool}: {reason}")]
    Key {
        /// The pool.
        pool: String,
        /// Which, and why.
        reason: KeyError,
    },
    /// An object of the pool is not what it should be.
    #[error("pool {pool}: {key} is damaged: {reason}; restore it from a copy of the pool")]
    Malformed {
        /// The pool.
        pool: String,
        /// The object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that cannot be one.
    #[error("{name:?} cannot be a name: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// The volume does not exist.
    #[error("pool {pool} has no volume {volume}")]
    NoSuchVolume {
        /// The pool.
        pool: String,
        /// The volume.
        volume: VolumeId,
    },
}

impl PoolError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store { reason, .. } | Self::Unfit { reason: UnfitStore::Untested(reason), .. } => {
                match reason {
                    StoreError::Unavailable { .. } | StoreError::Full { .. } => true,
                    StoreError::NotFound { .. }
                    | StoreError::AlreadyExists { .. }
                    | StoreError::Denied { .. }
                    | StoreError::Refused { .. } => false,
                }
            }
            Self::Unreadable { .. } | Self::Absent { .. } => true,
            Self::Unfit { reason: UnfitStore::Breaks { .. }, .. }
            | Self::Config { .. }
            | Self::Headless { .. }
            | Self::Newer { .. }
            | Self::KeyMissing { .. }
            | Self::NotEncrypted { .. }
            | Self::Key { .. }
            | Self::Malformed { .. }
            | Self::BadName { .. }
            | Self::NoSuchVolume { .. } => false,
        }
    }
}
