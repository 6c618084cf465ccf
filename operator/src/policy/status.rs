//! Status: whether a policy's volumes are safe. Pure.

use holdfast_api::archived::Phase;
use holdfast_api::jiff::Timestamp;
use holdfast_api::objective::{broken_after, is_breached, lag};
use holdfast_api::policy::{MAX_LISTED_VOLUMES, RecoveryPoint, SnapshotPolicyStatus, VolumeProtection};
use holdfast_api::{ArchivedSnapshot, HumanDuration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::conditions::{self, Verdict};
use crate::policy::observe::{Claim, Observed};
use crate::policy::plan::{Plan, protected_since};
use crate::snapshots::VolumeSnapshot;

/// Volumes that the Compliant condition names.
const NAMED_IN_MESSAGE: usize = 5;

/// The status, and what the caller has to do about it.
#[derive(Debug)]
pub struct Report {
    /// The status to write.
    pub status: SnapshotPolicyStatus,
    /// Whether Accepted or Compliant changed: worth an event.
    pub changed: Vec<&'static str>,
    /// When an objective breaks unless a point comes first.
    pub next_breach: Option<Timestamp>,
    /// The largest lags, for the metrics.
    pub worst_local: HumanDuration,
    /// The same for the archive.
    pub worst_archive: HumanDuration,
}

/// How one volume stands.
struct Standing {
    shown: VolumeProtection,
    local_breached: bool,
    archive_breached: bool,
    complaint: Option<String>,
}

/// Reports on all volumes.
pub fn report(seen: &Observed, plan: &Plan) -> Report {
    let policy = &seen.policy;
    let before = policy.status.clone().unwrap_or_default();
    let mut next_breach: Option<Timestamp> = None;
    let mut worst = (HumanDuration::default(), HumanDuration::default());
    let mut standings: Vec<Standing> =
        seen.claims.iter().map(|claim| standing(seen, plan, claim, &mut next_breach, &mut worst)).collect();
    let breached = |s: &Standing| s.local_breached || s.archive_breached;
    standings.sort_by_key(|s| (!breached(s), s.shown.claim_name.clone()));
    let breached_volumes = standings.iter().filter(|s| breached(s)).count();

    let mut status = SnapshotPolicyStatus {
        observed_generation: policy.metadata.generation,
        matched_volumes: u32::try_from(standings.len()).unwrap_or(u32::MAX),
        breached_volumes: u32::try_from(breached_volumes).unwrap_or(u32::MAX),
        next_run_time: plan.next_run.map(Time),
        conditions: before.conditions,
        volumes: Vec::new(),
    };
    let mut changed = Vec::new();
    for (type_, verdict) in [("Accepted", accepted(seen)), ("Compliant", compliant(seen, &standings))] {
        let generation = policy.metadata.generation;
        if conditions::set(&mut status.conditions, type_, &verdict, generation, seen.now) {
            changed.push(type_);
        }
    }
    status.volumes = standings.into_iter().map(|s| s.shown).take(MAX_LISTED_VOLUMES).collect();
    Report { status, changed, next_breach, worst_local: worst.0, worst_archive: worst.1 }
}

fn standing(
    seen: &Observed,
    plan: &Plan,
    claim: &Claim,
    next_breach: &mut Option<Timestamp>,
    worst: &mut (HumanDuration, HumanDuration),
) -> Standing {
    let since = protected_since(seen, claim);
    let objectives = seen.policy.spec.objectives.unwrap_or_default();
    let local = newest_local(seen, claim);
    let archived = newest_archived(seen, claim);
    let mut measure = |objective: Option<HumanDuration>, newest: Option<Timestamp>| {
        let lag = lag(seen.now, newest, since);
        let breached = is_breached(objective, lag);
        if let Some(objective) = objective
            && !breached
        {
            let breaks = broken_after(objective, newest, since);
            *next_breach = (*next_breach).into_iter().chain(breaks).min();
        }
        (lag, breached)
    };
    let (local_lag, local_breached) = measure(objectives.local_rpo, local.as_ref().map(|p| p.time.0));
    worst.0 = worst.0.max(local_lag);
    let mut complaints = Vec::new();
    if local_breached {
        complaints.push(complaint("snapshot", local.as_ref(), local_lag, objectives.local_rpo));
    }
    let mut archive_breached = false;
    let mut archive_lag = None;
    if seen.policy.spec.archive.is_some() {
        let (lag, breached) = measure(objectives.archive_rpo, archived.as_ref().map(|p| p.time.0));
        worst.1 = worst.1.max(lag);
        archive_lag = Some(lag.coarse());
        archive_breached = breached;
        if breached {
            complaints.push(complaint("archived", archived.as_ref(), lag, objectives.archive_rpo));
            complaints.extend(archive_trouble(seen, claim));
        }
    }
    complaints.extend(plan.held.get(&claim.name).cloned());
    let complaint = (!complaints.is_empty()).then(|| complaints.join("; "));
    Standing {
        shown: VolumeProtection {
            claim_name: claim.name.clone(),
            last_local: local,
            last_archived: archived,
            local_lag: Some(local_lag.coarse()),
            archive_lag,
            message: complaint.as_deref().map(|text| conditions::shorten(text, 1024)),
        },
        local_breached,
        archive_breached,
        complaint,
    }
}

fn newest_local(seen: &Observed, claim: &Claim) -> Option<RecoveryPoint> {
    let usable = |s: &&VolumeSnapshot| {
        s.claim() == Some(&claim.name) && s.is_ready() && s.metadata.deletion_timestamp.is_none()
    };
    let newest = seen.snapshots.iter().filter(usable).max_by_key(|s| s.time())?;
    Some(RecoveryPoint { name: newest.name_any(), time: Time(newest.time()?) })
}

fn newest_archived(seen: &Observed, claim: &Claim) -> Option<RecoveryPoint> {
    let complete = |point: &&ArchivedSnapshot| {
        point.spec.source.claim_name == claim.name
            && point.status.as_ref().is_some_and(|status| status.phase == Phase::Complete)
    };
    let newest = seen.archived.iter().filter(complete).max_by_key(|point| point.spec.point_in_time.0)?;
    Some(RecoveryPoint { name: newest.name_any(), time: newest.spec.point_in_time.clone() })
}

/// "archived 5h ago, promised 4h".
fn complaint(
    what: &str,
    newest: Option<&RecoveryPoint>,
    lag: HumanDuration,
    promised: Option<HumanDuration>,
) -> String {
    let promised = promised.unwrap_or_default();
    match newest {
        Some(_) => format!("{what} {} ago, promised {promised}", lag.coarse()),
        None if what == "archived" => format!("never archived in {}, promised {promised}", lag.coarse()),
        None => format!("no {what} in {}, promised {promised}", lag.coarse()),
    }
}

/// Why the archive lags: what is wrong with the target, or what the last run said.
fn archive_trouble(seen: &Observed, claim: &Claim) -> Option<String> {
    if let Some(trouble) = seen.archive.as_ref().and_then(|archive| archive.target_trouble.clone()) {
        return Some(trouble);
    }
    let unfinished = |point: &&ArchivedSnapshot| {
        point.spec.source.claim_name == claim.name
            && point.status.as_ref().is_none_or(|status| status.phase != Phase::Complete)
    };
    let newest = seen.archived.iter().filter(unfinished).max_by_key(|point| point.spec.point_in_time.0)?;
    let condition = conditions::find(&newest.status.as_ref()?.conditions, "Archived")?;
    (condition.status == "False").then(|| format!("{}: {}", newest.spec.target_name, condition.message))
}

fn accepted(seen: &Observed) -> Verdict {
    match seen.problems.first() {
        None => Verdict::yes("Valid", "all parts of the spec can be carried out"),
        Some(first) => {
            let messages: Vec<&str> = seen.problems.iter().map(|problem| problem.message.as_str()).collect();
            Verdict::no(first.reason, messages.join("; "))
        }
    }
}

fn compliant(seen: &Observed, standings: &[Standing]) -> Verdict {
    let objectives = seen.policy.spec.objectives.unwrap_or_default();
    if standings.is_empty() {
        return Verdict::unknown("NoVolumes", "the selector matches no bound claim of this namespace");
    }
    if objectives.local_rpo.is_none() && objectives.archive_rpo.is_none() {
        return Verdict::unknown("NoObjectives", "spec.objectives promises nothing to compare with");
    }
    let breached: Vec<&Standing> =
        standings.iter().filter(|s| s.local_breached || s.archive_breached).collect();
    if breached.is_empty() {
        return Verdict::yes(
            "ObjectivesMet",
            format!("all {} volumes keep their objectives", standings.len()),
        );
    }
    let reason =
        if breached.iter().any(|s| s.local_breached) { "SnapshotsLagging" } else { "ArchiveLagging" };
    let mut lines: Vec<String> = breached
        .iter()
        .take(NAMED_IN_MESSAGE)
        .map(|s| format!("{}: {}", s.shown.claim_name, s.complaint.as_deref().unwrap_or_default()))
        .collect();
    if breached.len() > NAMED_IN_MESSAGE {
        lines.push(format!("and {} more volumes", breached.len() - NAMED_IN_MESSAGE));
    }
    Verdict::no(reason, lines.join("; "))
}
