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
    /// The dirty buffer cannot be used.
    #[error("volume {volume}: {reason}")]
    Buffer {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: BufferError,
    },
}
