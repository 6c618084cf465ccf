//! What can be wrong with an object, and whom it concerns.

use crate::codec::CodecError;
use crate::control::ControlError;
use crate::host::HostError;
use crate::ids::{Handle, SnapshotId, VolumeId};
use crate::log::LogError;
use crate::map::{MapError, MapObject};
use crate::pool::{PoolError, layout};
use crate::store::StoreError;
use crate::volume::VolumeError;

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    /// It is not there.
    Missing,
    /// It ends too early.
    Truncated,
    /// A checksum or a cipher tag does not match.
    Checksum,
    /// Another object lies in its place.
    Identity,
    /// It is intact and says what it may not, or what only a newer version knows.
    Malformed,
}

impl Fault {
    pub(super) fn of_codec(error: &CodecError) -> Self {
        match error {
            CodecError::Truncated { .. } => Self::Truncated,
            CodecError::BadMagic { .. } | CodecError::Damaged { .. } | CodecError::Unauthentic { .. } => {
                Self::Checksum
            }
            CodecError::WrongObject { .. } => Self::Identity,
            CodecError::NewerVersion { .. }
            | CodecError::Encrypted { .. }
            | CodecError::NotEncrypted { .. }
            | CodecError::TooLarge { .. }
            | CodecError::Malformed { .. } => Self::Malformed,
        }
    }

    /// What a map error that is damage says of its object.
    pub(super) fn of_map(error: &MapError) -> Self {
        match error {
            MapError::Codec(error) => Self::of_codec(error),
            MapError::Store(_) => Self::Missing,
            MapError::UnknownAncestor(_) | MapError::Damaged { .. } | MapError::Refused { .. } => {
                Self::Malformed
            }
        }
    }
}

/// Something of a volume that has a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Place {
    /// The volume as it is now.
    Head,
    /// A snapshot, also one that is deleted and needed by a clone.
    Snapshot {
        /// Which.
        id: SnapshotId,
        /// Its name.
        name: String,
    },
}

/// A range that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Affected {
    /// Of what.
    pub place: Place,
    /// Its first byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// An object, or a chunk of one, that is damaged.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// The object's key in the pool of the volume that owns it.
    pub key: String,
    /// The volume that owns it: the one looked at, or an ancestor.
    pub volume: VolumeId,
    /// Where the damaged chunk, or page of a pack, begins in the object; none if more than that is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_offset: Option<u32>,
    /// What is wrong.
    pub fault: Fault,
    /// The same in words.
    pub reason: String,
    /// What cannot be read for it, sorted. Nothing, if nothing reads what is damaged.
    pub affects: Vec<Affected>,
}

impl Damage {
    pub(super) fn missing(key: String, volume: VolumeId) -> Self {
        let reason = format!("{key} is not there");
        Self { key, volume, chunk_offset: None, fault: Fault::Missing, reason, affects: Vec::new() }
    }

    pub(super) fn undecodable(key: String, volume: VolumeId, error: &CodecError) -> Self {
        let (fault, reason) = (Fault::of_codec(error), error.to_string());
        Self { key, volume, chunk_offset: None, fault, reason, affects: Vec::new() }
    }

    /// Of an object of a map; of one page, if that is the damage and the object a pack that is there.
    pub(super) fn of_map(object: MapObject, page_offset: Option<u32>, error: &MapError) -> Self {
        let fault = Fault::of_map(error);
        Self {
            key: layout::map(object.volume, object.id),
            volume: object.volume,
            chunk_offset: page_offset.filter(|_| fault != Fault::Missing),
            fault,
            reason: error.to_string(),
            affects: Vec::new(),
        }
    }

    /// Notes that `len` bytes cannot be read. Ranges of a place come in order.
    pub(super) fn affect(&mut self, place: &Place, offset: u64, len: u64) {
        match self.affects.last_mut() {
            Some(last) if last.place == *place && last.offset + last.len == offset => last.len += len,
            Some(_) | None => self.affects.push(Affected { place: place.clone(), offset, len }),
        }
    }
}

/// Why a volume could not be looked at, or not be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// There is nothing of the volume but, perhaps, its description.
    #[error("volume {volume} has no record and no segment; there is nothing to look at")]
    Nothing {
        /// The volume.
        volume: VolumeId,
    },
    /// There is no such snapshot, or its volume cannot be read far enough to know.
    #[error("volume {volume} has no snapshot {snapshot} that can be found")]
    NoSuchSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The name of the new volume is taken.
    #[error("a volume named {name:?} exists already; choose another name, or delete that one")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A snapshot that is needed is out of reach.
    #[error("{handle} is needed and cannot be reached: add its pool or archive target")]
    Unreachable {
        /// The snapshot.
        handle: Handle,
    },
    /// The source of a repair is not known to be a copy of the volume.
    #[error(
        "{handle} is no copy of a snapshot that volume {volume} has: name a point that was archived of it, whose \
         snapshot still exists"
    )]
    NoCopy {
        /// The volume.
        volume: VolumeId,
        /// The source.
        handle: Handle,
    },
    /// A volume cannot be opened, so nothing can be put back into it.
    #[error("volume {volume} cannot be opened ({reason}): rebuild it into a new one")]
    Unopenable {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: String,
    },
    /// The pool failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The map failed.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new volume could not be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The new volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<HostError> for SalvageError {
    fn from(error: HostError) -> Self {
        Self::Control(error.into())
    }
}
