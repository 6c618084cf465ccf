//! Volumes that a node has open: their owner is asked.

use holdfast_csi_proto::node::owner_client::OwnerClient;
use holdfast_csi_proto::node::{
    ApplyParametersRequest, CutRequest, CutResponse, DeleteSnapshotRequest, Owned, ResizeRequest,
};
use holdfast_engine::ids::SnapshotId;
use holdfast_engine::log::{Control, Session};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::PooledStorage;
use crate::handles::VolumeHandle;

/// The owner of a volume, from the log.
pub(super) struct Owner {
    owned: Owned,
    client: OwnerClient<Channel>,
}

impl PooledStorage {
    /// The owner of the volume; `None` if no session is open, and it may be acted on here.
    pub(super) async fn owner(
        &self,
        volume: VolumeHandle,
        control: &Control,
    ) -> Result<Option<Owner>, Status> {
        let Some(Session { grant, endpoint, .. }) = &control.session else { return Ok(None) };
        // A maintenance session is reached nowhere, and gives way.
        if endpoint.is_empty() {
            return Ok(None);
        }
        let owned = Owned { volume_handle: volume.to_string(), grant: grant.to_string() };
        let client = self.owners.connect(endpoint).await?;
        Ok(Some(Owner { owned, client }))
    }
}

impl Owner {
    pub(super) async fn cut(mut self, name: &str) -> Result<CutResponse, Status> {
        let request = CutRequest {
            owned: Some(self.owned),
            name: name.into(),
            meta: String::new(),
            freeze: String::new(),
        };
        self.client.cut(request).await.map(tonic::Response::into_inner).map_err(stale)
    }

    pub(super) async fn delete_snapshot(mut self, snapshot: SnapshotId) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { owned: Some(self.owned), snapshot: snapshot.0 };
        self.client.delete_snapshot(request).await.map(|_| ()).map_err(stale)
    }

    pub(super) async fn apply_parameters(mut self) -> Result<(), Status> {
        let request = ApplyParametersRequest { owned: Some(self.owned) };
        self.client.apply_parameters(request).await.map(|_| ()).map_err(stale)
    }

    pub(super) async fn resize(mut self, size_bytes: u64) -> Result<u64, Status> {
        let request = ResizeRequest { owned: Some(self.owned), size_bytes };
        self.client.resize(request).await.map(|response| response.get_ref().size_bytes).map_err(stale)
    }
}

/// An owner that does not have the volume any more says so: the log has moved on, and the request is to be repeated.
fn stale(status: Status) -> Status {
    match status.code() {
        Code::NotFound | Code::FailedPrecondition => Status::aborted(status.message()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => status,
    }
}
