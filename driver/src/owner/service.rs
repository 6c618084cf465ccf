//! What the owner of a volume does when the controller asks.

use std::sync::Arc;

use holdfast_csi_proto::node::owner_server::Owner;
use holdfast_csi_proto::node::{
    ApplyParametersRequest, ApplyParametersResponse, CutRequest, CutResponse, DeleteSnapshotRequest,
    DeleteSnapshotResponse, FreezeRequest, FreezeResponse, Owned, ResizeRequest, ResizeResponse, ThawRequest,
    ThawResponse,
};
use holdfast_engine::ids::{ObjectId, SnapshotId};
use holdfast_engine::log::Op;
use holdfast_engine::volume::Volume;
use tonic::{Request, Response, Status};

use crate::handles::VolumeHandle;
use crate::mount::{FreezeError, freeze};
use crate::node::open::{OpenVolume, OpenVolumes};
use crate::node::volumes::Volumes;
use crate::status;

/// The service over the volumes that this process has open.
#[derive(Debug, Clone)]
pub struct OwnerService {
    volumes: Arc<OpenVolumes>,
}

impl OwnerService {
    /// The service over `volumes`.
    pub fn new(volumes: Arc<OpenVolumes>) -> Self {
        Self { volumes }
    }

    /// The volume, if it is open under the grant that the caller has read.
    fn find(&self, owned: Option<&Owned>) -> Result<Arc<OpenVolume>, Status> {
        let owned = owned.ok_or_else(|| Status::invalid_argument("the request names no volume"))?;
        let handle = VolumeHandle::required(&owned.volume_handle)?;
        let volume = self
            .volumes
            .get(handle)
            .ok_or_else(|| Status::not_found(format!("volume {handle} is not open on this node")))?;
        if volume.publication.grant.to_string() != owned.grant {
            return Err(Status::failed_precondition(format!(
                "volume {handle} is open under another grant on this node"
            )));
        }
        Ok(volume)
    }
}

fn writer(volume: &OpenVolume) -> Result<&Volume, Status> {
    volume.writer().ok_or_else(|| {
        Status::failed_precondition(format!("volume {} is published read-only on this node", volume.handle))
    })
}

#[tonic::async_trait]
impl Owner for OwnerService {
    async fn cut(&self, request: Request<CutRequest>) -> Result<Response<CutResponse>, Status> {
        let CutRequest { owned, name, meta, freeze } = request.into_inner();
        let volume = self.find(owned.as_ref())?;
        // Held until the end, so that nobody thaws in between.
        let frozen = volume.freeze.lock().await;
        let holds = || frozen.as_ref().is_some_and(|(id, held)| *id == freeze && held.holds());
        if !freeze.is_empty() && !holds() {
            return Err(Status::aborted(format!("the freeze of volume {} has ended", volume.handle)));
        }
        let cut = writer(&volume)?.append(vec![Op::Snapshot { name, meta }], true).await;
        let appended = cut.map_err(status::volume)?;
        let id = SnapshotId(appended.number.0);
        let snapshot = appended.control.snapshots.get(&id).ok_or_else(|| {
            Status::internal(format!("snapshot {id} of volume {} is not in its own record", volume.handle))
        })?;
        Ok(Response::new(CutResponse {
            snapshot: id.0,
            time_ms: snapshot.time_ms,
            size_bytes: snapshot.size_bytes,
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let DeleteSnapshotRequest { owned, snapshot } = request.into_inner();
        let volume = self.find(owned.as_ref())?;
        let op = Op::DeleteSnapshot { snapshot: SnapshotId(snapshot) };
        match writer(&volume)?.append(vec![op], false).await.map_err(status::volume) {
            Ok(_) => {}
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(status),
        }
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Result<Response<ResizeResponse>, Status> {
        let ResizeRequest { owned, size_bytes } = request.into_inner();
        let volume = self.find(owned.as_ref())?;
        let writer = writer(&volume)?;
        if writer.size_bytes() < size_bytes {
            writer.resize(size_bytes).await.map_err(status::volume)?;
        }
        let grown = self.volumes.grow(volume.handle).await?;
        Ok(Response::new(ResizeResponse { size_bytes: grown.size_bytes }))
    }

    async fn apply_parameters(
        &self,
        request: Request<ApplyParametersRequest>,
    ) -> Result<Response<ApplyParametersResponse>, Status> {
        let volume = self.find(request.get_ref().owned.as_ref())?;
        self.volumes.apply_parameters(volume.handle).await?;
        Ok(Response::new(ApplyParametersResponse {}))
    }

    async fn freeze(&self, request: Request<FreezeRequest>) -> Result<Response<FreezeResponse>, Status> {
        let volume = self.find(request.get_ref().owned.as_ref())?;
        let mut frozen = volume.freeze.lock().await;
        if frozen.as_ref().is_some_and(|(_, held)| held.holds()) {
            return Err(Status::aborted(format!(
                "volume {} is being frozen for another call",
                volume.handle
            )));
        }
        let parts = self.volumes.parts();
        let (key, device) = (volume.handle.to_string(), volume.stack.loop_path());
        match freeze::freeze(&key, &device, Arc::clone(&parts.keeper), parts.offload.clone()).await {
            Ok(held) => {
                let id = ObjectId::random(&*parts.env.entropy).to_string();
                *frozen = Some((id.clone(), held));
                Ok(Response::new(FreezeResponse { freeze: id }))
            }
            // A raw block volume has no file system to hold still.
            Err(FreezeError::NotMounted { .. }) => Ok(Response::new(FreezeResponse::default())),
            Err(error) => Err(status::freeze(error)),
        }
    }

    async fn thaw(&self, request: Request<ThawRequest>) -> Result<Response<ThawResponse>, Status> {
        let ThawRequest { owned, freeze } = request.into_inner();
        let volume = self.find(owned.as_ref())?;
        let mut frozen = volume.freeze.lock().await;
        if frozen.as_ref().is_none_or(|(id, _)| *id != freeze) {
            return Ok(Response::new(ThawResponse { held: false }));
        }
        let held = match frozen.take() {
            Some((_, held)) => match held.thaw().await {
                Ok(()) => true,
                Err(FreezeError::Expired { .. }) => false,
                Err(error) => return Err(status::freeze(error)),
            },
            None => false,
        };
        Ok(Response::new(ThawResponse { held }))
    }
}
