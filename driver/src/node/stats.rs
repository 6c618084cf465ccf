//! Statistics, condition and growth of a published volume.

use std::path::Path;

use holdfast_csi_proto::csi::volume_usage::Unit;
use holdfast_csi_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    VolumeCondition, VolumeUsage,
};
use tonic::Status;

use super::records::Kind;
use super::volumes::Attached;
use super::{Parts, stage};
use crate::handles::{VolumeHandle, check_present};
use crate::mount::FsStats;
use crate::size::{Sizes, to_csi};
use crate::status;

pub(super) async fn stats(
    parts: &Parts,
    request: &NodeGetVolumeStatsRequest,
) -> Result<NodeGetVolumeStatsResponse, Status> {
    check_present(&request.volume_id)?;
    let path = stage::path("volume_path", &request.volume_path)?;
    let volume = VolumeHandle::required(&request.volume_id)?;
    let (attached, kind) = at(parts, volume, &path).await?;
    if let Some(reason) = attached.over {
        // Its file system does not answer any more.
        let volume_condition = Some(VolumeCondition { abnormal: true, message: reason });
        return Ok(NodeGetVolumeStatsResponse { usage: vec![], volume_condition });
    }
    let usage = match kind {
        Kind::Block => vec![usage(Unit::Bytes, attached.size_bytes, None)],
        Kind::Filesystem => {
            let FsStats { total_bytes, available_bytes, used_bytes, total_inodes, free_inodes } =
                parts.mounter.stats(&path).await.map_err(status::mount)?;
            let used_inodes = total_inodes.saturating_sub(free_inodes);
            vec![
                usage(Unit::Bytes, total_bytes, Some((available_bytes, used_bytes))),
                usage(Unit::Inodes, total_inodes, Some((free_inodes, used_inodes))),
            ]
        }
    };
    let condition = match attached.away {
        Some(message) => VolumeCondition { abnormal: true, message },
        None => VolumeCondition { abnormal: false, message: "the volume is served".into() },
    };
    Ok(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition) })
}

pub(super) async fn expand(
    parts: &Parts,
    volume: VolumeHandle,
    path: &Path,
    request: &NodeExpandVolumeRequest,
) -> Result<NodeExpandVolumeResponse, Status> {
    let sizes = Sizes::parse(request.capacity_range.as_ref())?;
    let (_, kind) = at(parts, volume, path).await?;
    let grown = parts.volumes.grow(volume).await?;
    if grown.size_bytes < sizes.required {
        return Err(Status::failed_precondition(format!(
            "volume {volume} has {} bytes; the controller has not grown it to {} yet",
            grown.size_bytes, sizes.required
        )));
    }
    if kind == Kind::Filesystem {
        parts.mounter.grow(path).await.map_err(status::mount)?;
    }
    Ok(NodeExpandVolumeResponse { capacity_bytes: to_csi(grown.size_bytes) })
}

/// The volume and what of it is at `path`. `NOT_FOUND` if it is not there.
async fn at(parts: &Parts, volume: VolumeHandle, path: &Path) -> Result<(Attached, Kind), Status> {
    let attached = parts.volumes.attached(volume).await?;
    let kind = parts.records.load(volume).map_err(status::record)?.kind(path);
    attached.zip(kind).ok_or_else(|| {
        Status::not_found(format!("volume {volume} is not at {} on this node", path.display()))
    })
}

fn usage(unit: Unit, total: u64, available_and_used: Option<(u64, u64)>) -> VolumeUsage {
    let (available, used) = available_and_used.unwrap_or_default();
    VolumeUsage { unit: unit.into(), total: to_csi(total), available: to_csi(available), used: to_csi(used) }
}
