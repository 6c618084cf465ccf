//! What the controller service needs of pools and volumes.
//!
//! # Guarantees asked of an implementation
//! - Every call may be repeated, also after its reply was lost, and by another process: what is as asked already is a
//!   success.
//! - Errors are final for the caller: a code of CSI and one message for the person who reads the event.

use async_trait::async_trait;
use holdfast_engine::codec::Codec;
use holdfast_engine::ids::GrantId;
use tonic::Status;

use crate::handles::{SnapshotHandle, VolumeHandle};
use crate::params::Durability;
use crate::publication::Access;

/// What a new volume begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A snapshot, of this pool or of an archive.
    Snapshot(SnapshotHandle),
    /// Another volume as it is now.
    Volume(VolumeHandle),
}

/// A volume to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// The name by which a repeated request finds it.
    pub name: String,
    /// The pool, by its local name; the only one if none is named.
    pub pool: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// What it begins as; empty if nothing.
    pub source: Option<Source>,
    /// How its data is compressed.
    pub codec: Codec,
    /// When its fsyncs return.
    pub durability: Durability,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its handle.
    pub handle: VolumeHandle,
    /// Its size.
    pub size_bytes: u64,
    /// What it began as.
    pub source: Option<Source>,
    /// The nodes that it is published to.
    pub nodes: Vec<String>,
    /// What is wrong with it, if anything is.
    pub abnormal: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its handle.
    pub handle: SnapshotHandle,
    /// The size of a volume made from it.
    pub size_bytes: u64,
    /// When it was taken, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Whether a volume can be made from it now.
    pub ready: bool,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

/// Where a listing begins and how long it may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// The token of the page before.
    pub token: Option<String>,
    /// Entries at most; at least one.
    pub limit: usize,
}

/// See the module's documentation.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// The volume bound to `name` in a pool.
    async fn volume_by_name(&self, pool: Option<&str>, name: &str) -> Result<Option<VolumeInfo>, Status>;

    /// Makes a volume, or finds the one that has its name, whatever that one's size and source are.
    async fn create_volume(&self, volume: &NewVolume) -> Result<VolumeInfo, Status>;

    /// A volume. `NOT_FOUND` if it does not exist.
    async fn volume(&self, volume: VolumeHandle) -> Result<VolumeInfo, Status>;

    /// Deletes a volume; its snapshots stay.
    async fn delete_volume(&self, volume: VolumeHandle) -> Result<(), Status>;

    /// Grants a volume to a node. `FAILED_PRECONDITION` if another one has it, `ALREADY_EXISTS` if this one has it in
    /// another mode, `NOT_FOUND` if volume or node do not exist.
    async fn publish(&self, volume: VolumeHandle, node: &str, access: Access) -> Result<GrantId, Status>;

    /// Takes a volume back from a node, or from all.
    async fn unpublish(&self, volume: VolumeHandle, node: Option<&str>) -> Result<(), Status>;

    /// Grows a volume to at least `size_bytes`; answers its size.
    async fn resize(&self, volume: VolumeHandle, size_bytes: u64) -> Result<u64, Status>;

    /// Says when the fsyncs of a volume return from now on, also of one that a node has open.
    async fn set_durability(&self, volume: VolumeHandle, durability: Durability) -> Result<(), Status>;

    /// Takes a snapshot, or finds the one that has its name. `ALREADY_EXISTS` if that one is of another volume.
    async fn create_snapshot(&self, volume: VolumeHandle, name: &str) -> Result<SnapshotInfo, Status>;

    /// A snapshot. `NOT_FOUND` if it does not exist.
    async fn snapshot(&self, snapshot: SnapshotHandle) -> Result<SnapshotInfo, Status>;

    /// Deletes a snapshot. One in an archive stays: it expires by its own rule.
    async fn delete_snapshot(&self, snapshot: SnapshotHandle) -> Result<(), Status>;

    /// The volumes of all pools. `ABORTED` for a token that is none.
    async fn volumes(&self, page: &PageRequest) -> Result<Page<VolumeInfo>, Status>;

    /// The snapshots of all pools, or those of one volume. `ABORTED` for a token that is none.
    async fn snapshots(
        &self,
        of: Option<VolumeHandle>,
        page: &PageRequest,
    ) -> Result<Page<SnapshotInfo>, Status>;

    /// Bytes that can still be written to a pool (the roomiest if none is named), where the store has a bound that can
    /// be read.
    async fn available_bytes(&self, pool: Option<&str>) -> Result<Option<u64>, Status>;
}
