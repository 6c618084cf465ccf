//! What can go wrong with an open volume.

use std::sync::Arc;

use super::FetchError;
use crate::buffer::BufferError;
use crate::codec::CodecError;
use crate::ids::{RecordNumber, VolumeId};
use crate::log::{Inert, LogError};
use crate::map::MapError;
use crate::store::StoreError;

/// Why a session has ended other than by a close.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// A record that others put in effect ended it: the volume was detached, or opened again.
    #[error("record {number} of another host ended the session")]
    Superseded {
        /// That record.
        number: RecordNumber,
    },
    /// The controller asks for the volume back.
    #[error("the volume is being detached")]
    Fenced,
    /// The volume cannot go on: its log or map is damaged.
    #[error("the volume cannot go on: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
    /// The session was closed.
    #[error("the volume is closed")]
    Closed,
}

/// Why an operation on an open volume failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VolumeError {
    /// The session has ended; nothing is acknowledged any more.
    #[error("volume {volume}: {reason}")]
    Over {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: Over,
    },
    /// The range lies outside the volume.
    #[error("volume {volume}: {len} bytes at {offset} lie outside its {size_bytes} bytes")]
    OutOfRange {
        /// The volume.
        volume: VolumeId,
        /// First byte asked for.
        offset: u64,
        /// How many.
        len: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The store does not take what was answered to the writer. It stays in the dirty buffer and is tried again.
    #[error("volume {volume}: not yet in the store: {reason}")]
    NotCommitted {
        /// The volume.
        volume: VolumeId,
        /// What the store said last.
        reason: Arc<LogError>,
    },
    /// What was asked for is not legal on the volume's present state.
    #[error("volume {volume}: {reason}")]
    Illegal {
        /// The volume.
        volume: VolumeId,
        /// Why not.
        reason: Inert,
    },
    /// Data could not be read.
    #[error("volume {volume}: {reason}")]
    Read {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: FetchError,
    },
    /// The map could not be read or written.
    #[error("volume {volume}: {reason}")]
    Map {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: Arc<MapError>,
    },
    /// The log could not be read or written.
    #[error("volume {volume}: {reason}")]
    Log {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: Arc<LogError>,
    },
    /// An object could not be encoded.
    #[error("volume {volume}: {reason}")]
    Codec {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: CodecError,
    },
    /// The store failed at something other than the log.
    #[error("volume {volume}: {reason}")]
    Store {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: StoreError,
    },
    /// The store has not answered for so long that it is not waited for any more.
    #[error("volume {volume}: the store has not answered for {seconds} s")]
    NoAnswer {
        /// The volume.
        volume: VolumeId,
        /// How long.
        seconds: u64,
    },
    /// The dirty buffer cannot be used.
    #[error("volume {volume}: {reason}")]
    Buffer {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: BufferError,
    },
}

impl VolumeError {
    /// Whether the same operation may succeed later because only the store stands in its way.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotCommitted { .. } | Self::NoAnswer { .. } => true,
            Self::Read { reason: FetchError::Store(reason), .. } | Self::Store { reason, .. } => {
                reason.may_pass()
            }
            Self::Map { reason, .. } => reason.may_pass(),
            Self::Log { reason, .. } => match &**reason {
                LogError::Store(reason) => reason.may_pass(),
                LogError::Map(reason) => reason.may_pass(),
                LogError::Codec(_)
                | LogError::Illegal { .. }
                | LogError::Overtaken { .. }
                | LogError::Raced { .. }
                | LogError::Deadline { .. } => false,
            },
            Self::Read {
                reason:
                    FetchError::Gone { .. }
                    | FetchError::Codec(_)
                    | FetchError::Short { .. }
                    | FetchError::UnknownAncestor(_),
                ..
            }
            | Self::Over { .. }
            | Self::OutOfRange { .. }
            | Self::Illegal { .. }
            | Self::Codec { .. }
            | Self::Buffer { .. } => false,
        }
    }
}
