//! Taking, deleting and describing snapshots.

use holdfast_csi_proto::csi::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotResponse, GetSnapshotResponse,
};
use tonic::Status;

use super::convert;
use super::storage::Storage;
use crate::handles::{SnapshotHandle, VolumeHandle, check_present};

/// Parameters with this prefix belong to the snapshotter (`--extra-create-metadata`).
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";

pub(super) async fn create(
    storage: &dyn Storage,
    request: CreateSnapshotRequest,
) -> Result<CreateSnapshotResponse, Status> {
    convert::check_name("snapshot", &request.name)?;
    check_present(&request.source_volume_id)?;
    if let Some(name) = request.parameters.keys().find(|name| !name.starts_with(SIDECAR_PREFIX)) {
        return Err(Status::invalid_argument(format!(
            "the VolumeSnapshotClass sets {name:?}; it has no parameters"
        )));
    }
    let source = VolumeHandle::required(&request.source_volume_id)?;
    let info = storage.create_snapshot(source, &request.name).await?;
    Ok(CreateSnapshotResponse { snapshot: Some(convert::snapshot(&info)) })
}

pub(super) async fn delete(
    storage: &dyn Storage,
    snapshot_id: &str,
) -> Result<DeleteSnapshotResponse, Status> {
    match SnapshotHandle::required(snapshot_id) {
        Ok(handle) => storage.delete_snapshot(handle).await?,
        // What cannot be a snapshot of ours is gone as far as we are concerned.
        Err(status) if status.code() == tonic::Code::NotFound => {}
        Err(status) => return Err(status),
    }
    Ok(DeleteSnapshotResponse {})
}

pub(super) async fn get(storage: &dyn Storage, snapshot_id: &str) -> Result<GetSnapshotResponse, Status> {
    let info = storage.snapshot(SnapshotHandle::required(snapshot_id)?).await?;
    Ok(GetSnapshotResponse { snapshot: Some(convert::snapshot(&info)) })
}
