//! Newtypes for everything that has an identity, so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::env::Entropy;

/// Bytes of a block, the unit of the map. Smaller accesses are read-modify-write.
pub const BLOCK_BYTES: u64 = 4096;

/// Blocks of the longest chunk: 64 KiB.
pub const CHUNK_BLOCKS_MAX: u32 = 16;

/// The text is not what it should name: an id of 32 hexadecimal digits, or a handle made of such ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}")]
pub struct ParseIdError {
    /// What was expected.
    pub what: &'static str,
    /// What was found.
    pub text: String,
}

/// In JSON an id is its text.
macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The id that stands for "none".
            pub const NONE: Self = Self([0; 16]);

            /// A fresh random id.
            pub fn random(entropy: &dyn Entropy) -> Self {
                let mut bytes = [0; 16];
                entropy.fill(&mut bytes);
                Self(bytes)
            }

            /// Whether this is the id that stands for "none".
            pub fn is_none(&self) -> bool {
                *self == Self::NONE
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; 16];
                match hex::decode_to_slice(text, &mut bytes) {
                    // Upper case would give one id two spellings, and a handle must have one.
                    Ok(()) if !text.bytes().any(|b| b.is_ascii_uppercase()) => Ok(Self(bytes)),
                    _ => Err(ParseIdError { what: $what, text: text.into() }),
                }
            }
        }

        as_text!($name);
    };
}

id128!(
    /// A pool: a place in an object store, named by the random id in its `holdfast.json`.
    PoolId,
    "pool id"
);
id128!(
    /// A volume. Random, so unique across pools: a clone names its ancestors by it.
    VolumeId,
    "volume id"
);
id128!(
    /// Any encoded object: segment, record, root, map page. Random; its encryption key is derived from it.
    ///
    /// A record's id is also its *nonce*: a Grant is named by its record's id ([`GrantId`]), a session by that of
    /// its Open record ([`SessionId`]).
    ObjectId,
    "object id"
);

/// A grant, named by the id of its Grant record.
pub type GrantId = ObjectId;

/// A writer's session, named by the id of its Open record.
pub type SessionId = ObjectId;

/// A place in a volume's commit log. The first record has number 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize)]
pub struct RecordNumber(pub u64);

impl RecordNumber {
    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RecordNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A snapshot of a volume: the number of the record that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let id = u64::from_str_radix(text, 16).map(Self);
        // Only the canonical spelling: no sign, no leading zeros, lower case.
        id.ok()
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| ParseIdError { what: "snapshot id", text: text.into() })
    }
}

as_text!(SnapshotId);

/// What CSI calls a volume's handle, `<pool-id>-<volume-id>`, or a snapshot's, `<pool-id>-<volume-id>-<snapshot>`:
/// lower-case hexadecimal, at most 82 bytes, valid in every cluster that reaches the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    /// The pool.
    pub pool: PoolId,
    /// The volume in it.
    pub volume: VolumeId,
    /// The snapshot, in a snapshot's handle.
    pub snapshot: Option<SnapshotId>,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pool, self.volume)?;
        self.snapshot.map_or(Ok(()), |snapshot| write!(f, "-{snapshot}"))
    }
}

impl FromStr for Handle {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let malformed = || ParseIdError { what: "handle", text: text.into() };
        let mut parts = text.split('-');
        let pool = parts.next().unwrap_or_default().parse().map_err(|_| malformed())?;
        let volume = parts.next().ok_or_else(malformed)?.parse().map_err(|_| malformed())?;
        let snapshot = match parts.next() {
            Some(digits) => Some(digits.parse().map_err(|_| malformed())?),
            None => None,
        };
        let handle = Self { pool, volume, snapshot };
        // Only the canonical spelling is accepted: one thing, one handle.
        if parts.next().is_some() || handle.to_string() != text { Err(malformed()) } else { Ok(handle) }
    }
}

as_text!(Handle);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_survives_its_text() {
        for snapshot in [None, Some(SnapshotId(1)), Some(SnapshotId(0x12c)), Some(SnapshotId(u64::MAX))] {
            let handle = Handle { pool: PoolId([0xab; 16]), volume: VolumeId([7; 16]), snapshot };
            let text = handle.to_string();
            assert!(text.len() <= 128);
            assert_eq!(text.parse(), Ok(handle));
        }
    }

    #[test]
    fn other_spellings_of_a_handle_are_refused() {
        let pool = "ab".repeat(16);
        let volume = "07".repeat(16);
        for text in [
            String::new(),
            pool.clone(),
            format!("{pool}-{}", &volume[1..]),
            format!("{}-{volume}", pool.to_uppercase()),
            format!("{pool}-{volume}-"),
            format!("{pool}-{volume}-012c"),
            format!("{pool}-{volume}-+1"),
            format!("{pool}-{volume}-1-2"),
        ] {
            assert!(text.parse::<Handle>().is_err(), "{text:?} was accepted");
        }
    }
}
