//! The ids in CSI requests: what Kubernetes stores as `volumeHandle` and `snapshotHandle`.

use holdfast_engine::ids::{Handle, PoolId, SnapshotId, VolumeId};
use tonic::Status;

/// Names a volume in every cluster that reaches its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeHandle {
    /// The pool.
    pub pool: PoolId,
    /// The volume in it.
    pub volume: VolumeId,
}

/// Names a snapshot in every cluster that reaches its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotHandle {
    /// The volume that it was taken of.
    pub source: VolumeHandle,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// Checks that a request names a volume at all; other fields are looked at before the volume itself.
pub fn check_present(volume_id: &str) -> Result<(), Status> {
    match volume_id {
        "" => Err(Status::invalid_argument("the request names no volume: volume_id is empty")),
        _ => Ok(()),
    }
}

impl VolumeHandle {
    /// The handle in `volume_id`. What cannot be a handle of ours names no volume: `NOT_FOUND`.
    pub fn required(volume_id: &str) -> Result<Self, Status> {
        check_present(volume_id)?;
        Self::parse(volume_id).ok_or_else(|| Status::not_found(format!("no volume is called {volume_id:?}")))
    }

    /// The handle in `text`, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(Handle { pool, volume, snapshot: None }) => Some(Self { pool, volume }),
            Ok(Handle { snapshot: Some(_), .. }) | Err(_) => None,
        }
    }

    /// The handle of one of its snapshots.
    pub fn snapshot(self, snapshot: SnapshotId) -> SnapshotHandle {
        SnapshotHandle { source: self, snapshot }
    }
}

impl SnapshotHandle {
    /// The handle in `snapshot_id`. What cannot be a handle of ours names no snapshot: `NOT_FOUND`.
    pub fn required(snapshot_id: &str) -> Result<Self, Status> {
        if snapshot_id.is_empty() {
            return Err(Status::invalid_argument("the request names no snapshot: snapshot_id is empty"));
        }
        Self::parse(snapshot_id)
            .ok_or_else(|| Status::not_found(format!("no snapshot is called {snapshot_id:?}")))
    }

    /// The handle in `text`, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(Handle { pool, volume, snapshot: Some(snapshot) }) => {
                Some(VolumeHandle { pool, volume }.snapshot(snapshot))
            }
            Ok(Handle { snapshot: None, .. }) | Err(_) => None,
        }
    }
}

impl From<VolumeHandle> for Handle {
    fn from(handle: VolumeHandle) -> Self {
        Self { pool: handle.pool, volume: handle.volume, snapshot: None }
    }
}

impl From<SnapshotHandle> for Handle {
    fn from(handle: SnapshotHandle) -> Self {
        Self { snapshot: Some(handle.snapshot), ..handle.source.into() }
    }
}

impl std::fmt::Display for VolumeHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Handle::from(*self).fmt(f)
    }
}

impl std::fmt::Display for SnapshotHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Handle::from(*self).fmt(f)
    }
}
