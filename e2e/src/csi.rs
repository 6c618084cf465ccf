//! What Kubernetes' sidecars and the kubelet ask of the driver, asked of a [`Site`].

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_csi_proto::csi::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateSnapshotRequest,
    CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
    VolumeContentSource,
    controller_client::ControllerClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type},
};
use tokio::runtime::Runtime;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    Error, Result,
    error::Named,
    interrupt::{self, Seen},
    site::{NODE, Site},
};

const REGISTER_LIMIT: Duration = Duration::from_secs(60);
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// How a pod has a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As a block device.
    Block,
    /// As an ext4 file system.
    Filesystem,
}

/// A volume that is attached and published: `path` is what the pod has.
#[derive(Debug)]
pub struct Published {
    /// The volume's handle.
    pub volume: String,
    /// The block device, or the directory.
    pub path: PathBuf,
    staging: PathBuf,
}

/// Calls both services of a site.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    controller: ControllerClient<Channel>,
    node_socket: PathBuf,
    root: PathBuf,
}

impl Client {
    /// Connects to the controller; the node plugin, which may be restarted, is dialled for each call.
    pub fn connect(site: &Site) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::System { what: "starting a runtime", source })?;
        let channel = runtime.block_on(channel(&site.controller_socket()))?;
        let controller = ControllerClient::new(channel);
        Ok(Client { runtime, controller, node_socket: site.node_socket(), root: site.root().to_owned() })
    }

    /// Creates a volume, from a snapshot if one is given, and returns its handle.
    pub fn create(
        &self,
        name: &str,
        size_bytes: u64,
        parameters: &[(&str, &str)],
        snapshot: Option<&str>,
    ) -> Result<String> {
        let source = |id: &str| VolumeContentSource {
            r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })),
        };
        let request = CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: size_bytes as i64, limit_bytes: 0 }),
            volume_capabilities: vec![capability(Shape::Block)],
            parameters: parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            volume_content_source: snapshot.map(source),
            ..CreateVolumeRequest::default()
        };
        let answer = self.call("CreateVolume", self.controller.clone().create_volume(request))?;
        let volume = answer.volume.map(|volume| volume.volume_id);
        volume.ok_or_else(|| Error::Answer { from: "CreateVolume".into(), answer: "no volume".into() })
    }

    /// Deletes a volume.
    pub fn delete(&self, volume: &str) -> Result<()> {
        let request = DeleteVolumeRequest { volume_id: volume.into(), ..DeleteVolumeRequest::default() };
        self.call("DeleteVolume", self.controller.clone().delete_volume(request)).map(drop)
    }

    /// Snapshots a volume and returns the snapshot's handle.
    pub fn snapshot(&self, volume: &str, name: &str) -> Result<String> {
        let request = CreateSnapshotRequest {
            source_volume_id: volume.into(),
            name: name.into(),
            ..CreateSnapshotRequest::default()
        };
        let answer = self.call("CreateSnapshot", self.controller.clone().create_snapshot(request))?;
        let snapshot = answer.snapshot.map(|snapshot| snapshot.snapshot_id);
        snapshot.ok_or_else(|| Error::Answer { from: "CreateSnapshot".into(), answer: "none".into() })
    }

    /// Deletes a snapshot.
    pub fn delete_snapshot(&self, snapshot: &str) -> Result<()> {
        let request =
            DeleteSnapshotRequest { snapshot_id: snapshot.into(), ..DeleteSnapshotRequest::default() };
        self.call("DeleteSnapshot", self.controller.clone().delete_snapshot(request)).map(drop)
    }

    /// Attaches a volume to the node and publishes it.
    pub fn publish(&self, volume: &str, shape: Shape) -> Result<Published> {
        let context = self.attach(volume, shape)?;
        let staging = self.root.join("staging").join(volume);
        let path = self.root.join("pods").join(volume);
        for parent in [&staging, &path].into_iter().filter_map(|path| path.parent()) {
            fs::create_dir_all(parent).named("create", parent)?;
        }
        let stage = NodeStageVolumeRequest {
            volume_id: volume.into(),
            publish_context: context.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability(shape)),
            ..NodeStageVolumeRequest::default()
        };
        let publish = NodePublishVolumeRequest {
            volume_id: volume.into(),
            publish_context: context,
            staging_target_path: staging.display().to_string(),
            target_path: path.display().to_string(),
            volume_capability: Some(capability(shape)),
            ..NodePublishVolumeRequest::default()
        };
        let mut node = self.node()?;
        self.call("NodeStageVolume", node.node_stage_volume(stage))?;
        self.call("NodePublishVolume", node.node_publish_volume(publish))?;
        Ok(Published { volume: volume.into(), path, staging })
    }

    /// Unpublishes a volume and detaches it from the node.
    pub fn unpublish(&self, published: &Published) -> Result<()> {
        let volume_id = published.volume.clone();
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: volume_id.clone(),
            target_path: published.path.display().to_string(),
        };
        let unstage = NodeUnstageVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: published.staging.display().to_string(),
        };
        let detach = ControllerUnpublishVolumeRequest {
            volume_id,
            node_id: NODE.into(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        let mut node = self.node()?;
        self.call("NodeUnpublishVolume", node.node_unpublish_volume(unpublish))?;
        self.call("NodeUnstageVolume", node.node_unstage_volume(unstage))?;
        self.call("ControllerUnpublishVolume", self.controller.clone().controller_unpublish_volume(detach))
            .map(drop)
    }

    fn attach(&self, volume: &str, shape: Shape) -> Result<HashMap<String, String>> {
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.into(),
            node_id: NODE.into(),
            volume_capability: Some(capability(shape)),
            ..ControllerPublishVolumeRequest::default()
        };
        // The node registers itself in the pool soon after it has started.
        interrupt::until("the node is known in the pool", REGISTER_LIMIT, Duration::from_millis(50), || {
            let mut controller = self.controller.clone();
            match self.runtime.block_on(controller.controller_publish_volume(request.clone())) {
                Ok(answer) => Ok(Seen::Reached(answer.into_inner().publish_context)),
                Err(status) if status.code() == Code::NotFound => Ok(Seen::NotYet(status.to_string())),
                Err(status) => Err(refused("ControllerPublishVolume", &status)),
            }
        })
    }

    fn node(&self) -> Result<NodeClient<Channel>> {
        self.runtime.block_on(channel(&self.node_socket)).map(NodeClient::new)
    }

    fn call<T>(
        &self,
        name: &str,
        answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(CALL_LIMIT, answer).await });
        match answer {
            Ok(answer) => answer.map(Response::into_inner).map_err(|status| refused(name, &status)),
            Err(_) => Err(refused(name, &Status::deadline_exceeded(format!("{CALL_LIMIT:?} have passed")))),
        }
    }
}

fn refused(name: &str, status: &Status) -> Error {
    Error::Answer { from: name.into(), answer: format!("{:?}: {}", status.code(), status.message()) }
}

async fn channel(socket: &Path) -> Result<Channel> {
    let failed = |error: tonic::transport::Error| Error::Answer {
        from: socket.display().to_string(),
        answer: error.to_string(),
    };
    Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(failed)?
        .connect()
        .await
        .map_err(failed)
}

fn capability(shape: Shape) -> VolumeCapability {
    let access_type = match shape {
        Shape::Block => AccessType::Block(BlockVolume {}),
        Shape::Filesystem => AccessType::Mount(MountVolume::default()),
    };
    VolumeCapability {
        access_type: Some(access_type),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}
