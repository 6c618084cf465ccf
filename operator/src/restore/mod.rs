//! Restores, asked for in the standard way: a VolumeSnapshot whose `volumeSnapshotContentName` is
//! `holdfast-<ArchivedSnapshot>-<namespace>`. The operator checks that the namespace may have the point, and creates
//! that content; everything after is Kubernetes' own.
//!
//! # Guarantees
//! - A namespace gets a point only if the target selects it and the target's restore scope covers it.
//! - A content is Retain: deleting the snapshot, the claim or the namespace never deletes a point. Its end is the end
//!   of its VolumeSnapshot, and no finalizer of ours holds a namespace up.
//! - A refusal stands where the user looks: an event and an annotation on the VolumeSnapshot.

pub mod content;
pub mod decide;
pub mod list;

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::{ArchiveTarget, ArchivedSnapshot, annotations, names};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use serde_json::json;

use crate::api::{self, Created};
use crate::context::Context;
use crate::error::Error;
use crate::restore::decide::{Request, Ruling, decide};
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotContent};

/// Between two looks at a request that cannot be met yet.
const RETRY: Duration = Duration::from_secs(60);

/// Answers one VolumeSnapshot, if it asks for a restore.
pub async fn reconcile(snapshot: Arc<VolumeSnapshot>, ctx: Arc<Context>) -> Result<Action, Error> {
    let wanted = snapshot.spec.source.volume_snapshot_content_name.as_deref();
    let (Some(content_name), Some(namespace)) = (wanted, snapshot.namespace()) else {
        return Ok(Action::await_change());
    };
    if !content_name.starts_with(names::RESTORE_PREFIX) || snapshot.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let contents = ctx.everywhere::<VolumeSnapshotContent>();
    let existing = api::get(&contents, content_name).await?;
    let archived = names::restored_from(content_name, &namespace);
    let point = match archived {
        Some(name) => api::get(&ctx.everywhere::<ArchivedSnapshot>(), name).await?,
        None => None,
    };
    let target = match &point {
        Some(point) => api::get(&ctx.everywhere::<ArchiveTarget>(), &point.spec.target_name).await?,
        None => None,
    };
    let space = api::get(&ctx.everywhere::<Namespace>(), &namespace).await?;
    let ruling = decide(&Request {
        snapshot: &snapshot,
        content_name,
        namespace: &namespace,
        namespace_labels: space.as_ref().map(ResourceExt::labels),
        archived,
        point: point.as_ref(),
        target: target.as_ref(),
        existing: existing.as_ref(),
    });
    match ruling {
        Ruling::Granted => note(&ctx, &snapshot, None).await.map(|()| Action::await_change()),
        Ruling::Grant(content) => {
            if api::create(&contents, &*content).await? == Created::Now {
                let text = format!("volumes can be made from {}", archived.unwrap_or_default());
                ctx.event(&*snapshot, EventType::Normal, "RestoreGranted", &text).await;
            }
            note(&ctx, &snapshot, None).await?;
            Ok(Action::await_change())
        }
        Ruling::Refuse { reason, message } => {
            note(&ctx, &snapshot, Some((reason, &message))).await?;
            Ok(Action::requeue(RETRY))
        }
    }
}

/// Writes why a restore is refused, or that it no longer is, if that is news.
async fn note(
    ctx: &Context,
    snapshot: &VolumeSnapshot,
    refusal: Option<(&'static str, &str)>,
) -> Result<(), Error> {
    let text = refusal.map(|(reason, message)| format!("{reason}: {message}"));
    if snapshot.annotations().get(annotations::RESTORE_DENIED) == text.as_ref() {
        return Ok(());
    }
    let api = ctx.within::<VolumeSnapshot>(&snapshot.namespace().unwrap_or_default());
    let change = json!({"metadata": {"annotations": {annotations::RESTORE_DENIED: text}}});
    api::merge(&api, &snapshot.name_any(), &change).await?;
    if let Some((reason, message)) = refusal {
        ctx.event(snapshot, EventType::Warning, reason, message).await;
    }
    Ok(())
}
