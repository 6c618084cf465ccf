//! Attaching and detaching. Detaching fences: see the engine's rules for grants.

use holdfast_csi_proto::csi::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse,
};
use tonic::Status;

use super::storage::Storage;
use crate::capability::Capability;
use crate::handles::{VolumeHandle, check_present};
use crate::publication::{Access, Publication};

pub(super) async fn publish(
    storage: &dyn Storage,
    request: ControllerPublishVolumeRequest,
) -> Result<ControllerPublishVolumeResponse, Status> {
    check_present(&request.volume_id)?;
    if request.node_id.is_empty() {
        return Err(Status::invalid_argument("the request names no node: node_id is empty"));
    }
    let capability = Capability::required(request.volume_capability.as_ref())?;
    let handle = VolumeHandle::required(&request.volume_id)?;
    let access = if request.readonly { Access::ReadOnly } else { capability.access };
    let grant = storage.publish(handle, &request.node_id, access).await?;
    let publish_context = Publication { grant, access }.to_context();
    Ok(ControllerPublishVolumeResponse { publish_context })
}

pub(super) async fn unpublish(
    storage: &dyn Storage,
    request: ControllerUnpublishVolumeRequest,
) -> Result<ControllerUnpublishVolumeResponse, Status> {
    let node = Some(request.node_id.as_str()).filter(|node| !node.is_empty());
    match VolumeHandle::required(&request.volume_id) {
        Ok(handle) => storage.unpublish(handle, node).await?,
        // What cannot be a volume of ours is attached nowhere.
        Err(status) if status.code() == tonic::Code::NotFound => {}
        Err(status) => return Err(status),
    }
    Ok(ControllerUnpublishVolumeResponse {})
}
