//! The operator's life: serve health, stand for election, and lead while elected.
//!
//! # Crash behaviour
//! Losing the lease drops all controllers at once, wherever they are; the next leader repeats what was begun. The
//! process itself goes on as a standby.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use holdfast_api::jiff::Timestamp;
use holdfast_api::{ArchiveTarget, ArchivedSnapshot, SnapshotPolicy, labels};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use kube::runtime::controller::{Action, Error as ReconcileError};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, Predicate, PredicateConfig, WatchStreamExt, predicates, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::signal::unix;
use tracing_subscriber::EnvFilter;

use crate::archive;
use crate::args::Args;
use crate::certificates;
use crate::context::Context;
use crate::error::{Doing, Error};
use crate::incidents;
use crate::jobs::{self, JobState};
use crate::lease::{Candidate, Timing};
use crate::metrics::{Metrics, PolicyLabels, ReconcileLabels};
use crate::policy;
use crate::probe::HttpProbe;
use crate::restore;
use crate::server::{self, Health};
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use crate::store::ArchiveStore;
use crate::target;

/// The name of the lease.
pub const LEASE: &str = "holdfast-operator";
/// Reconciles of one kind at once.
const CONCURRENCY: u16 = 8;
/// Changes that come together are reconciled together.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// The longest that one reconcile may take.
const RECONCILE_LIMIT: Duration = Duration::from_secs(300);
/// Between two looks at the certificates.
const CERTIFICATES: Duration = Duration::from_secs(600);
/// Between two questions to the node plugins.
const INCIDENTS: Duration = Duration::from_secs(30);
/// Between two tries to make certificates.
const CERTIFICATES_RETRY: Duration = Duration::from_secs(10);

/// Stands for election and leads while elected, until `shutdown` completes.
pub async fn run(ctx: Arc<Context>, health: Health, shutdown: impl Future<Output = ()>) {
    let leases: Api<Lease> = ctx.own();
    let mut candidate = Candidate::new(leases, LEASE, &ctx.settings.identity, Timing::default());
    let terms = async {
        loop {
            let turned = || health.turn();
            candidate.acquire(turned).await;
            tracing::info!(identity = ctx.settings.identity, "leads");
            ctx.metrics.leader.set(1);
            tokio::select! {
                () = candidate.hold(turned) => tracing::warn!("lost the lease; stands by"),
                () = lead(&ctx) => tracing::error!("the controllers ended; stands for election again"),
            }
            ctx.metrics.leader.set(0);
        }
    };
    tokio::select! {
        () = terms => {}
        () = shutdown => {}
    }
    ctx.metrics.leader.set(0);
    let released = tokio::time::timeout(Duration::from_secs(5), candidate.release()).await;
    if !matches!(released, Ok(Ok(()))) {
        tracing::warn!("the lease could not be released; it runs out by itself");
    }
}

/// Runs all controllers.
async fn lead(ctx: &Arc<Context>) {
    tokio::join!(
        certificates(ctx),
        policies(ctx),
        forget_policies(ctx),
        archived_snapshots(ctx),
        targets(ctx),
        restores(ctx),
        contents(ctx),
        tell_incidents(ctx),
    );
}

async fn certificates(ctx: &Arc<Context>) {
    loop {
        let wait = match certificates::ensure(ctx).await {
            Ok(()) => CERTIFICATES,
            Err(error) => {
                tracing::warn!(%error, "certificates");
                CERTIFICATES_RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn tell_incidents(ctx: &Arc<Context>) {
    let mut told = BTreeSet::new();
    loop {
        if let Err(error) = incidents::publish(ctx, &mut told).await {
            tracing::warn!(%error, "incidents of volumes");
        }
        tokio::time::sleep(INCIDENTS).await;
    }
}

async fn policies(ctx: &Arc<Context>) {
    let controller = controller::<SnapshotPolicy>(ctx, watcher::Config::default());
    let (of_claims, of_targets) = (controller.store(), controller.store());
    let in_namespace = move |claim: PersistentVolumeClaim| {
        let namespace = claim.namespace();
        of_claims
            .state()
            .into_iter()
            .filter(move |policy| policy.namespace() == namespace)
            .map(|policy| ObjectRef::from_obj(&*policy))
            .collect::<Vec<_>>()
    };
    let archiving_to = move |target: ArchiveTarget| {
        let name = target.name_any();
        of_targets
            .state()
            .into_iter()
            .filter(move |policy| policy.spec.archive.as_ref().is_some_and(|rule| rule.target_name == name))
            .map(|policy| ObjectRef::from_obj(&*policy))
            .collect::<Vec<_>>()
    };
    // A policy whose name is too long for a label is refused by its schema: the label is the name.
    let of_snapshot = |snapshot: VolumeSnapshot| {
        let name = snapshot.labels().get(labels::POLICY).cloned();
        name.zip(snapshot.namespace()).map(|(name, namespace)| ObjectRef::new(&name).within(&namespace))
    };
    let of_point = |point: ArchivedSnapshot| {
        let name = point.labels().get(labels::POLICY).cloned();
        let namespace = point.spec.source.namespace;
        name.map(|name| ObjectRef::new(&name).within(&namespace))
    };
    let controller = controller
        .watches(ctx.everywhere::<PersistentVolumeClaim>(), watcher::Config::default(), in_namespace)
        .watches(ctx.everywhere::<ArchiveTarget>(), watcher::Config::default(), archiving_to)
        .watches(ctx.everywhere::<VolumeSnapshot>(), labelled(labels::POLICY), of_snapshot)
        .watches(ctx.everywhere::<ArchivedSnapshot>(), labelled(labels::POLICY), of_point);
    drive(controller, "SnapshotPolicy", policy::reconcile, ctx).await;
}

/// Drops the metrics of policies that are gone. They have no finalizer, so no reconcile sees them go.
async fn forget_policies(ctx: &Arc<Context>) {
    watcher(ctx.everywhere::<SnapshotPolicy>(), watcher::Config::default())
        .default_backoff()
        .for_each(|event| {
            if let Ok(watcher::Event::Delete(policy)) = event {
                let namespace = policy.namespace().unwrap_or_default();
                ctx.metrics.forget_policy(&PolicyLabels { namespace, policy: policy.name_any() });
            }
            std::future::ready(())
        })
        .await;
}

async fn archived_snapshots(ctx: &Arc<Context>) {
    let of_content = |content: VolumeSnapshotContent| named_in(&content, labels::ARCHIVED_SNAPSHOT);
    let of_job = |job: Job| named_in(&job, labels::ARCHIVED_SNAPSHOT);
    let controller = controller::<ArchivedSnapshot>(ctx, watcher::Config::default())
        .watches(ctx.own::<Job>(), labelled(labels::ARCHIVED_SNAPSHOT), of_job)
        .watches(ctx.everywhere::<VolumeSnapshotContent>(), labelled(labels::ARCHIVED_SNAPSHOT), of_content);
    drive(controller, "ArchivedSnapshot", archive::reconcile, ctx).await;
}

async fn targets(ctx: &Arc<Context>) {
    let controller = controller::<ArchiveTarget>(ctx, watcher::Config::default());
    let store = controller.store();
    let of_secret = move |secret: Secret| {
        let name = secret.name_any();
        store
            .state()
            .into_iter()
            .filter(move |target| uses_secret(target, &name))
            .map(|target| ObjectRef::from_obj(&*target))
            .collect::<Vec<_>>()
    };
    // What a Job has done to the target is there when it has ended.
    let of_ended = |job: Job| match jobs::state(&job) {
        JobState::Running => None,
        JobState::Succeeded | JobState::Failed => named_in(&job, labels::TARGET),
    };
    let controller = controller.watches(ctx.own::<Secret>(), watcher::Config::default(), of_secret).watches(
        ctx.own::<Job>(),
        labelled(labels::TARGET),
        of_ended,
    );
    drive(controller, "ArchiveTarget", target::reconcile, ctx).await;
}

fn uses_secret(target: &ArchiveTarget, secret: &str) -> bool {
    let spec = &target.spec;
    let key = spec.encryption.as_ref().map(|encryption| &encryption.key_secret_name);
    [spec.writer_secret_name.as_ref(), spec.reader_secret_name.as_ref(), key]
        .into_iter()
        .flatten()
        .any(|name| name == secret)
}

async fn restores(ctx: &Arc<Context>) {
    let of_content = |content: VolumeSnapshotContent| {
        let reference = content.spec.volume_snapshot_ref;
        let namespace = reference.namespace?;
        Some(ObjectRef::new(&reference.name?).within(&namespace))
    };
    let controller = controller::<VolumeSnapshot>(ctx, watcher::Config::default()).watches(
        ctx.everywhere::<VolumeSnapshotContent>(),
        labelled(labels::ARCHIVED_SNAPSHOT),
        of_content,
    );
    drive(controller, "VolumeSnapshot", restore::reconcile, ctx).await;
}

async fn contents(ctx: &Arc<Context>) {
    let of_snapshot = |snapshot: VolumeSnapshot| {
        let content = snapshot.spec.source.volume_snapshot_content_name?;
        content.starts_with(holdfast_api::names::RESTORE_PREFIX).then(|| ObjectRef::new(&content))
    };
    let controller = controller::<VolumeSnapshotContent>(ctx, labelled(labels::ARCHIVED_SNAPSHOT)).watches(
        ctx.everywhere::<VolumeSnapshot>(),
        watcher::Config::default(),
        of_snapshot,
    );
    drive(controller, "VolumeSnapshotContent", restore::content::reconcile, ctx).await;
}

/// Watches objects that carry the label, whatever its value.
fn labelled(label: &str) -> watcher::Config {
    watcher::Config::default().labels(label)
}

/// The cluster-scoped object that a label names.
fn named_in<K, T>(object: &K, label: &str) -> Option<ObjectRef<T>>
where
    K: ResourceExt,
    T: Resource<DynamicType = ()>,
{
    object.labels().get(label).map(|name| ObjectRef::new(name))
}

/// A controller of a kind. A change of status alone starts no reconcile: statuses are ours, and a reconcile that writes
/// one would call for the next without end.
fn controller<K>(ctx: &Context, config: watcher::Config) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let asked_for = predicates::generation
        .combine(predicates::labels)
        .combine(predicates::annotations)
        .combine(predicates::finalizers);
    let changes = watcher(ctx.everywhere::<K>(), config)
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(asked_for, PredicateConfig::default());
    let config_of = kube::runtime::controller::Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    Controller::for_stream(changes, reader).with_config(config_of)
}

/// Runs a controller, counting and logging how its reconciles end.
async fn drive<K, F, R>(controller: Controller<K>, kind: &'static str, mut reconcile: F, ctx: &Arc<Context>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    F: FnMut(Arc<K>, Arc<Context>) -> R,
    R: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let on_error = |_: Arc<K>, error: &Error, _: Arc<Context>| Action::requeue(error.retry_after());
    let limited = move |object, ctx| {
        let work = tokio::time::timeout(RECONCILE_LIMIT, reconcile(object, ctx));
        async move { work.await.unwrap_or(Err(Error::TooSlow(RECONCILE_LIMIT))) }
    };
    controller
        .run(limited, on_error, Arc::clone(ctx))
        .for_each(|result| {
            let outcome = match &result {
                Ok(_) => "ok",
                // Somebody else was first; the next try sees what they wrote.
                Err(ReconcileError::ReconcilerFailed(error, _)) if error.is_conflict() => "conflict",
                Err(error) => {
                    tracing::warn!(kind, %error, "reconcile");
                    "error"
                }
            };
            let labels = ReconcileLabels { controller: kind, result: outcome };
            ctx.metrics.reconciles.get_or_create(&labels).inc();
            std::future::ready(())
        })
        .await;
}

/// Runs the program until it is told to end: logs, health, election, controllers.
pub async fn start(args: Args, store: Arc<dyn ArchiveStore>) -> Result<(), Error> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    let signal = |kind, name: &str| {
        unix::signal(kind).map_err(|source| Error::Startup { action: format!("listen for {name}"), source })
    };
    let (mut terminate, mut interrupt) =
        (signal(unix::SignalKind::terminate(), "SIGTERM")?, signal(unix::SignalKind::interrupt(), "SIGINT")?);
    let (health, metrics) = (Health::default(), Metrics::default());
    let work = async {
        let client = Client::try_default().await.doing(|| "reach the API server".to_owned())?;
        let probe = Arc::new(HttpProbe::default());
        let clock = Arc::new(Timestamp::now);
        let ctx = Context::new(client, args.settings(), store, probe, metrics.clone(), clock).await?;
        health.set_ready();
        let told_to_end = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        run(Arc::new(ctx), health.clone(), told_to_end).await;
        Ok(())
    };
    tokio::select! {
        result = server::serve(&args.health_addr, health.clone(), metrics.clone()) => result,
        result = work => result,
    }
}
