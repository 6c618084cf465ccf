//! Which snapshots clones need.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::GcError;
use crate::ids::SnapshotId;
use crate::log::{Log, Op};
use crate::pool::layout;
use crate::volume::Volume;

/// The snapshots of the volume that pins name, from two listings: one alone may miss a pin that was put, or show one
/// that was deleted, while it ran. A pin that is put after both comes from a cloner whose replay will show the
/// snapshot's deletion, and who gives up.
pub(super) async fn pinned(log: &Log, deadline: Instant) -> Result<BTreeSet<SnapshotId>, GcError> {
    let mut pinned = BTreeSet::new();
    for _ in 0..2 {
        for listed in log.list(&layout::pins(log.volume), deadline).await? {
            let (_, snapshot) = layout::pin_in(&listed.key).ok_or(GcError::StrayPin { key: listed.key })?;
            pinned.insert(snapshot);
        }
    }
    Ok(pinned)
}

/// Forgets the deleted snapshots that no pin names. One whose map is not written yet waits for the checkpoint.
pub(super) async fn forget_snapshots(volume: &Volume, deadline: Instant) -> Result<(), GcError> {
    let control = volume.cut().await?.control;
    let mut deleted: Vec<SnapshotId> = control
        .snapshots
        .iter()
        .filter(|(_, snapshot)| snapshot.deleted && snapshot.map.is_some())
        .map(|(id, _)| *id)
        .collect();
    if deleted.is_empty() {
        return Ok(());
    }
    let pinned = pinned(volume.log(), deadline).await?;
    deleted.retain(|snapshot| !pinned.contains(snapshot));
    if !deleted.is_empty() {
        let ops = deleted.into_iter().map(|snapshot| Op::ForgetSnapshot { snapshot }).collect();
        volume.append(ops, false).await?;
    }
    Ok(())
}
