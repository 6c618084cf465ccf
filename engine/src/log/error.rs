//! What can go wrong with a log.

use super::Inert;
use crate::codec::CodecError;
use crate::ids::{RecordNumber, VolumeId};
use crate::map::MapError;
use crate::store::StoreError;

/// Why a log could not be read or appended to.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object of the volume cannot be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The map could not follow the log.
    #[error(transparent)]
    Map(#[from] MapError),
    /// What was asked for is not legal on the volume's present state.
    #[error("volume {volume}: {reason}")]
    Illegal {
        /// The volume.
        volume: VolumeId,
        /// Why not.
        reason: Inert,
    },
    /// Others have appended and collected so much meanwhile that the number is gone: replay anew.
    #[error("volume {volume}: record {number} was overtaken by the collector")]
    Overtaken {
        /// The volume.
        volume: VolumeId,
        /// The number.
        number: RecordNumber,
    },
    /// Another request changed the volume meanwhile, in a way that this one may not undo.
    #[error("volume {volume}: another request changed it meanwhile; repeat the request")]
    Raced {
        /// The volume.
        volume: VolumeId,
    },
    /// The time allowed has passed; nothing was started after it.
    #[error("volume {volume}: no time left to append; the request may be repeated")]
    Deadline {
        /// The volume.
        volume: VolumeId,
    },
}
