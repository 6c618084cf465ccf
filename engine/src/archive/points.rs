//! The points of a target: listing and expiry.

use std::collections::BTreeSet;

use std::time::Duration;
use tokio::time::Instant;

use super::{ArchiveError, PointMeta};
use crate::control::ControlError;
use crate::host::Host;
use crate::ids::{Handle, VolumeId};
use crate::log::Control;
use crate::pool::Pool;

/// Names asked for at once.
const PAGE: usize = 500;
/// How long one decision about a log may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// An archived point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The name it was archived under.
    pub name: String,
    /// Its handle, to restore from.
    pub handle: Handle,
    /// What is noted with it.
    pub meta: PointMeta,
    /// The least size of a volume restored from it.
    pub size_bytes: u64,
    /// Whether it is the newest of its volume, which never expires by itself.
    pub newest: bool,
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// All points in a target that can be restored, of every cluster, by volume and age.
pub async fn list_points(host: &Host, target: &Pool) -> Result<Vec<Point>, ArchiveError> {
    let mut volumes = BTreeSet::new();
    let mut from: Option<String> = None;
    loop {
        let page = target.list_snapshot_names(from.as_deref(), PAGE, deadline()).await?;
        volumes.extend(page.items.into_iter().map(|named| named.volume));
        match page.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    let mut points = Vec::new();
    for volume in volumes {
        match host.describe(target, volume, deadline()).await {
            Ok((_, control)) => points.extend(points_of(target, volume, &control)),
            // Removed since it was listed.
            Err(ControlError::NoSuchVolume { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(points)
}

fn points_of(target: &Pool, volume: VolumeId, control: &Control) -> Vec<Point> {
    let live = control.snapshots.iter().filter(|(_, snapshot)| !snapshot.deleted && snapshot.map.is_some());
    let newest = control.snapshots.last_key_value().map(|(id, _)| *id);
    live.filter_map(|(id, snapshot)| {
        Some(Point {
            name: snapshot.name.clone(),
            handle: Handle { pool: target.id(), volume, snapshot: Some(*id) },
            meta: PointMeta::from_note(&snapshot.meta)?,
            size_bytes: snapshot.size_bytes,
            newest: Some(*id) == newest,
        })
    })
    .collect()
}

/// Removes a point, unless it is the newest of its volume: what the next run copies is the difference to that. No run
/// follows in a volume that is deleted. A point that is gone is removed already.
pub async fn expire(host: &Host, target: &Pool, handle: Handle) -> Result<(), ArchiveError> {
    let snapshot = handle.snapshot.ok_or(ArchiveError::NoSnapshot { handle })?;
    let control = match host.describe(target, handle.volume, deadline()).await {
        Err(ControlError::NoSuchVolume { .. }) => return Ok(()),
        found => found?.1,
    };
    let newest = control.snapshots.last_key_value().map(|(newest, _)| *newest);
    if !control.dead && newest == Some(snapshot) {
        return Err(ArchiveError::Newest { handle });
    }
    // A run is not interrupted for the sake of tidiness.
    if control.session.is_some() {
        return Err(ArchiveError::Busy { volume: handle.volume });
    }
    match host.delete_snapshot(target, handle.volume, snapshot, deadline()).await {
        Err(ControlError::AskOwner { volume, .. }) => Err(ArchiveError::Busy { volume }),
        outcome => Ok(outcome?),
    }
}
