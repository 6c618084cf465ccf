//! Staging: the volume opened, its block device made, its file system mounted once for the node.

use std::path::{Path, PathBuf};

use holdfast_csi_proto::csi::NodeStageVolumeRequest;
use tonic::Status;

use super::Parts;
use super::records::{Kind, Record};
use super::volumes::Attached;
use crate::capability::{Capability, Form};
use crate::handles::{VolumeHandle, check_present};
use crate::mount::FsSpec;
use crate::publication::{Access, Publication};
use crate::status;

/// A request to stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stage {
    pub volume: VolumeHandle,
    pub publication: Publication,
    pub staging: PathBuf,
    pub capability: Capability,
}

impl Stage {
    pub fn parse(request: &NodeStageVolumeRequest) -> Result<Self, Status> {
        check_present(&request.volume_id)?;
        let staging = mount_path("staging_target_path", &request.staging_target_path)?;
        let capability = Capability::required(request.volume_capability.as_ref())?;
        let volume = VolumeHandle::required(&request.volume_id)?;
        let publication = Publication::parse(&request.publish_context)?;
        Ok(Self { volume, publication, staging, capability })
    }
}

/// Reads a path of a request at which something is to be mounted.
pub(super) fn mount_path(field: &str, given: &str) -> Result<PathBuf, Status> {
    let path = path(field, given)?;
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Status::invalid_argument(format!("{field} {given:?} is not absolute")))
    }
}

/// Reads a path of a request.
pub(super) fn path(field: &str, given: &str) -> Result<PathBuf, Status> {
    match given {
        "" => Err(Status::invalid_argument(format!("the request has no {field}"))),
        given => Ok(PathBuf::from(given)),
    }
}

/// Attaches the volume under the request's grant and mounts its file system at the staging path.
pub(super) async fn stage(parts: &Parts, request: &Stage) -> Result<Attached, Status> {
    let volume = request.volume;
    let mut record = parts.records.load(volume).map_err(status::record)?;
    if let Some(attached) = parts.volumes.attached(volume).await?
        && (attached.publication != request.publication || attached.over.is_some())
    {
        give_up(parts, volume, &record).await?;
        record = Record::default();
    }
    if record.staging.as_ref().is_some_and(|(staging, _)| *staging != request.staging) {
        return Err(Status::failed_precondition(format!("volume {volume} is staged at another path")));
    }
    record.staging = Some((request.staging.clone(), Kind::of(&request.capability.form)));
    parts.records.save(volume, &record).map_err(status::record)?;
    let attached = parts.volumes.attach(volume, request.publication).await?;
    if let Form::Filesystem { fs_type, options } = &request.capability.form {
        let read_only = request.publication.access == Access::ReadOnly;
        let spec = FsSpec { fs_type: *fs_type, options: options.clone(), read_only };
        parts.mounter.mount(&attached.device, &request.staging, &spec).await.map_err(status::mount)?;
    }
    Ok(attached)
}

/// Unmounts the staging path, writes everything out and detaches.
pub(super) async fn unstage(parts: &Parts, volume: VolumeHandle, staging: &Path) -> Result<(), Status> {
    let record = parts.records.load(volume).map_err(status::record)?;
    match parts.volumes.attached(volume).await? {
        Some(attached) if attached.over.is_none() => {
            // First what tells whether the store answers: the unmount of a volume whose store is away hangs in the
            // kernel until it is back.
            parts.volumes.flush(volume).await?;
            parts.mounter.unmount(staging).await.map_err(status::mount)?;
            parts.volumes.detach(volume).await?;
            parts.records.save(volume, &Record::default()).map_err(status::record)
        }
        Some(_) | None => {
            give_up(parts, volume, &record).await?;
            parts.mounter.detach(staging).await.map_err(status::mount)
        }
    }
}

/// Takes all mounts of a volume out of sight and drops its block device, without waiting for its I/O.
async fn give_up(parts: &Parts, volume: VolumeHandle, record: &Record) -> Result<(), Status> {
    for path in record.paths() {
        tracing::warn!(%volume, path = %path.display(), "taking away a mount whose session is over");
        parts.mounter.detach(path).await.map_err(status::mount)?;
    }
    parts.volumes.give_up(volume).await?;
    parts.records.save(volume, &Record::default()).map_err(status::record)
}
