//! What can go wrong with a collection.

use crate::control::ControlError;
use crate::ids::VolumeId;
use crate::log::LogError;
use crate::map::MapError;
use crate::pool::PoolError;
use crate::store::StoreError;
use crate::volume::{FetchError, OpenError, VolumeError};

/// Why a collection stopped. Nothing that is needed was deleted; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The session is over, or could not append.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The log could not be read.
    #[error(transparent)]
    Log(LogError),
    /// The map could not be walked.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Data that is to be moved could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pool could not be read or written.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The volume could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The volume could not be looked at.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Another host has collected a root that this one was about to read: this one no longer owns the volume.
    #[error("volume {volume}: another host has taken over its collection")]
    Overtaken {
        /// The volume.
        volume: VolumeId,
    },
    /// Below the volume's pins lies something that is none: nothing is deleted until it is gone.
    #[error("{key} is not the key of a pin; remove it by hand if no clone needs it")]
    StrayPin {
        /// The key.
        key: String,
    },
    /// The pool of an ancestor is not loaded, so that the pin on it cannot be removed.
    #[error(
        "volume {volume} descends from one in pool {pool}, which is not loaded here; add the pool or the archive target"
    )]
    UnknownPool {
        /// The volume.
        volume: VolumeId,
        /// The pool.
        pool: crate::ids::PoolId,
    },
    /// The volume is not deleted, or something still needs one of its snapshots.
    #[error("volume {volume} is still needed")]
    Needed {
        /// The volume.
        volume: VolumeId,
    },
}

impl GcError {
    /// An error of the log by its cause, so that what is missing from the store is known as such.
    pub(super) fn from_log(error: LogError) -> Self {
        match error {
            LogError::Store(reason) => Self::Map(MapError::Store(reason)),
            LogError::Map(reason) => Self::Map(reason),
            other @ (LogError::Codec(_)
            | LogError::Illegal { .. }
            | LogError::Overtaken { .. }
            | LogError::Raced { .. }
            | LogError::Deadline { .. }) => Self::Log(other),
        }
    }
}

impl From<LogError> for GcError {
    fn from(error: LogError) -> Self {
        Self::from_log(error)
    }
}
