//! SnapshotPolicy → VolumeSnapshots, their retention, ArchivedSnapshots, and the status that says whether the volumes
//! are safe.
//!
//! Fetch and validate ([`observe`]), decide ([`plan`]), build ([`build`]), apply (here), report ([`status`]). Only
//! this file and `observe` hold a client.
//!
//! # Crash behaviour
//! Every write is named by what it is for, so a reconcile that died half-way is completed by the next, here or in the
//! other replica.

pub mod build;
pub mod observe;
pub mod plan;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::{ArchivedSnapshot, HumanDuration, SnapshotPolicy, jiff::Timestamp};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;

use crate::api::{self, Created};
use crate::conditions;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::PolicyLabels;
use crate::policy::observe::{Observed, observe};
use crate::policy::plan::{Plan, Take, plan};
use crate::policy::status::{Report, report};
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotContent};

/// The longest that a status is left to age.
const REFRESH: Duration = Duration::from_secs(300);

/// Brings one policy up to date.
pub async fn reconcile(policy: Arc<SnapshotPolicy>, ctx: Arc<Context>) -> Result<Action, Error> {
    let labels =
        PolicyLabels { namespace: policy.namespace().unwrap_or_default(), policy: policy.name_any() };
    if policy.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let seen = observe(&ctx, (*policy).clone()).await?;
    let mut plan = plan(&seen);
    let applied = apply(&ctx, &seen, &mut plan).await;
    // What could not be applied is reported too, or the user would look at an old status.
    let report = report(&seen, &plan);
    publish(&ctx, &seen, &report, &labels).await?;
    applied?;
    Ok(Action::requeue(wait(seen.now, plan.next_run, report.next_breach)))
}

/// Until the next thing is due, but no longer than the status may age.
fn wait(now: Timestamp, next_run: Option<Timestamp>, next_breach: Option<Timestamp>) -> Duration {
    // A breach begins after its time, not at it.
    let next_breach = next_breach.map(|time| time + holdfast_api::jiff::SignedDuration::from_secs(1));
    let next = next_run.into_iter().chain(next_breach).min();
    let wait = next.map(|next| next.duration_since(now)).and_then(|wait| Duration::try_from(wait).ok());
    wait.unwrap_or(REFRESH).clamp(Duration::from_secs(1), REFRESH)
}

/// Carries the plan out. A volume whose snapshot cannot be taken does not hold the others up; the first such error is
/// returned in the end.
async fn apply(ctx: &Context, seen: &Observed, plan: &mut Plan) -> Result<(), Error> {
    let mut first_error = Ok(());
    for take in &plan.take {
        if let Err(error) = take_snapshot(ctx, seen, take).await {
            plan.held.insert(take.claim.name.clone(), error.to_string());
            first_error = first_error.and(Err(error));
        }
    }
    for snapshot in &plan.archive {
        archive(ctx, seen, snapshot).await?;
    }
    let namespace = seen.policy.namespace().unwrap_or_default();
    for name in &plan.delete {
        api::delete(&ctx.within::<VolumeSnapshot>(&namespace), name).await?;
        let note = format!("snapshot {name} is past its retention");
        ctx.event(&seen.policy, EventType::Normal, "SnapshotExpired", &note).await;
    }
    for name in &plan.forget {
        api::delete(&ctx.everywhere::<ArchivedSnapshot>(), name).await?;
    }
    first_error
}

async fn take_snapshot(ctx: &Context, seen: &Observed, take: &Take) -> Result<(), Error> {
    let policy = &seen.policy;
    let volumes = ctx.everywhere::<PersistentVolume>();
    let volume = api::get(&volumes, &take.claim.volume_name).await?.unwrap_or_default();
    let snapshot = build::volume_snapshot(policy, take, &volume);
    let snapshots = ctx.within::<VolumeSnapshot>(&policy.namespace().unwrap_or_default());
    if api::create(&snapshots, &snapshot).await? == Created::Now {
        let note = format!("snapshot {} of {} for {}", take.name, take.claim.name, take.slot);
        ctx.event(policy, EventType::Normal, "SnapshotTaken", &note).await;
    }
    Ok(())
}

/// Asks for a snapshot to be archived, once the driver has told its handle.
async fn archive(ctx: &Context, seen: &Observed, snapshot: &VolumeSnapshot) -> Result<(), Error> {
    let bound =
        snapshot.status.as_ref().and_then(|status| status.bound_volume_snapshot_content_name.as_ref());
    let Some(content_name) = bound else { return Ok(()) };
    let content = api::get(&ctx.everywhere::<VolumeSnapshotContent>(), content_name).await?;
    let Some(handle) = content.and_then(|content| content.status?.snapshot_handle) else { return Ok(()) };
    let Some(point) = build::archived_snapshot(seen, snapshot, handle) else { return Ok(()) };
    api::create(&ctx.everywhere::<ArchivedSnapshot>(), &point).await?;
    Ok(())
}

async fn publish(
    ctx: &Context,
    seen: &Observed,
    report: &Report,
    labels: &PolicyLabels,
) -> Result<(), Error> {
    let policy = &seen.policy;
    let metrics = &ctx.metrics;
    metrics.policy_volumes.get_or_create(labels).set(u64::from(report.status.matched_volumes));
    metrics.policy_breached.get_or_create(labels).set(u64::from(report.status.breached_volumes));
    let seconds = HumanDuration::as_secs;
    metrics.local_lag.get_or_create(labels).set(seconds(report.worst_local));
    metrics.archive_lag.get_or_create(labels).set(seconds(report.worst_archive));

    let api = ctx.within::<SnapshotPolicy>(&labels.namespace);
    api::write_status(&api, policy, policy.status.as_ref(), &report.status).await?;
    for type_ in &report.changed {
        if let Some(condition) = conditions::find(&report.status.conditions, type_) {
            let kind = if condition.status == "False" { EventType::Warning } else { EventType::Normal };
            ctx.event(policy, kind, &condition.reason, &condition.message).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    #[test]
    fn the_next_reconcile_comes_with_the_next_run_or_breach_and_never_too_late() {
        let now = at("2026-11-23T10:00:00Z");
        let seconds = |next_run, next_breach| wait(now, next_run, next_breach).as_secs();
        assert_eq!(seconds(Some(at("2026-11-23T10:02:00Z")), None), 120);
        assert_eq!(seconds(Some(at("2026-11-23T10:02:00Z")), Some(at("2026-11-23T10:01:00Z"))), 61);
        assert_eq!(seconds(Some(at("2026-11-24T10:00:00Z")), None), 300);
        assert_eq!(seconds(Some(at("2026-11-23T09:00:00Z")), None), 300);
        assert_eq!(seconds(None, None), 300);
    }
}
