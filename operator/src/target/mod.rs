//! ArchiveTarget → its files in Secrets, its self-test, the points found in it, expiry, verification, and an end that
//! waits for volumes that still read from it.
//!
//! # Guarantees
//! - Nodes never get a writer's credentials.
//! - Deleting a target waits while restored volumes read from it, and says so in the condition Deleting; the
//!   annotation `holdfast.storage/force-delete: "true"` lets it go at once. Deleting never deletes a point: making the
//!   target again finds them all.
//! - A store that does not answer changes nothing that is known about its points.

pub mod discovery;
pub mod distribution;
pub mod files;
pub mod verification;

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::archived::{Phase, Restore};
use holdfast_api::{
    ArchiveTarget, ArchiveTargetStatus, ArchivedSnapshot, TARGET_FINALIZER, annotations, labels, names,
};
use k8s_openapi::api::batch::v1::Job;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::api;
use crate::archive::{describe_point, jobs_at_work};
use crate::conditions::{self, Verdict};
use crate::context::Context;
use crate::error::Error;
use crate::jobs::{self, Work};
use crate::metrics::TargetLabels;
use crate::pool_file::PoolFile;
use crate::restore;
use crate::store::{ArchivedPoint, StoreError};
use crate::target::discovery::{Difference, Sides, compare, is_news};
use crate::target::files::Trouble;

/// Between two looks while something is on its way.
const SOON: Duration = Duration::from_secs(10);
/// Between two looks at a target that is not ready.
const NOT_READY: Duration = Duration::from_secs(30);
/// Jobs that delete points at once, for each target.
const MAX_EXPIRING: usize = 2;

/// Brings one target up to date.
pub async fn reconcile(target: Arc<ArchiveTarget>, ctx: Arc<Context>) -> Result<Action, Error> {
    if target.metadata.deletion_timestamp.is_some() {
        return finish(&ctx, &target).await;
    }
    let targets = ctx.everywhere::<ArchiveTarget>();
    let name = target.name_any();
    if !target.finalizers().iter().any(|finalizer| finalizer == TARGET_FINALIZER) {
        let finalizers: Vec<&str> =
            target.finalizers().iter().map(String::as_str).chain([TARGET_FINALIZER]).collect();
        // With the resource version: a finalizer that somebody else adds meanwhile is not lost.
        let change = json!({"metadata": {
            "finalizers": finalizers, "resourceVersion": target.resource_version(),
        }});
        api::merge(&targets, &name, &change).await?;
        return Ok(Action::requeue(Duration::from_secs(1)));
    }

    let mut status = target.status.clone().unwrap_or_default();
    status.observed_generation = target.metadata.generation;
    let outcome = look(&ctx, &target, &mut status).await?;
    let labels = TargetLabels { target: name };
    ctx.metrics.target_ready.get_or_create(&labels).set(u64::from(outcome.ready));
    ctx.metrics.target_points.get_or_create(&labels).set(status.points.unwrap_or(0));
    ctx.metrics.target_stored.get_or_create(&labels).set(status.stored_bytes.unwrap_or(0));
    api::write_status(&targets, &target, target.status.as_ref(), &status).await?;
    if outcome.changed
        && let Some(ready) = conditions::find(&status.conditions, "Ready")
    {
        let kind = if outcome.ready { EventType::Normal } else { EventType::Warning };
        ctx.event(&*target, kind, &ready.reason, &ready.message).await;
    }
    Ok(Action::requeue(outcome.look_again))
}

/// How a look at a target ended.
struct Outcome {
    ready: bool,
    changed: bool,
    look_again: Duration,
}

async fn look(
    ctx: &Context,
    target: &ArchiveTarget,
    status: &mut ArchiveTargetStatus,
) -> Result<Outcome, Error> {
    let (generation, now) = (target.metadata.generation, ctx.now());
    let verdict = match ready(ctx, target, status).await? {
        Ok(points) => {
            let known = known(ctx, target).await?;
            agree(ctx, target, &points, &known).await?;
            status.points = Some(points.len() as u64);
            verification::run(ctx, target, status, &known).await?;
            Verdict::yes("SelfTestPassed", "the store can be read and written, and keeps its promises")
        }
        Err(trouble) => Verdict::no(trouble.reason, trouble.message),
    };
    let ready = verdict.status == "True";
    let changed = conditions::set(&mut status.conditions, "Ready", &verdict, generation, now);
    let distributed = match (&status.pool_id, ready) {
        (Some(pool_id), true) => distribution::verdict(ctx, &target.name_any(), pool_id).await?,
        _ => Verdict::unknown("NotReady", "the target is not ready"),
    };
    conditions::set(&mut status.conditions, "Distributed", &distributed, generation, now);
    let look_again = match (ready, distributed.status) {
        (false, _) => NOT_READY,
        (true, "True") => ctx.settings.target_interval,
        (true, _) => SOON,
    };
    Ok(Outcome { ready, changed, look_again })
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

/// Writes the files, tests the store and lists its points; the inner error is what the Ready condition says.
async fn ready(
    ctx: &Context,
    target: &ArchiveTarget,
    status: &mut ArchiveTargetStatus,
) -> Result<Result<Vec<ArchivedPoint>, Trouble>, Error> {
    let writer: PoolFile = match files::writer(ctx, target).await? {
        Ok(file) => file,
        Err(trouble) => return Ok(Err(trouble)),
    };
    let reader: PoolFile = match files::reader(ctx, target).await? {
        Ok(file) => file,
        Err(trouble) => return Ok(Err(trouble)),
    };
    // The test comes first: a store that would corrupt volumes is not given to anybody.
    let summary = match ctx.ask(ctx.store.probe(&writer)).await {
        Ok(summary) => summary,
        Err(error) => return Ok(Err(error.into())),
    };
    status.pool_id = Some(summary.pool_id);
    status.stored_bytes = summary.stored_bytes.or(status.stored_bytes);
    let name = target.name_any();
    let changed = files::put(ctx, files::WRITER_SECRET, &name, &writer).await?
        | files::put(ctx, files::READER_SECRET, &name, &reader).await?;
    if changed {
        let generation = format!("{name}-{}", ctx.now().as_second());
        distribution::nudge(ctx, &generation).await?;
    }
    Ok(ctx.ask(ctx.store.points(&writer)).await.map_err(Trouble::from))
}

/// What the cluster knows of the target's points.
async fn known(ctx: &Context, target: &ArchiveTarget) -> Result<Vec<ArchivedSnapshot>, Error> {
    let selector = format!("{}={}", labels::TARGET, target.name_any());
    api::list(&ctx.everywhere::<ArchivedSnapshot>(), &selector).await
}

/// Brings what the cluster knows in line with what the target holds.
async fn agree(
    ctx: &Context,
    target: &ArchiveTarget,
    points: &[ArchivedPoint],
    known: &[ArchivedSnapshot],
) -> Result<(), Error> {
    let name = target.name_any();
    let difference = compare(&Sides {
        target: &name,
        cluster_uid: &ctx.cluster_uid,
        points,
        known,
        minimum: target.spec.minimum_retention(),
        now: ctx.now(),
    });
    let objects = ctx.everywhere::<ArchivedSnapshot>();
    for (object, _) in &difference.create {
        api::create(&objects, object).await?;
    }
    let news = difference.found.iter().filter(|(object, point)| is_news(object, point));
    for (object, point) in difference.create.iter().chain(news) {
        let mut status = object.status.clone().unwrap_or_default();
        describe_point(&mut status, point);
        let verdict = Verdict::yes("Archived", "the target has the point");
        conditions::set(&mut status.conditions, "Archived", &verdict, object.metadata.generation, ctx.now());
        api::write_status(&objects, object, object.status.as_ref(), &status).await?;
    }
    for object in &difference.missing {
        mark_missing(ctx, object).await?;
    }
    for gone in &difference.forget {
        api::delete(&objects, gone).await?;
    }
    expire(ctx, target, &difference).await
}

async fn mark_missing(ctx: &Context, object: &ArchivedSnapshot) -> Result<(), Error> {
    let mut status = object.status.clone().unwrap_or_default();
    if status.phase == Phase::Missing {
        return Ok(());
    }
    status.phase = Phase::Missing;
    let verdict = Verdict::no("Missing", "the target no longer has the point");
    conditions::set(&mut status.conditions, "Archived", &verdict, object.metadata.generation, ctx.now());
    let objects = ctx.everywhere::<ArchivedSnapshot>();
    api::write_status(&objects, object, object.status.as_ref(), &status).await?;
    let note = format!("{} no longer has it", object.spec.target_name);
    ctx.event(object, EventType::Warning, "PointMissing", &note).await;
    Ok(())
}

/// Starts Jobs that delete points, a few at a time and one for each volume.
async fn expire(ctx: &Context, target: &ArchiveTarget, difference: &Difference) -> Result<(), Error> {
    if difference.expire.is_empty() {
        return Ok(());
    }
    let _admitted = ctx.admission.lock().await;
    let at_work = jobs_at_work(ctx, &target.name_any()).await?;
    let is_expiry = |job: &&Job| job.labels().get(labels::ACTION).is_some_and(|action| action == "expire");
    let mut room = MAX_EXPIRING.saturating_sub(at_work.iter().filter(is_expiry).count());
    let volume = |namespace: &str, claim: &str| (namespace.to_owned(), names::label_value(claim));
    let mut busy: Vec<(String, String)> = at_work
        .iter()
        .filter_map(|job| {
            Some((job.labels().get(labels::NAMESPACE)?.clone(), job.labels().get(labels::CLAIM)?.clone()))
        })
        .collect();
    for (object, point) in &difference.expire {
        let of = volume(&object.spec.source.namespace, &object.spec.source.claim_name);
        if room == 0 {
            break;
        }
        if busy.contains(&of) {
            continue;
        }
        let work = Work::Expire { point: object, handle: &point.handle };
        api::create(&ctx.own::<Job>(), &jobs::job(&ctx.settings, target, work)).await?;
        busy.push(of);
        room -= 1;
    }
    Ok(())
}

/// Lets a deleted target go once nothing reads from it.
async fn finish(ctx: &Context, target: &ArchiveTarget) -> Result<Action, Error> {
    let name = target.name_any();
    if !target.finalizers().iter().any(|finalizer| finalizer == TARGET_FINALIZER) {
        return Ok(Action::await_change());
    }
    let targets = ctx.everywhere::<ArchiveTarget>();
    let is_forced = target.annotations().get(annotations::FORCE_DELETE).is_some_and(|value| value == "true");
    let known = known(ctx, target).await?;
    let readers = if is_forced { Vec::new() } else { readers(ctx, &known).await? };
    if !readers.is_empty() {
        let mut status = target.status.clone().unwrap_or_default();
        let message = format!(
            "waits for volumes that still read from it: {}; annotate {}=true to delete it all the same",
            readers.join(", "),
            annotations::FORCE_DELETE
        );
        let verdict = Verdict::no("RestoresHydrating", message);
        if conditions::set(
            &mut status.conditions,
            "Deleting",
            &verdict,
            target.metadata.generation,
            ctx.now(),
        ) {
            ctx.event(target, EventType::Warning, verdict.reason, &verdict.message).await;
        }
        api::write_status(&targets, target, target.status.as_ref(), &status).await?;
        return Ok(Action::requeue(NOT_READY));
    }
    files::remove(ctx, &name).await?;
    for object in &known {
        api::delete(&ctx.everywhere::<ArchivedSnapshot>(), &object.name_any()).await?;
    }
    ctx.metrics.forget_target(&TargetLabels { target: name.clone() });
    let left: Vec<&String> =
        target.finalizers().iter().filter(|finalizer| *finalizer != TARGET_FINALIZER).collect();
    let change = json!({"metadata": {"finalizers": left, "resourceVersion": target.meta().resource_version}});
    match api::merge(&targets, &name, &change).await {
        Ok(_) => Ok(Action::await_change()),
        Err(error) if error.is_not_found() => Ok(Action::await_change()),
        Err(error) => Err(error),
    }
}

/// The claims whose volumes still read from the target's points. Asked afresh: the recorded state may be old.
async fn readers(ctx: &Context, known: &[ArchivedSnapshot]) -> Result<Vec<String>, Error> {
    let mut readers = Vec::new();
    for object in known {
        let found = restore::list::restores(ctx, object).await?;
        let reading = found.restores.iter().filter(|restore| restore.needs_archive());
        readers.extend(reading.map(|r: &Restore| format!("{}/{}", r.namespace, r.claim_name)));
    }
    readers.sort();
    readers.dedup();
    Ok(readers)
}
