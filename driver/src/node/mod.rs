//! The CSI node service: volumes as mounts and devices in pods.
//!
//! # Guarantees
//! - One operation at a time on each volume; a call whose caller gave up runs to its end all the same, so that none
//!   meets a half-made mount of another.
//! - A publication with a newer grant rebuilds what an older one left, also when the kubelet skips staging.
//! - A volume whose session is over never blocks its unpublishing and unstaging.
//!
//! # Crash behaviour
//! Everything is idempotent: the kubelet repeats what was not answered. What was mounted stands in [`records`]; the
//! block devices are adopted by [`volumes::Volumes`].

mod in_flight;
pub mod open;
mod publish;
pub mod records;
mod stage;
mod stats;
pub mod volumes;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;

use holdfast_csi_proto::csi::node_server::Node;
use holdfast_csi_proto::csi::node_service_capability::rpc::Type as Rpc;
use holdfast_csi_proto::csi::node_service_capability::{Rpc as RpcCapability, Type};
use holdfast_csi_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse,
};
use tonic::{Request, Response, Status};

use crate::handles::{VolumeHandle, check_present};
use crate::mount::Mounter;
use in_flight::InFlight;
use records::Records;
use volumes::Volumes;

/// What the service can do.
const CAPABILITIES: [Rpc; 5] = [
    Rpc::StageUnstageVolume,
    Rpc::GetVolumeStats,
    Rpc::ExpandVolume,
    Rpc::VolumeCondition,
    Rpc::SingleNodeMultiWriter,
];

/// Volumes that a node can have, bounded by the keeper's table and the memory for their dirty buffers.
const VOLUMES_MAX: i64 = 256;

/// The service.
#[derive(Clone)]
pub struct NodeService {
    node_id: String,
    in_flight: InFlight,
    parts: Arc<Parts>,
}

/// What the operations work with.
pub(crate) struct Parts {
    volumes: Arc<dyn Volumes>,
    mounter: Arc<dyn Mounter>,
    records: Records,
}

impl NodeService {
    /// The service of the node called `node_id`.
    pub fn new(
        node_id: String,
        volumes: Arc<dyn Volumes>,
        mounter: Arc<dyn Mounter>,
        records: Records,
    ) -> Self {
        Self { node_id, in_flight: InFlight::default(), parts: Arc::new(Parts { volumes, mounter, records }) }
    }

    /// Runs the one operation on `volume`, to its end even if the caller gives up.
    async fn alone<T, F>(
        &self,
        volume: VolumeHandle,
        operation: impl FnOnce(Arc<Parts>) -> F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let marked = self.in_flight.begin(volume)?;
        let operation = operation(Arc::clone(&self.parts));
        let task = tokio::spawn(async move {
            let _marked = marked;
            operation.await
        });
        match task.await {
            Ok(result) => result.map(Response::new),
            Err(error) => {
                Err(Status::internal(format!("the operation on volume {volume} broke off: {error}")))
            }
        }
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = stage::Stage::parse(request.get_ref())?;
        self.alone(request.volume, |parts| async move {
            stage::stage(&parts, &request).await?;
            Ok(NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let NodeUnstageVolumeRequest { volume_id, staging_target_path } = request.into_inner();
        check_present(&volume_id)?;
        let staging = stage::mount_path("staging_target_path", &staging_target_path)?;
        let volume = VolumeHandle::required(&volume_id)?;
        self.alone(volume, |parts| async move {
            stage::unstage(&parts, volume, &staging).await?;
            Ok(NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = publish::Publish::parse(request.get_ref())?;
        self.alone(request.stage.volume, |parts| async move {
            publish::publish(&parts, &request).await?;
            Ok(NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let NodeUnpublishVolumeRequest { volume_id, target_path } = request.into_inner();
        check_present(&volume_id)?;
        let target = stage::mount_path("target_path", &target_path)?;
        let volume = VolumeHandle::required(&volume_id)?;
        self.alone(volume, |parts| async move {
            publish::unpublish(&parts, volume, &target).await?;
            Ok(NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        stats::stats(&self.parts, request.get_ref()).await.map(Response::new)
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        check_present(&request.volume_id)?;
        let path = stage::path("volume_path", &request.volume_path)?;
        let volume = VolumeHandle::required(&request.volume_id)?;
        self.alone(volume, |parts| async move { stats::expand(&parts, volume, &path, &request).await }).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capabilities = CAPABILITIES
            .map(|rpc| NodeServiceCapability {
                r#type: Some(Type::Rpc(RpcCapability { r#type: rpc.into() })),
            })
            .into();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        // No topology: every node reaches every pool.
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: VOLUMES_MAX,
            accessible_topology: None,
        }))
    }
}
