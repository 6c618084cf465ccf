//! Build: what to do about a policy's volumes now. Pure.
//!
//! # Guarantees
//! - The newest ready snapshot of a volume is never deleted, nor the newest of each schedule: it also marks which
//!   scheduled time has been taken.
//! - A snapshot that waits to be archived, or is being archived, is not deleted; there are at most two for each
//!   volume (the one at work, and the newest), so a target that is away for weeks does not pile snapshots up.
//! - At most one archive run of a policy is under way for each volume; after an outage only the newest snapshot is
//!   made up.
//! - A volume whose snapshots do not become ready gets no more than [`MAX_PENDING`] of them.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::archived::Phase;
use holdfast_api::jiff::{SignedDuration, Timestamp};
use holdfast_api::schedule::Due;
use holdfast_api::{ArchivedSnapshot, names};
use kube::ResourceExt;

use crate::policy::observe::{Claim, Observed};
use crate::snapshots::VolumeSnapshot;

/// Snapshots of one volume that may wait to become ready.
pub const MAX_PENDING: usize = 3;

/// How long a snapshot that never became ready is left for people to look at, once a newer one is ready.
const KEEP_FAILED: SignedDuration = SignedDuration::from_hours(24);

/// A snapshot to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// Of this claim.
    pub claim: Claim,
    /// For this schedule.
    pub schedule: String,
    /// And this time of it.
    pub slot: Timestamp,
    /// Under this name.
    pub name: String,
}

/// What to do now.
#[derive(Debug, Default)]
pub struct Plan {
    /// Snapshots to take.
    pub take: Vec<Take>,
    /// Snapshots to delete.
    pub delete: Vec<String>,
    /// Snapshots to archive.
    pub archive: Vec<VolumeSnapshot>,
    /// Failed archived points that a newer one has replaced.
    pub forget: Vec<String>,
    /// When the next snapshot is due.
    pub next_run: Option<Timestamp>,
    /// Claims that get no snapshot now although one is due, or ever, and why.
    pub held: BTreeMap<String, String>,
}

/// Decides.
pub fn plan(seen: &Observed) -> Plan {
    let mut plan = Plan::default();
    for claim in &seen.claims {
        plan_snapshots(seen, claim, &mut plan);
    }
    let mut by_claim: BTreeMap<&str, Vec<&VolumeSnapshot>> = BTreeMap::new();
    for snapshot in seen.snapshots.iter().filter(|snapshot| snapshot.metadata.deletion_timestamp.is_none()) {
        if let Some(claim) = snapshot.claim() {
            by_claim.entry(claim).or_default().push(snapshot);
        }
    }
    for (claim, snapshots) in by_claim {
        let points: Vec<&ArchivedSnapshot> =
            seen.archived.iter().filter(|point| point.spec.source.claim_name == claim).collect();
        let wanted = newest_unarchived(seen, &snapshots, &points);
        if let Some(snapshot) = wanted
            && !points.iter().any(|point| is_under_way(point))
        {
            plan.archive.push(snapshot.clone());
        }
        plan.forget.extend(replaced(&points));
        let mut held: BTreeSet<String> =
            points.iter().filter(|point| is_under_way(point)).filter_map(|point| origin(point)).collect();
        held.extend(wanted.and_then(|snapshot| snapshot.uid()));
        plan.delete.extend(surplus(seen, &snapshots, &held));
    }
    plan
}

fn plan_snapshots(seen: &Observed, claim: &Claim, plan: &mut Plan) {
    if let Some(driver) = &claim.foreign_driver {
        plan.held.insert(claim.name.clone(), format!("its volume is of driver {driver}"));
        return;
    }
    let policy = &seen.policy;
    if policy.spec.suspend || !seen.class_usable {
        return;
    }
    let of_claim = |snapshot: &&VolumeSnapshot| snapshot.claim() == Some(claim.name.as_str());
    let mine: Vec<&VolumeSnapshot> = seen.snapshots.iter().filter(of_claim).collect();
    let pending: Vec<&&VolumeSnapshot> =
        mine.iter().filter(|s| !s.is_ready() && s.metadata.deletion_timestamp.is_none()).collect();
    let mut room = MAX_PENDING.saturating_sub(pending.len());
    if room == 0 {
        let error = pending.iter().find_map(|s| s.status.as_ref()?.error.as_ref()?.message.clone());
        let error = error.unwrap_or_else(|| "no error is reported".to_owned());
        plan.held
            .insert(claim.name.clone(), format!("{} snapshots wait to become ready: {error}", pending.len()));
    }
    let born = protected_since(seen, claim);
    let uid = policy.uid().unwrap_or_default();
    for (schedule, table) in &seen.timetables {
        let offset = table.offset(&uid, &claim.name);
        let done =
            mine.iter().filter(|s| s.schedule() == Some(&schedule.name)).filter_map(|s| s.slot()).max();
        match table.due(seen.now, offset, born, done) {
            Due::Now(slot) if room > 0 => {
                room -= 1;
                let name = names::snapshot(&policy.name_any(), &schedule.name, &claim.name, slot);
                plan.take.push(Take { claim: claim.clone(), schedule: schedule.name.clone(), slot, name });
            }
            Due::Missed(slot) => {
                let note =
                    format!("schedule {}: the run at {slot} is past its starting deadline", schedule.name);
                plan.held.entry(claim.name.clone()).or_insert(note);
            }
            Due::Now(_) | Due::Later => {}
        }
        let next = table.next_run(seen.now, offset);
        plan.next_run = plan.next_run.into_iter().chain(next).min();
    }
}

/// Since when both the policy and the claim exist.
pub fn protected_since(seen: &Observed, claim: &Claim) -> Timestamp {
    let policy = seen.policy.creation_timestamp().map_or(claim.created, |time| time.0);
    policy.max(claim.created)
}

/// Whether a run for the point is under way or about to be.
fn is_under_way(point: &ArchivedSnapshot) -> bool {
    let phase = point.status.as_ref().map(|status| status.phase).unwrap_or_default();
    matches!(phase, Phase::Pending | Phase::Archiving)
}

fn origin(point: &ArchivedSnapshot) -> Option<String> {
    point.spec.origin.as_ref().map(|origin| origin.uid.clone())
}

/// The newest ready snapshot that the archive section names, unless it is archived or being archived.
fn newest_unarchived<'a>(
    seen: &Observed,
    snapshots: &[&'a VolumeSnapshot],
    points: &[&ArchivedSnapshot],
) -> Option<&'a VolumeSnapshot> {
    let rule = seen.policy.spec.archive.as_ref()?;
    if !seen.archive.as_ref()?.usable {
        return None;
    }
    let named = |s: &&&VolumeSnapshot| {
        s.is_ready() && s.schedule().is_some_and(|name| rule.schedules.iter().any(|other| other == name))
    };
    let newest = snapshots.iter().filter(named).max_by_key(|s| s.time())?;
    let uid = newest.uid()?;
    let name = names::archived(&rule.target_name, &seen.cluster_uid, &uid);
    (!points.iter().any(|point| point.name_any() == name)).then_some(*newest)
}

/// Points that failed for good: a newer one of the same target is complete.
fn replaced(points: &[&ArchivedSnapshot]) -> Vec<String> {
    let phase = |point: &ArchivedSnapshot| point.status.as_ref().map(|s| s.phase).unwrap_or_default();
    points
        .iter()
        .filter(|point| phase(point) == Phase::Failed && point.spec.snapshot_handle.is_none())
        .filter(|failed| {
            points.iter().any(|point| {
                phase(point) == Phase::Complete
                    && point.spec.target_name == failed.spec.target_name
                    && point.spec.point_in_time.0 > failed.spec.point_in_time.0
            })
        })
        .map(|point| point.name_any())
        .collect()
}

/// The snapshots of one claim that retention no longer keeps.
fn surplus(seen: &Observed, snapshots: &[&VolumeSnapshot], held: &BTreeSet<String>) -> Vec<String> {
    let ready: Vec<(&VolumeSnapshot, Timestamp)> =
        snapshots.iter().filter(|s| s.is_ready()).filter_map(|s| Some((*s, s.time()?))).collect();
    let Some(newest) = ready.iter().map(|(_, time)| *time).max() else { return Vec::new() };
    let times: Vec<Timestamp> = ready.iter().map(|(_, time)| *time).collect();
    let kept = seen.policy.spec.retention.keep(&times, &seen.zone);

    let mut markers: BTreeMap<Option<&str>, (Timestamp, &str)> = BTreeMap::new();
    for snapshot in snapshots {
        let Some(slot) = snapshot.slot() else { continue };
        let name = snapshot.metadata.name.as_deref().unwrap_or_default();
        let marker = markers.entry(snapshot.schedule()).or_insert((slot, name));
        *marker = (*marker).max((slot, name));
    }
    let is_marker =
        |s: &VolumeSnapshot| markers.get(&s.schedule()).is_some_and(|(_, name)| *name == s.name_any());
    let is_held = |s: &VolumeSnapshot| s.uid().is_some_and(|uid| held.contains(&uid));
    let surplus = |s: &VolumeSnapshot| match s.time() {
        Some(time) if s.is_ready() => !kept.contains(&time),
        Some(time) => time < newest && seen.now.duration_since(time) > KEEP_FAILED,
        None => false,
    };
    snapshots.iter().filter(|s| surplus(s) && !is_marker(s) && !is_held(s)).map(|s| s.name_any()).collect()
}
