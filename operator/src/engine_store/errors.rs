//! What the engine says went wrong, as the reasons that conditions show. Exhaustive: a new error of the engine has to
//! be given its reason here.

use holdfast_engine::archive::ArchiveError;
use holdfast_engine::control::ControlError;
use holdfast_engine::log::LogError;
use holdfast_engine::map::MapError;
use holdfast_engine::pool::PoolError;
use holdfast_engine::salvage::SalvageError;
use holdfast_engine::snapshot::SnapshotError;
use holdfast_engine::store::{self, UnfitStore};

use crate::store::StoreError;

impl From<store::StoreError> for StoreError {
    fn from(error: store::StoreError) -> Self {
        match error {
            store::StoreError::Unavailable { reason, .. } => Self::Unreachable(reason),
            store::StoreError::Denied { key, reason } => Self::AccessDenied(format!("{key}: {reason}")),
            store::StoreError::Full { key } => Self::Full(key),
            store::StoreError::NotFound { key } => Self::NotFound(key),
            store::StoreError::AlreadyExists { .. } | store::StoreError::Refused { .. } => {
                Self::Refused(error.to_string())
            }
        }
    }
}

impl From<PoolError> for StoreError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Store { reason, .. } => reason.into(),
            PoolError::Unfit { reason: UnfitStore::Untested(reason), .. } => reason.into(),
            PoolError::Unfit { reason: UnfitStore::Breaks { promise }, url, .. } => {
                Self::Unsafe(format!("{url}: {promise}"))
            }
            PoolError::Config { reason, .. } => Self::Invalid(reason.to_string()),
            PoolError::Unreadable { .. } | PoolError::BadName { .. } => Self::Invalid(error.to_string()),
            PoolError::Absent { .. } => Self::NotFound(error.to_string()),
            PoolError::KeyMissing { .. } | PoolError::NotEncrypted { .. } | PoolError::Key { .. } => {
                Self::WrongKey(error.to_string())
            }
            PoolError::Headless { .. }
            | PoolError::Newer { .. }
            | PoolError::Malformed { .. }
            | PoolError::NoSuchVolume { .. } => Self::Damaged(error.to_string()),
        }
    }
}

impl From<MapError> for StoreError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Store(reason) => reason.into(),
            MapError::Codec(_)
            | MapError::UnknownAncestor(_)
            | MapError::Damaged { .. }
            | MapError::Refused { .. } => Self::Damaged(error.to_string()),
        }
    }
}

impl From<LogError> for StoreError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Store(reason) => reason.into(),
            LogError::Map(reason) => reason.into(),
            LogError::Codec(_) | LogError::Illegal { .. } => Self::Damaged(error.to_string()),
            // Others were at work meanwhile, or time ran out: the next look comes.
            LogError::Overtaken { .. } | LogError::Raced { .. } | LogError::Deadline { .. } => Self::Timeout,
        }
    }
}

impl From<ControlError> for StoreError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Pool(error) => error.into(),
            ControlError::Log(error) | ControlError::Snapshot(SnapshotError::Log(error)) => error.into(),
            ControlError::PoolMissing { .. } => Self::NotFound(error.to_string()),
            ControlError::Busy { .. } | ControlError::AskOwner { .. } | ControlError::InUse { .. } => {
                Self::Timeout
            }
            ControlError::NoSuchVolume { .. }
            | ControlError::NoSuchSnapshot { .. }
            | ControlError::NameTaken { .. }
            | ControlError::TooSmall { .. }
            | ControlError::Open(_)
            | ControlError::Volume(_)
            | ControlError::Snapshot(SnapshotError::Incomplete { .. }) => Self::Damaged(error.to_string()),
        }
    }
}

impl From<ArchiveError> for StoreError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Control(error) => error.into(),
            ArchiveError::Host(error) => ControlError::from(error).into(),
            ArchiveError::Map(error) => error.into(),
            ArchiveError::Salvage(error) => error.into(),
            ArchiveError::Busy { .. } => Self::Timeout,
            ArchiveError::UnknownPool { .. } => Self::NotFound(error.to_string()),
            ArchiveError::NoSnapshot { .. }
            | ArchiveError::Newest { .. }
            | ArchiveError::Volume(_)
            | ArchiveError::Fetch(_) => Self::Damaged(error.to_string()),
        }
    }
}

impl From<SalvageError> for StoreError {
    fn from(error: SalvageError) -> Self {
        match error {
            SalvageError::Pool(error) => error.into(),
            SalvageError::Log(error) => error.into(),
            SalvageError::Map(error) => error.into(),
            SalvageError::Store(error) => error.into(),
            SalvageError::Control(error) => error.into(),
            SalvageError::NoSuchSnapshot { .. }
            | SalvageError::Nothing { .. }
            | SalvageError::Unreachable { .. } => Self::NotFound(error.to_string()),
            SalvageError::NameTaken { .. }
            | SalvageError::NoCopy { .. }
            | SalvageError::Unopenable { .. }
            | SalvageError::Volume(_) => Self::Damaged(error.to_string()),
        }
    }
}
