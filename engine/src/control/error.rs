//! What can go wrong when the controller acts on volumes.

use super::PublishError;
use crate::codec::CodecError;
use crate::host::HostError;
use crate::ids::{PoolId, SnapshotId, VolumeId};
use crate::log::LogError;
use crate::pool::PoolError;
use crate::snapshot::SnapshotError;
use crate::store::StoreError;
use crate::volume::{OpenError, VolumeError};

/// Why the controller could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The volume does not exist (any more).
    #[error("volume {volume} does not exist")]
    NoSuchVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The snapshot does not exist (any more).
    #[error("volume {volume} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The volume is granted to a node, and must be detached first.
    #[error("volume {volume} is in use on node {node}; it must be detached there first")]
    InUse {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: String,
    },
    /// The volume is open: only its owner can do this, and has to be asked.
    #[error("volume {volume} is open; its owner at {endpoint:?} has to be asked")]
    AskOwner {
        /// The volume.
        volume: VolumeId,
        /// Where the owner is reached; empty if nowhere.
        endpoint: String,
    },
    /// A snapshot of this name belongs to another volume.
    #[error("a snapshot named {name:?} exists already, of volume {volume}")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        volume: VolumeId,
    },
    /// A volume cannot be smaller than what it is made from.
    #[error("{asked_bytes} bytes are too small: the source has {source_bytes}")]
    TooSmall {
        /// The size asked for.
        asked_bytes: u64,
        /// The source's size.
        source_bytes: u64,
    },
    /// A pool that the source needs is not loaded here, or cannot be written to.
    #[error(
        "pool {pool} is needed to make this volume, and is not loaded here with credentials that may write"
    )]
    PoolMissing {
        /// The pool.
        pool: PoolId,
    },
    /// Others changed the volume, its source or its name meanwhile: the request may be repeated.
    #[error("volume {volume}: others are at work on it; repeat the request")]
    Busy {
        /// The volume.
        volume: VolumeId,
    },
    /// The pool failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The volume could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The open volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The snapshot could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl From<HostError> for ControlError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Pool(error) => error.into(),
            HostError::Open(error) => error.into(),
            HostError::Snapshot(error) => error.into(),
        }
    }
}

impl From<CodecError> for ControlError {
    fn from(error: CodecError) -> Self {
        Self::Log(error.into())
    }
}

impl From<StoreError> for ControlError {
    fn from(error: StoreError) -> Self {
        Self::Log(error.into())
    }
}

impl ControlError {
    /// The same as a publish error tells it.
    pub(super) fn publishing(volume: VolumeId, error: PublishError) -> Self {
        match error {
            PublishError::HeldBy { node } => Self::InUse { volume, node },
            PublishError::NoSuchVolume => Self::NoSuchVolume { volume },
            PublishError::Log(error) => Self::Log(error),
        }
    }
}
