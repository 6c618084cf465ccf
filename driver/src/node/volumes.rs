//! What the node service needs of the engine and the front end: a volume as a block device.
//!
//! # Guarantees asked of an implementation
//! - Every call may be repeated, also after this process was restarted.
//! - After [`Volumes::detach`] everything written is in the store, and the session is closed.
//! - A volume that is [`Attached::over`] acknowledges nothing any more; giving it up never waits for its I/O.

use std::path::PathBuf;

use async_trait::async_trait;
use tonic::Status;

use crate::handles::VolumeHandle;
use crate::publication::Publication;

/// A volume that is attached to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its block device.
    pub device: PathBuf,
    /// The publication that it was opened under.
    pub publication: Publication,
    /// Its size.
    pub size_bytes: u64,
    /// Why its session has ended, if it has: then all I/O fails.
    pub over: Option<String>,
    /// What keeps it from its store, if anything does: then I/O that needs the store waits.
    pub away: Option<String>,
}

/// See the module's documentation.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// Opens a volume and serves it as a block device. A volume that is attached under this publication stays as it
    /// is. `FAILED_PRECONDITION` if it is attached under another one, or if the grant is no longer in force.
    async fn attach(&self, volume: VolumeHandle, publication: Publication) -> Result<Attached, Status>;

    /// Writes out what has been answered. `UNAVAILABLE`, within seconds, while the store does not take it.
    async fn flush(&self, volume: VolumeHandle) -> Result<(), Status>;

    /// Writes out, closes and removes the block device, on which nothing may be mounted. What is not attached is
    /// detached already.
    async fn detach(&self, volume: VolumeHandle) -> Result<(), Status>;

    /// Removes the block device and drops what is not in the store: for a volume that is over, or whose publication was
    /// replaced by a newer one.
    async fn give_up(&self, volume: VolumeHandle) -> Result<(), Status>;

    /// The volume, if it is attached. `UNAVAILABLE` while it cannot be told because a predecessor's volume could not be
    /// taken over yet: it may hold writes that are not in the store.
    async fn attached(&self, volume: VolumeHandle) -> Result<Option<Attached>, Status>;

    /// Makes the block device as large as the volume has become.
    async fn grow(&self, volume: VolumeHandle) -> Result<Attached, Status>;
}
