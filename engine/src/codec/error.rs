//! What can be wrong with the bytes of an object.

use std::fmt;

use super::ObjectKind;
use crate::ids::{ObjectId, RecordNumber, VolumeId};

/// An object as its key names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectName {
    /// A segment or an object of the map.
    ById {
        /// What it is.
        kind: ObjectKind,
        /// Whose it is.
        volume: VolumeId,
        /// Its id.
        id: ObjectId,
    },
    /// A record or a root; a frame of a journal, by its position.
    ByNumber {
        /// What it is.
        kind: ObjectKind,
        /// Whose it is.
        volume: VolumeId,
        /// Its number.
        number: RecordNumber,
    },
}

impl ObjectName {
    /// What kind of object has this name.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::ById { kind, .. } | Self::ByNumber { kind, .. } => *kind,
        }
    }

    /// The volume that owns it.
    pub fn volume(&self) -> VolumeId {
        match self {
            Self::ById { volume, .. } | Self::ByNumber { volume, .. } => *volume,
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ById { kind, volume, id } => write!(f, "{kind} {id} of volume {volume}"),
            Self::ByNumber { kind, volume, number } => write!(f, "{kind} {number} of volume {volume}"),
        }
    }
}

/// Why an object could not be encoded or decoded. Nothing of this is cured by trying again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The object ends too early.
    #[error("{object} is truncated: {have} of {need} bytes are there; restore it from a copy of the pool")]
    Truncated {
        /// Which object.
        object: ObjectName,
        /// Bytes that are there.
        have: u64,
        /// Bytes that should be there.
        need: u64,
    },
    /// It does not begin as any object of Holdfast does.
    #[error(
        "{object} does not begin as an object of Holdfast does: something else has overwritten it, or a newer Holdfast wrote it"
    )]
    BadMagic {
        /// Which object.
        object: ObjectName,
    },
    /// It says something that only a newer version knows.
    #[error("{object} was written by a newer Holdfast ({what}): upgrade this one")]
    NewerVersion {
        /// Which object.
        object: ObjectName,
        /// What this version does not know.
        what: String,
    },
    /// Another object lies where this one should.
    #[error("where {object} should lie, there is {found}: restore it from a copy of the pool")]
    WrongObject {
        /// Which object was expected.
        object: ObjectName,
        /// What was found.
        found: String,
    },
    /// A checksum does not match.
    #[error(
        "{object} is damaged at byte {offset}: its checksum does not match; restore it from a copy of the pool"
    )]
    Damaged {
        /// Which object.
        object: ObjectName,
        /// Where the damaged part begins.
        offset: u64,
    },
    /// A part cannot be authenticated: another key, or damage. The cipher cannot tell which.
    #[error(
        "{object} cannot be decrypted at byte {offset}: it is damaged, or was written under another key than the volume's"
    )]
    Unauthentic {
        /// Which object.
        object: ObjectName,
        /// Where the part begins.
        offset: u64,
    },
    /// It is encrypted, and there is no key.
    #[error("{object} is encrypted, but its volume has no key: configure the pool's encryption key")]
    Encrypted {
        /// Which object.
        object: ObjectName,
    },
    /// It is not encrypted, although the volume has a key: nothing vouches for it.
    #[error("{object} is not encrypted, although its volume is: someone without the key has put it there")]
    NotEncrypted {
        /// Which object.
        object: ObjectName,
    },
    /// More than an object of this kind may hold.
    #[error("{object} would exceed a limit: {what} beyond {limit}")]
    TooLarge {
        /// Which object.
        object: ObjectName,
        /// What is too large.
        what: &'static str,
        /// How much of it is allowed.
        limit: usize,
    },
    /// It is intact, and its content makes no sense: a bug in whatever wrote it.
    #[error("{object} is malformed: {what}; please report this")]
    Malformed {
        /// Which object.
        object: ObjectName,
        /// What makes no sense.
        what: &'static str,
    },
}
