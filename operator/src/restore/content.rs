//! The end of a restore's content: with its VolumeSnapshot.
//!
//! Kubernetes leaves a content whose policy is Retain when its snapshot is deleted, and such a content can never be
//! bound again. The operator made it, so the operator deletes it; Retain means that the point itself stays.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use crate::api;
use crate::context::Context;
use crate::error::Error;
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotContent};

/// How long a content without a snapshot is left: a request may be on its way.
const GRACE: Duration = Duration::from_secs(30);

/// Deletes the content if its snapshot is gone.
pub async fn reconcile(content: Arc<VolumeSnapshotContent>, ctx: Arc<Context>) -> Result<Action, Error> {
    if content.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let reference = &content.spec.volume_snapshot_ref;
    let snapshots = ctx.within::<VolumeSnapshot>(reference.namespace.as_deref().unwrap_or_default());
    let snapshot = api::get(&snapshots, reference.name.as_deref().unwrap_or_default()).await?;
    let is_alive = snapshot.is_some_and(|snapshot| {
        reference.uid.as_ref().is_none_or(|uid| snapshot.uid().as_ref() == Some(uid))
    });
    if is_alive {
        return Ok(Action::await_change());
    }
    let age = content.creation_timestamp().map(|created| ctx.now().duration_since(created.0));
    if age.and_then(|age| Duration::try_from(age).ok()).is_some_and(|age| age < GRACE) {
        return Ok(Action::requeue(GRACE));
    }
    api::delete(&ctx.everywhere::<VolumeSnapshotContent>(), &content.name_any()).await?;
    Ok(Action::await_change())
}
