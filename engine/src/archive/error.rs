//! What can go wrong with archives.

use crate::control::ControlError;
use crate::host::HostError;
use crate::ids::{Handle, VolumeId};
use crate::log::LogError;
use crate::map::MapError;
use crate::pool::PoolError;
use crate::salvage::SalvageError;
use crate::store::StoreError;
use crate::volume::{FetchError, VolumeError};

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The handle names no snapshot.
    #[error("{handle} is not the handle of a snapshot")]
    NoSnapshot {
        /// The handle.
        handle: Handle,
    },
    /// The pool of the source is not loaded here.
    #[error("the pool of {handle} is not loaded here")]
    UnknownPool {
        /// The handle.
        handle: Handle,
    },
    /// It is the newest point of its volume, which the next run builds on.
    #[error(
        "{handle} is the newest point of its volume, which the next run builds on: it stays until the archive's volume is deleted"
    )]
    Newest {
        /// The handle.
        handle: Handle,
    },
    /// Another run is at work on the same archive.
    #[error("another run is at work on the archive volume {volume}")]
    Busy {
        /// The archive's volume.
        volume: VolumeId,
    },
    /// The archive or its source could not be prepared.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Something could not be opened.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The archive's volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A map failed.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A point could not be looked at.
    #[error(transparent)]
    Salvage(#[from] SalvageError),
    /// Data of the source could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl From<PoolError> for ArchiveError {
    fn from(error: PoolError) -> Self {
        Self::Control(error.into())
    }
}

impl From<LogError> for ArchiveError {
    fn from(error: LogError) -> Self {
        Self::Control(error.into())
    }
}

impl From<StoreError> for ArchiveError {
    fn from(error: StoreError) -> Self {
        Self::Control(error.into())
    }
}
