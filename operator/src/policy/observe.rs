//! Fetch and validate: what a policy's reconcile looks at, read from the API server, and which parts of the spec can
//! be carried out.

use std::collections::BTreeMap;

use holdfast_api::jiff::Timestamp;
use holdfast_api::jiff::tz::TimeZone;
use holdfast_api::policy::Schedule;
use holdfast_api::schedule::Timetable;
use holdfast_api::{ArchiveTarget, ArchivedSnapshot, DRIVER, SnapshotPolicy, labels, names};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::ListParams;
use kube::core::{Selector, SelectorExt};

use crate::api;
use crate::conditions;
use crate::context::Context;
use crate::error::{Doing, Error};
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotClass};

/// The annotation in which Kubernetes notes who provisioned a claim's volume.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

/// A bound claim that the policy selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The volume it is bound to.
    pub volume_name: String,
    /// The driver, when it is not Holdfast's.
    pub foreign_driver: Option<String>,
}

/// What is wrong with a part of the spec. The other parts go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The condition reason.
    pub reason: &'static str,
    /// A sentence that says what to do.
    pub message: String,
}

/// The archive section, checked.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Whether new points may be archived.
    pub usable: bool,
    /// What is wrong with the target itself, for the message of a lagging volume.
    pub target_trouble: Option<String>,
}

/// All that a policy's reconcile looks at.
pub struct Observed {
    /// The policy.
    pub policy: SnapshotPolicy,
    /// The claims it selects, by name.
    pub claims: Vec<Claim>,
    /// Its snapshots, of all claims it ever selected.
    pub snapshots: Vec<VolumeSnapshot>,
    /// Its archived points, of all its claims.
    pub archived: Vec<ArchivedSnapshot>,
    /// The schedules that can run.
    pub timetables: Vec<(Schedule, Timetable)>,
    /// Whether snapshots can be taken with the class.
    pub class_usable: bool,
    /// The archive section; `None` when there is none.
    pub archive: Option<Archive>,
    /// What is wrong with the spec.
    pub problems: Vec<Problem>,
    /// The zone in which retention counts.
    pub zone: TimeZone,
    /// The UID of the cluster.
    pub cluster_uid: String,
    /// The time of the reconcile.
    pub now: Timestamp,
}

/// Reads everything.
pub async fn observe(ctx: &Context, policy: SnapshotPolicy) -> Result<Observed, Error> {
    let now = ctx.now();
    let namespace = policy.namespace().unwrap_or_default();
    let mut problems = Vec::new();

    let claims = match Selector::try_from(policy.spec.selector.clone()) {
        Ok(selector) => claims(ctx, &namespace, &selector).await?,
        Err(error) => {
            problems.push(Problem { reason: "InvalidSelector", message: format!("spec.selector: {error}") });
            Vec::new()
        }
    };
    let selector = format!("{}={}", labels::POLICY, names::label_value(&policy.name_any()));
    let snapshots = api::list(&ctx.within::<VolumeSnapshot>(&namespace), &selector).await?;
    let selector = format!("{}={namespace}", labels::NAMESPACE);
    let mut archived = api::list(&ctx.everywhere::<ArchivedSnapshot>(), &selector).await?;
    archived.retain(|point| is_of_policy(point, &policy, &ctx.cluster_uid));

    let timetables = timetables(&policy, now, &mut problems);
    let class_usable = check_class(ctx, &policy.spec.volume_snapshot_class_name, &mut problems).await?;
    let archive = match &policy.spec.archive {
        None => None,
        Some(rule) => {
            let target = api::get(&ctx.everywhere::<ArchiveTarget>(), &rule.target_name).await?;
            let space = api::get(&ctx.everywhere::<Namespace>(), &namespace).await?;
            let space_labels = space.map(|space| space.labels().clone()).unwrap_or_default();
            Some(check_target(&rule.target_name, target.as_ref(), &space_labels, &mut problems))
        }
    };
    let zone = timetables.first().map_or(TimeZone::UTC, |(_, table)| table.zone().clone());
    Ok(Observed {
        policy,
        claims,
        snapshots,
        archived,
        timetables,
        class_usable,
        archive,
        problems,
        zone,
        cluster_uid: ctx.cluster_uid.clone(),
        now,
    })
}

/// Whether the point counts for the policy: it carries its label, or none because it was found again in the policy's
/// target after its object had been deleted.
fn is_of_policy(point: &ArchivedSnapshot, policy: &SnapshotPolicy, cluster_uid: &str) -> bool {
    let is_ours = point.spec.source.cluster_uid == cluster_uid;
    match point.labels().get(labels::POLICY) {
        Some(label) => is_ours && *label == names::label_value(&policy.name_any()),
        None => {
            let target = policy.spec.archive.as_ref().map(|rule| &rule.target_name);
            is_ours && target == Some(&point.spec.target_name)
        }
    }
}

async fn claims(ctx: &Context, namespace: &str, selector: &Selector) -> Result<Vec<Claim>, Error> {
    let api = ctx.within::<PersistentVolumeClaim>(namespace);
    let params = ListParams::default().labels_from(selector);
    let list = api.list(&params).await.doing(|| format!("list the claims of {namespace}"))?;
    let mut claims: Vec<Claim> = list.items.iter().filter_map(bound_claim).collect();
    claims.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(claims)
}

/// A claim that is bound and stays; others have nothing to protect yet, or no longer.
fn bound_claim(claim: &PersistentVolumeClaim) -> Option<Claim> {
    let phase = claim.status.as_ref()?.phase.as_deref()?;
    if phase != "Bound" || claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let provisioner = claim.annotations().get(PROVISIONER);
    Some(Claim {
        name: claim.name_any(),
        created: claim.creation_timestamp()?.0,
        volume_name: claim.spec.as_ref()?.volume_name.clone()?,
        foreign_driver: provisioner.filter(|driver| *driver != DRIVER).cloned(),
    })
}

fn timetables(
    policy: &SnapshotPolicy,
    now: Timestamp,
    problems: &mut Vec<Problem>,
) -> Vec<(Schedule, Timetable)> {
    let mut valid = Vec::new();
    for schedule in &policy.spec.schedules {
        match Timetable::parse(schedule, now) {
            Ok(table) => valid.push((schedule.clone(), table)),
            Err(error) => {
                problems.push(Problem { reason: "InvalidSchedule", message: error.to_string() });
            }
        }
    }
    valid
}

async fn check_class(ctx: &Context, name: &str, problems: &mut Vec<Problem>) -> Result<bool, Error> {
    let class = api::get(&ctx.everywhere::<VolumeSnapshotClass>(), name).await?;
    let problem = match class {
        None => Problem {
            reason: "SnapshotClassNotFound",
            message: format!("there is no VolumeSnapshotClass {name}"),
        },
        Some(class) if class.spec.driver != DRIVER => Problem {
            reason: "SnapshotClassOfOtherDriver",
            message: format!("VolumeSnapshotClass {name} is of driver {}, not {DRIVER}", class.spec.driver),
        },
        Some(_) => return Ok(true),
    };
    problems.push(problem);
    Ok(false)
}

fn check_target(
    name: &str,
    target: Option<&ArchiveTarget>,
    namespace_labels: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Archive {
    let mut refuse = |reason, message| {
        problems.push(Problem { reason, message });
        Archive { usable: false, target_trouble: None }
    };
    let Some(target) = target else {
        return refuse("TargetNotFound", format!("there is no ArchiveTarget {name}"));
    };
    if target.metadata.deletion_timestamp.is_some() {
        return refuse("TargetDeleting", format!("ArchiveTarget {name} is being deleted"));
    }
    if !selects(target, namespace_labels) {
        let message =
            format!("ArchiveTarget {name} does not select this namespace; ask an administrator to label it");
        return refuse("TargetNotAllowed", message);
    }
    let conditions = target.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let trouble = conditions::find(conditions, "Ready").filter(|ready| ready.status == "False");
    Archive { usable: true, target_trouble: trouble.map(|ready| format!("{name}: {}", ready.message)) }
}

/// Whether a target's selector selects a namespace with these labels. A selector that cannot be read selects none.
pub fn selects(target: &ArchiveTarget, namespace_labels: &BTreeMap<String, String>) -> bool {
    Selector::try_from(target.spec.namespace_selector.clone())
        .is_ok_and(|selector| selector.matches(namespace_labels))
}
