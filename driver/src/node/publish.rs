//! Publishing: a staged volume shown in a pod.

use std::path::{Path, PathBuf};

use holdfast_csi_proto::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use tonic::Status;

use super::Parts;
use super::records::Kind;
use super::stage::{self, Stage};
use crate::handles::{VolumeHandle, check_present};
use crate::publication::Access;
use crate::status;

/// A request to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    /// The staging that it builds on, and rebuilds if it belongs to an older grant.
    pub stage: Stage,
    pub target: PathBuf,
    pub read_only: bool,
}

impl Publish {
    pub fn parse(request: &NodePublishVolumeRequest) -> Result<Self, Status> {
        check_present(&request.volume_id)?;
        let target = stage::mount_path("target_path", &request.target_path)?;
        let stage = Stage::parse(&NodeStageVolumeRequest {
            volume_id: request.volume_id.clone(),
            publish_context: request.publish_context.clone(),
            staging_target_path: request.staging_target_path.clone(),
            volume_capability: request.volume_capability.clone(),
            ..NodeStageVolumeRequest::default()
        })?;
        let read_only = request.readonly || stage.publication.access == Access::ReadOnly;
        Ok(Self { stage, target, read_only })
    }
}

pub(super) async fn publish(parts: &Parts, request: &Publish) -> Result<(), Status> {
    let Stage { volume, staging, capability, .. } = &request.stage;
    // Idempotent where the kubelet has staged; the rebuild where it has not.
    let attached = stage::stage(parts, &request.stage).await?;
    let mut record = parts.records.load(*volume).map_err(status::record)?;
    let elsewhere = record.targets.keys().find(|target| **target != request.target);
    if capability.single_path
        && let Some(elsewhere) = elsewhere
    {
        return Err(Status::failed_precondition(format!(
            "volume {volume} may have one path only (ReadWriteOncePod) and is published at {}",
            elsewhere.display()
        )));
    }
    let kind = Kind::of(&capability.form);
    record.targets.insert(request.target.clone(), kind);
    parts.records.save(*volume, &record).map_err(status::record)?;
    let bound = match kind {
        Kind::Block => parts.mounter.bind_device(&attached.device, &request.target, request.read_only).await,
        Kind::Filesystem => parts.mounter.bind(staging, &request.target, request.read_only).await,
    };
    bound.map_err(status::mount)
}

pub(super) async fn unpublish(parts: &Parts, volume: VolumeHandle, target: &Path) -> Result<(), Status> {
    let works = parts.volumes.attached(volume).await?.is_some_and(|attached| attached.over.is_none());
    let unmounted =
        if works { parts.mounter.unmount(target).await } else { parts.mounter.detach(target).await };
    unmounted.map_err(status::mount)?;
    let mut record = parts.records.load(volume).map_err(status::record)?;
    record.targets.remove(target);
    parts.records.save(volume, &record).map_err(status::record)
}
