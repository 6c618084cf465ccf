//! ArchivedSnapshot → a Job that makes the point, and the status that tells how far it is and who restores from it.
//!
//! # Guarantees
//! - The attempt is recorded in the status before its Job is created, and the Job's name follows from the attempt: a
//!   crash between the two, or a second replica, starts the same Job.
//! - Jobs of a target are counted and started one at a time, so its limit holds.
//! - Completion is what the target says, never the Job alone.

pub mod decide;

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::archived::{Phase, Progress};
use holdfast_api::jiff::Timestamp;
use holdfast_api::{ArchiveTarget, ArchivedSnapshot, ArchivedSnapshotStatus, ByteQuantity, labels, names};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use serde_json::json;

use crate::api;
use crate::archive::decide::{Observation, Step, decide};
use crate::conditions::{self, Verdict};
use crate::context::Context;
use crate::error::Error;
use crate::jobs::{self, JobState, PROGRESS_PORT, Work};
use crate::metrics::{RunLabels, TargetLabels};
use crate::pool_file::PoolFile;
use crate::restore;
use crate::snapshots::VolumeSnapshot;
use crate::store::ArchivedPoint;
use crate::target::files;

/// Between two looks at a Job's progress.
const WATCH: Duration = Duration::from_secs(5);
/// Between two tries to start a Job that has to wait.
const WAIT: Duration = Duration::from_secs(15);

/// Brings one point up to date.
pub async fn reconcile(point: Arc<ArchivedSnapshot>, ctx: Arc<Context>) -> Result<Action, Error> {
    if point.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let status = point.status.clone().unwrap_or_default();
    if point.spec.snapshot_handle.is_some() && matches!(status.phase, Phase::Complete | Phase::Missing) {
        return keep_restores(&ctx, &point, status).await;
    }
    if point.spec.origin.is_none() {
        // Found in the target: the target's controller describes it.
        return Ok(Action::requeue(WAIT));
    }
    let targets = ctx.everywhere::<ArchiveTarget>();
    let Some(target) = api::get(&targets, &point.spec.target_name).await? else {
        let verdict =
            Verdict::no("TargetNotFound", format!("there is no ArchiveTarget {}", point.spec.target_name));
        return wait(&ctx, &point, status, &verdict, WAIT * 4).await;
    };
    let mut seen = observe(&ctx, &point, &target, &status).await?;
    let mut step = decide(&seen);
    let mut admitted = None;
    if matches!(step, Step::Start { .. }) {
        // Counted again under the lock: others may have started Jobs since.
        admitted = Some(ctx.admission.lock().await);
        let at_work = jobs_at_work(&ctx, &target.name_any()).await?;
        count_others(&mut seen, &point, &at_work);
        step = decide(&seen);
    }
    let action = act(&ctx, &point, &target, status, step).await;
    drop(admitted);
    action
}

/// Notes the Jobs of other points that are at work for the target.
fn count_others(seen: &mut Observation, point: &ArchivedSnapshot, at_work: &[Job]) {
    let source = &point.spec.source;
    let claim = names::label_value(&source.claim_name);
    let others =
        at_work.iter().filter(|job| job.labels().get(labels::ARCHIVED_SNAPSHOT) != Some(&point.name_any()));
    seen.running = others.clone().count();
    seen.volume_busy = others.into_iter().any(|job| {
        job.labels().get(labels::NAMESPACE) == Some(&source.namespace)
            && job.labels().get(labels::CLAIM) == Some(&claim)
    });
}

async fn observe(
    ctx: &Context,
    point: &ArchivedSnapshot,
    target: &ArchiveTarget,
    status: &ArchivedSnapshotStatus,
) -> Result<Observation, Error> {
    let target_name = target.name_any();
    let jobs = ctx.own::<Job>();
    let mut job = None;
    if status.attempts > 0 {
        let name = Work::Archive { point, attempt: status.attempts }.job_name(&target_name);
        if let Some(found) = api::get(&jobs, &name).await? {
            let state = jobs::state(&found);
            let message = if state == JobState::Failed { failure(ctx, &name).await? } else { String::new() };
            job = Some((state, message));
        }
    }
    let mut seen = Observation {
        phase: status.phase,
        attempts: status.attempts,
        last_failure: status.last_failure_time.as_ref().map(|time| time.0),
        point: None,
        job,
        target_trouble: None,
        running: 0,
        limit: target.spec.parallel_jobs(),
        volume_busy: false,
        origin_exists: origin_exists(ctx, point).await?,
        superseded: is_superseded(ctx, point).await?,
        now: ctx.now(),
    };
    // While the Job is at work the target need not be asked.
    if !matches!(seen.job, Some((JobState::Running, _))) {
        match find_point(ctx, target, &point.name_any()).await? {
            Ok(found) => seen.point = found,
            Err(trouble) => seen.target_trouble = Some(trouble),
        }
    }
    if seen.target_trouble.is_none() {
        seen.target_trouble = trouble(target);
    }
    Ok(seen)
}

/// Jobs of the target that copy and have not ended.
pub async fn jobs_at_work(ctx: &Context, target: &str) -> Result<Vec<Job>, Error> {
    let selector = format!("{}={target},{} in (archive,expire)", labels::TARGET, labels::ACTION);
    let mut all = api::list(&ctx.own::<Job>(), &selector).await?;
    all.retain(|job| jobs::state(job) == JobState::Running);
    Ok(all)
}

/// The point of that name in the target; the inner error says why the target cannot be read.
async fn find_point(
    ctx: &Context,
    target: &ArchiveTarget,
    name: &str,
) -> Result<Result<Option<ArchivedPoint>, String>, Error> {
    let file: PoolFile = match files::writer(ctx, target).await? {
        Ok(file) => file,
        Err(trouble) => return Ok(Err(trouble.message)),
    };
    let found = ctx.ask(ctx.store.point(&file, name)).await;
    Ok(found.map_err(|error| format!("{}: {error}", target.name_any())))
}

fn trouble(target: &ArchiveTarget) -> Option<String> {
    if target.metadata.deletion_timestamp.is_some() {
        return Some(format!("ArchiveTarget {} is being deleted", target.name_any()));
    }
    let conditions = target.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    match conditions::find(conditions, "Ready") {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(format!("{}: {}", target.name_any(), ready.message)),
        None => Some(format!("ArchiveTarget {} has not passed its self-test yet", target.name_any())),
    }
}

async fn origin_exists(ctx: &Context, point: &ArchivedSnapshot) -> Result<bool, Error> {
    let Some(origin) = &point.spec.origin else { return Ok(false) };
    let snapshots = ctx.within::<VolumeSnapshot>(&point.spec.source.namespace);
    let snapshot = api::get(&snapshots, &origin.volume_snapshot_name).await?;
    Ok(snapshot
        .is_some_and(|s| s.uid().as_ref() == Some(&origin.uid) && s.metadata.deletion_timestamp.is_none()))
}

/// Whether the same policy wants a newer point of the volume in the same target.
async fn is_superseded(ctx: &Context, point: &ArchivedSnapshot) -> Result<bool, Error> {
    let Some(policy) = point.labels().get(labels::POLICY) else { return Ok(false) };
    let source = &point.spec.source;
    let selector = format!(
        "{}={policy},{}={},{}={}",
        labels::POLICY,
        labels::NAMESPACE,
        source.namespace,
        labels::TARGET,
        point.spec.target_name
    );
    let others = api::list(&ctx.everywhere::<ArchivedSnapshot>(), &selector).await?;
    Ok(others.iter().any(|other| {
        other.spec.source.same_volume(source) && other.spec.point_in_time.0 > point.spec.point_in_time.0
    }))
}

/// What the last pod of a failed Job said.
pub async fn failure(ctx: &Context, job: &str) -> Result<String, Error> {
    let pods = api::list(&ctx.own::<Pod>(), &format!("batch.kubernetes.io/job-name={job}")).await?;
    let said = |pod: &Pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let ended = statuses.first()?.state.as_ref()?.terminated.as_ref()?;
        let message = ended.message.as_deref().map(str::trim).filter(|text| !text.is_empty())?;
        Some((ended.finished_at.as_ref().map(|time| time.0), message.to_owned()))
    };
    let last = pods.iter().filter_map(said).max();
    let text = last.map(|(_, text)| text).unwrap_or_else(|| format!("Job {job} failed and left no message"));
    // The last line says what the log led up to.
    Ok(conditions::shorten(text.lines().last().unwrap_or(&text), 1024))
}

async fn act(
    ctx: &Context,
    point: &ArchivedSnapshot,
    target: &ArchiveTarget,
    mut status: ArchivedSnapshotStatus,
    step: Step,
) -> Result<Action, Error> {
    match step {
        Step::Complete(found) => complete(ctx, point, status, &found).await,
        Step::Watch => {
            status.phase = Phase::Archiving;
            if let Some(progress) = progress(ctx, point).await? {
                status.progress = Some(progress);
            }
            wait(ctx, point, status, &Verdict::no("Archiving", "a Job copies the snapshot"), WATCH).await
        }
        Step::Start { attempt } => {
            status.phase = Phase::Archiving;
            status.attempts = attempt;
            let verdict = Verdict::no("Archiving", "a Job copies the snapshot");
            let action = wait(ctx, point, status, &verdict, WATCH).await?;
            let job = jobs::job(&ctx.settings, target, Work::Archive { point, attempt });
            api::create(&ctx.own::<Job>(), &job).await?;
            Ok(action)
        }
        Step::Wait { reason, message } => wait(ctx, point, status, &Verdict::no(reason, message), WAIT).await,
        Step::Fail { message } => {
            status.phase = Phase::Failed;
            status.last_failure_time = Some(Time(ctx.now()));
            count_run(ctx, point, "failed");
            ctx.event(point, EventType::Warning, "ArchiveFailed", &message).await;
            wait(ctx, point, status, &Verdict::no("JobFailed", message), Duration::from_secs(1)).await
        }
        Step::Backoff { until } => {
            let left = Duration::try_from(until.duration_since(ctx.now())).unwrap_or_default();
            Ok(Action::requeue(left + Duration::from_secs(1)))
        }
        Step::GiveUp { reason, message } => {
            status.phase = Phase::Failed;
            write(ctx, point, status, &Verdict::no(reason, message)).await?;
            Ok(Action::await_change())
        }
    }
}

fn count_run(ctx: &Context, point: &ArchivedSnapshot, result: &'static str) {
    let labels = RunLabels { target: point.spec.target_name.clone(), result };
    ctx.metrics.archive_runs.get_or_create(&labels).inc();
}

async fn write(
    ctx: &Context,
    point: &ArchivedSnapshot,
    mut status: ArchivedSnapshotStatus,
    verdict: &Verdict,
) -> Result<(), Error> {
    conditions::set(&mut status.conditions, "Archived", verdict, point.metadata.generation, ctx.now());
    let api = ctx.everywhere::<ArchivedSnapshot>();
    api::write_status(&api, point, point.status.as_ref(), &status).await
}

async fn wait(
    ctx: &Context,
    point: &ArchivedSnapshot,
    status: ArchivedSnapshotStatus,
    verdict: &Verdict,
    after: Duration,
) -> Result<Action, Error> {
    write(ctx, point, status, verdict).await?;
    Ok(Action::requeue(after))
}

async fn complete(
    ctx: &Context,
    point: &ArchivedSnapshot,
    mut status: ArchivedSnapshotStatus,
    found: &ArchivedPoint,
) -> Result<Action, Error> {
    let api = ctx.everywhere::<ArchivedSnapshot>();
    let change = json!({
        "metadata": {"resourceVersion": point.resource_version()},
        "spec": {"snapshotHandle": found.handle},
    });
    let point = &api::merge(&api, &point.name_any(), &change).await?;
    describe_point(&mut status, found);
    if let Some(progress) = &status.progress {
        let labels = TargetLabels { target: point.spec.target_name.clone() };
        ctx.metrics.archived.get_or_create(&labels).inc_by(progress.transferred_bytes);
    }
    count_run(ctx, point, "complete");
    let note =
        format!("{} of {} is in {}", found.handle, point.spec.source.claim_name, point.spec.target_name);
    ctx.event(point, EventType::Normal, "Archived", &note).await;
    wait(ctx, point, status, &Verdict::yes("Archived", "the target has the point"), Duration::from_secs(1))
        .await
}

/// Fills in what the target says about a point.
pub fn describe_point(status: &mut ArchivedSnapshotStatus, found: &ArchivedPoint) {
    status.phase = Phase::Complete;
    if let Some(bytes) = found.changed_bytes {
        status.progress = Some(Progress { changed_bytes: bytes, transferred_bytes: bytes });
    } else if let Some(progress) = status.progress.as_mut() {
        // A Job that ended between two looks has told its last numbers to nobody: it moved all there was.
        progress.transferred_bytes = progress.transferred_bytes.max(progress.changed_bytes);
    }
    status.restore_size = Some(ByteQuantity::from_bytes(found.restore_size_bytes));
    status.expires_at = found.expires_at.map(|time: Timestamp| Time(conditions::whole_seconds(time)));
}

/// What the Job at work has moved; `None` when it cannot be asked now.
async fn progress(ctx: &Context, point: &ArchivedSnapshot) -> Result<Option<Progress>, Error> {
    let selector = format!("{}={},{}=archive", labels::ARCHIVED_SNAPSHOT, point.name_any(), labels::ACTION);
    let pods = api::list(&ctx.own::<Pod>(), &selector).await?;
    let running = pods.iter().find_map(|pod| {
        let status = pod.status.as_ref()?;
        (status.phase.as_deref() == Some("Running")).then(|| status.pod_ip.clone()).flatten()
    });
    let Some(ip) = running else { return Ok(None) };
    Ok(ctx.probe.progress(&crate::probe::address(&ip, PROGRESS_PORT)).await.ok())
}

/// A complete point: only who restores from it can change.
async fn keep_restores(
    ctx: &Context,
    point: &ArchivedSnapshot,
    mut status: ArchivedSnapshotStatus,
) -> Result<Action, Error> {
    let found = restore::list::restores(ctx, point).await?;
    status.restores = found.restores;
    let api = ctx.everywhere::<ArchivedSnapshot>();
    api::write_status(&api, point, point.status.as_ref(), &status).await?;
    Ok(match found.look_again {
        Some(after) => Action::requeue(after),
        None => Action::await_change(),
    })
}
