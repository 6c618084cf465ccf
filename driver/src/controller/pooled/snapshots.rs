//! Snapshots: of volumes that are open, by their owners; of others, here.

use holdfast_csi_proto::node::CutResponse;
use holdfast_engine::ids::SnapshotId;
use holdfast_engine::log::Snapshot;
use tokio::time::Instant;
use tonic::Status;

use super::tending;
use super::{PooledStorage, if_found};
use crate::controller::storage::SnapshotInfo;
use crate::handles::{SnapshotHandle, VolumeHandle};
use crate::status;

/// A snapshot as the controller service describes it.
pub(super) fn info(handle: SnapshotHandle, snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        handle,
        size_bytes: snapshot.size_bytes,
        time_ms: snapshot.time_ms,
        ready: snapshot.map.is_some(),
    }
}

impl PooledStorage {
    pub(super) async fn snapshot_info(
        &self,
        handle: SnapshotHandle,
        deadline: Instant,
    ) -> Result<SnapshotInfo, Status> {
        // Snapshots outlive their volume.
        let (_, control) = self.described(handle.source, deadline).await?;
        match control.live_snapshot(handle.snapshot) {
            Ok(snapshot) => Ok(info(handle, snapshot)),
            Err(_) => Err(Status::not_found(format!("snapshot {handle} does not exist"))),
        }
    }

    pub(super) async fn cut(
        &self,
        volume: VolumeHandle,
        name: &str,
        deadline: Instant,
    ) -> Result<SnapshotInfo, Status> {
        let (found, _) = self.living(volume, deadline).await?;
        // The name first: it decides between two volumes, and the listing finds the snapshot by it.
        let named = self.host().name_snapshot(&found.pool, volume.volume, name, deadline).await;
        named.map_err(status::control)?;
        // From here on the snapshot may exist, whatever the answer says.
        self.cut_named(volume, name, deadline).await.map_err(status::retryable)
    }

    async fn cut_named(
        &self,
        volume: VolumeHandle,
        name: &str,
        deadline: Instant,
    ) -> Result<SnapshotInfo, Status> {
        let (found, control) = self.living(volume, deadline).await?;
        let existing = control.snapshot_named(name);
        if let Some(owner) = self.owner(volume, &control).await? {
            if let Some((id, snapshot)) = existing {
                // If its map is missing, the owner is about to write it.
                return Ok(info(volume.snapshot(id), snapshot));
            }
            let CutResponse { snapshot, time_ms, size_bytes } = owner.cut(name).await?;
            let handle = volume.snapshot(SnapshotId(snapshot));
            return Ok(SnapshotInfo { handle, size_bytes, time_ms, ready: true });
        }
        let made = self.host().create_snapshot(&found.pool, volume.volume, name, deadline).await;
        self.snapshot_info(volume.snapshot(made.map_err(status::control)?), deadline).await
    }

    pub(super) async fn remove_snapshot(
        &self,
        handle: SnapshotHandle,
        deadline: Instant,
    ) -> Result<(), Status> {
        if self.pools.is_archive(handle.source.pool) {
            return Ok(());
        }
        let volume = handle.source;
        let Some((found, control)) = if_found(self.described(volume, deadline).await)? else { return Ok(()) };
        let Ok(snapshot) = control.live_snapshot(handle.snapshot) else { return Ok(()) };
        match self.owner(volume, &control).await? {
            Some(owner) => owner.delete_snapshot(handle.snapshot).await?,
            None => self
                .host()
                .delete_snapshot(&found.pool, volume.volume, handle.snapshot, deadline)
                .await
                .map_err(status::control)?,
        }
        let name = &snapshot.name;
        found.pool.unbind_snapshot_name(name, volume.volume, deadline).await.map_err(status::pool)?;
        if control.dead {
            tending::reclaim_soon(self.host(), found.pool, volume.volume);
        }
        Ok(())
    }
}
