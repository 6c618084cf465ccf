//! Listing volumes and snapshots, page by page.

use holdfast_csi_proto::csi::list_volumes_response::{Entry as VolumeEntry, VolumeStatus};
use holdfast_csi_proto::csi::{
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
    list_snapshots_response,
};
use tonic::Status;

use super::convert;
use super::storage::{PageRequest, SnapshotInfo, Storage};
use crate::handles::{SnapshotHandle, VolumeHandle};

/// Entries of a page when the caller sets no limit: gRPC messages are bounded, and each entry may cost requests to
/// the store.
const PAGE_MAX: usize = 1000;

fn page(max_entries: i32, starting_token: String) -> Result<PageRequest, Status> {
    let limit = match usize::try_from(max_entries) {
        Ok(0) => PAGE_MAX,
        Ok(limit) => limit.min(PAGE_MAX),
        Err(_) => {
            return Err(Status::invalid_argument(format!("max_entries is negative: {max_entries}")));
        }
    };
    Ok(PageRequest { token: Some(starting_token).filter(|token| !token.is_empty()), limit })
}

pub(super) async fn volumes(
    storage: &dyn Storage,
    request: ListVolumesRequest,
) -> Result<ListVolumesResponse, Status> {
    let page = storage.volumes(&page(request.max_entries, request.starting_token)?).await?;
    let entries = page
        .entries
        .iter()
        .map(|info| VolumeEntry {
            volume: Some(convert::volume(info)),
            status: Some(VolumeStatus {
                published_node_ids: Vec::new(),
                volume_condition: Some(convert::condition(info)),
            }),
        })
        .collect();
    Ok(ListVolumesResponse { entries, next_token: page.next.unwrap_or_default() })
}

pub(super) async fn snapshots(
    storage: &dyn Storage,
    request: ListSnapshotsRequest,
) -> Result<ListSnapshotsResponse, Status> {
    let page = page(request.max_entries, request.starting_token)?;
    if !request.snapshot_id.is_empty() {
        return one(storage, &request.snapshot_id, &request.source_volume_id).await;
    }
    let of = match request.source_volume_id.as_str() {
        "" => None,
        text => match VolumeHandle::parse(text) {
            Some(handle) => Some(handle),
            // No volume, no snapshots.
            None => return Ok(ListSnapshotsResponse::default()),
        },
    };
    let page = storage.snapshots(of, &page).await?;
    Ok(ListSnapshotsResponse {
        entries: page.entries.iter().map(entry).collect(),
        next_token: page.next.unwrap_or_default(),
    })
}

/// The listing of one snapshot: empty if it does not exist.
async fn one(
    storage: &dyn Storage,
    snapshot_id: &str,
    source_volume_id: &str,
) -> Result<ListSnapshotsResponse, Status> {
    let Some(handle) = SnapshotHandle::parse(snapshot_id) else {
        return Ok(ListSnapshotsResponse::default());
    };
    if !source_volume_id.is_empty() && handle.source.to_string() != source_volume_id {
        return Ok(ListSnapshotsResponse::default());
    }
    match storage.snapshot(handle).await {
        Ok(info) => Ok(ListSnapshotsResponse { entries: vec![entry(&info)], next_token: String::new() }),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(ListSnapshotsResponse::default()),
        Err(status) => Err(status),
    }
}

fn entry(info: &SnapshotInfo) -> list_snapshots_response::Entry {
    list_snapshots_response::Entry { snapshot: Some(convert::snapshot(info)) }
}
