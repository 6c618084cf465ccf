//! Which snapshots clones need.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::GcError;
use crate::ids::SnapshotId;
use crate::log::{Log, Op};
use crate::pool::layout;
use crate::volume::Volume;

/// The snapshots of the volume that pins name. A listing is no moment: it may miss a pin that was put, or that was
/// removed, while it ran. It does show each pin that was there all the time, and that is enough: a clone keeps its pin
/// here as long as it, or anything that descends from it, may need the snapshot
/// ([`release_pins`](crate::host::Host::release_pins)). A pin that is put after the listing began comes from a cloner
/// whose replay will show the snapshot's deletion, and who gives up.
pub(super) async fn pinned(log: &Log, deadline: Instant) -> Result<BTreeSet<SnapshotId>, GcError> {
    let listed = log.list(&layout::pins(log.volume), deadline).await?;
    let snapshot_in = |key: String| match layout::pin_in(&key) {
        Some((_, snapshot)) => Ok(snapshot),
        None => Err(GcError::StrayPin { key }),
    };
    listed.into_iter().map(|listed| snapshot_in(listed.key)).collect()
}

/// Forgets the deleted snapshots that no pin names. One whose map is not written yet waits for the checkpoint. Answers
/// which snapshots pins name.
pub(super) async fn forget_snapshots(
    volume: &Volume,
    deadline: Instant,
) -> Result<BTreeSet<SnapshotId>, GcError> {
    let control = volume.cut().await?.control;
    if control.snapshots.is_empty() {
        return Ok(BTreeSet::new());
    }
    let pinned = pinned(volume.log(), deadline).await?;
    let unneeded = control
        .snapshots
        .iter()
        .filter(|(id, snapshot)| snapshot.deleted && snapshot.map.is_some() && !pinned.contains(id));
    let ops: Vec<Op> = unneeded.map(|(id, _)| Op::ForgetSnapshot { snapshot: *id }).collect();
    if !ops.is_empty() {
        volume.append(ops, false).await?;
    }
    Ok(pinned)
}
