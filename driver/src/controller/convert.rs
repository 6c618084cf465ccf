//! Between CSI's messages and ours.

use holdfast_csi_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use holdfast_csi_proto::csi::{Snapshot, Volume, VolumeCondition, VolumeContentSource};
use prost_types::Timestamp;
use tonic::Status;

use super::storage::{SnapshotInfo, Source, VolumeInfo};
use crate::handles::{SnapshotHandle, VolumeHandle};
use crate::size::to_csi;

/// The longest name that a volume or snapshot can have, in bytes: the CSI specification's limit for strings.
const NAME_BYTES_MAX: usize = 128;

/// Checks the name of a volume or snapshot.
pub fn check_name(what: &str, name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(Status::invalid_argument(format!("the request gives the {what} no name")));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "the {what}'s name has {} bytes; at most {NAME_BYTES_MAX} are allowed",
            name.len()
        )));
    }
    Ok(())
}

/// Reads what a new volume is to begin as.
pub fn source(source: Option<&VolumeContentSource>) -> Result<Option<Source>, Status> {
    let Some(source) = source else { return Ok(None) };
    match &source.r#type {
        Some(Type::Snapshot(snapshot)) => {
            Ok(Some(Source::Snapshot(SnapshotHandle::required(&snapshot.snapshot_id)?)))
        }
        Some(Type::Volume(volume)) => Ok(Some(Source::Volume(VolumeHandle::required(&volume.volume_id)?))),
        None => Err(Status::invalid_argument("volume_content_source names neither a snapshot nor a volume")),
    }
}

/// A volume as CSI describes it.
pub fn volume(info: &VolumeInfo) -> Volume {
    let content_source = info.source.map(|source| {
        let r#type = match source {
            Source::Snapshot(handle) => Type::Snapshot(SnapshotSource { snapshot_id: handle.to_string() }),
            Source::Volume(handle) => Type::Volume(VolumeSource { volume_id: handle.to_string() }),
        };
        VolumeContentSource { r#type: Some(r#type) }
    });
    Volume {
        capacity_bytes: to_csi(info.size_bytes),
        volume_id: info.handle.to_string(),
        content_source,
        ..Volume::default()
    }
}

/// A volume's condition as CSI describes it.
pub fn condition(info: &VolumeInfo) -> VolumeCondition {
    match &info.abnormal {
        Some(message) => VolumeCondition { abnormal: true, message: message.clone() },
        None => VolumeCondition { abnormal: false, message: "the volume can be used".into() },
    }
}

/// A snapshot as CSI describes it.
pub fn snapshot(info: &SnapshotInfo) -> Snapshot {
    Snapshot {
        size_bytes: to_csi(info.size_bytes),
        snapshot_id: info.handle.to_string(),
        source_volume_id: info.handle.source.to_string(),
        creation_time: Some(Timestamp {
            seconds: to_csi(info.time_ms / 1000),
            nanos: (info.time_ms % 1000) as i32 * 1_000_000,
        }),
        ready_to_use: info.ready,
        group_snapshot_id: String::new(),
    }
}
