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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::observe::Archive;
    use holdfast_api::jiff::tz::TimeZone;
    use holdfast_api::schedule::Timetable;
    use holdfast_api::{SnapshotPolicy, annotations, labels};
    use serde_json::{Value, json};

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    /// The policy `gold` with an hourly schedule, two hours of retention and an archive; the claim `data`; 10:30.
    fn scene(snapshots: Vec<Value>, archived: Vec<Value>) -> Observed {
        let policy: SnapshotPolicy = serde_json::from_value(json!({
            "metadata": {
                "name": "gold", "namespace": "shop", "uid": "p", "creationTimestamp": "2026-11-01T00:00:00Z",
            },
            "spec": {
                "selector": {}, "volumeSnapshotClassName": "holdfast",
                "schedules": [{"name": "hourly", "cron": "0 * * * *", "startingDeadline": "45m"}],
                "retention": {"hourly": 2},
                "archive": {"targetName": "offsite", "schedules": ["hourly"]},
            },
        }))
        .expect("a policy");
        let now = at("2026-11-23T10:30:00Z");
        let timetables =
            policy.spec.schedules.iter().map(|schedule| {
                (schedule.clone(), Timetable::parse(schedule, now).expect("a valid schedule"))
            });
        let read = |value| serde_json::from_value(value).expect("an object");
        Observed {
            timetables: timetables.collect(),
            policy,
            claims: vec![Claim {
                name: "data".to_owned(),
                created: at("2026-11-02T00:00:00Z"),
                volume_name: "pv".to_owned(),
                foreign_driver: None,
            }],
            snapshots: snapshots.into_iter().map(read).collect(),
            archived: archived
                .into_iter()
                .map(|value| serde_json::from_value(value).expect("a point"))
                .collect(),
            class_usable: true,
            archive: Some(Archive { usable: true, target_trouble: None }),
            problems: Vec::new(),
            zone: TimeZone::UTC,
            cluster_uid: "here".to_owned(),
            now,
        }
    }

    fn snapshot(hour: &str, status: Value) -> Value {
        let time = format!("2026-11-23T{hour}:00:00Z");
        json!({
            "metadata": {
                "name": format!("s{hour}"), "namespace": "shop", "uid": format!("u{hour}"),
                "creationTimestamp": time,
                "labels": {labels::POLICY: "gold", labels::SCHEDULE: "hourly"},
                "annotations": {annotations::SCHEDULED_AT: time},
            },
            "spec": {"source": {"persistentVolumeClaimName": "data"}},
            "status": status,
        })
    }

    fn ready(hour: &str) -> Value {
        snapshot(hour, json!({"readyToUse": true, "creationTime": format!("2026-11-23T{hour}:00:00Z")}))
    }

    fn stuck(hour: &str) -> Value {
        snapshot(hour, json!({"readyToUse": false, "error": {"message": "the store is full"}}))
    }

    /// The point made, or to be made, from the snapshot of that hour.
    fn point(hour: &str, phase: &str) -> Value {
        let uid = format!("u{hour}");
        json!({
            "metadata": {"name": names::archived("offsite", "here", &uid)},
            "spec": {
                "targetName": "offsite", "pointInTime": format!("2026-11-23T{hour}:00:00Z"),
                "source": {"clusterUID": "here", "namespace": "shop", "claimName": "data"},
                "origin": {"volumeSnapshotName": format!("s{hour}"), "uid": uid, "snapshotHandle": "h"},
            },
            "status": {"phase": phase},
        })
    }

    fn archived_names(plan: &Plan) -> Vec<String> {
        plan.archive.iter().map(|snapshot| snapshot.name_any()).collect()
    }

    #[test]
    fn a_due_slot_is_taken_once() {
        let due = plan(&scene(vec![ready("09")], vec![]));
        assert_eq!(due.take.len(), 1);
        assert_eq!(due.take[0].slot, at("2026-11-23T10:00:00Z"));
        assert_eq!(due.next_run, Some(at("2026-11-23T11:00:00Z")));
        assert!(plan(&scene(vec![ready("10")], vec![])).take.is_empty());
    }

    #[test]
    fn a_volume_whose_snapshots_do_not_become_ready_gets_no_more_and_says_why() {
        let two = plan(&scene(vec![stuck("08"), stuck("09")], vec![]));
        assert_eq!(two.take.len(), 1);
        let three = plan(&scene(vec![stuck("07"), stuck("08"), stuck("09")], vec![]));
        assert!(three.take.is_empty());
        assert_eq!(three.held["data"], "3 snapshots wait to become ready: the store is full");
    }

    #[test]
    fn a_volume_of_another_driver_and_a_run_too_late_are_told() {
        let mut seen = scene(vec![], vec![]);
        seen.claims[0].foreign_driver = Some("ebs.csi.aws.com".to_owned());
        let foreign = plan(&seen);
        assert!(foreign.take.is_empty());
        assert_eq!(foreign.held["data"], "its volume is of driver ebs.csi.aws.com");

        let mut seen = scene(vec![], vec![]);
        seen.now = at("2026-11-23T10:50:00Z");
        let late = plan(&seen);
        assert!(late.take.is_empty());
        assert!(late.held["data"].contains("past its starting deadline"), "{:?}", late.held);
    }

    #[test]
    fn a_suspended_policy_takes_nothing_but_goes_on_thinning_out() {
        let hours = ["05", "06", "07", "08"];
        let points = hours.iter().map(|hour| point(hour, "Complete")).collect();
        let mut seen = scene(hours.iter().map(|hour| ready(hour)).collect(), points);
        seen.policy.spec.suspend = true;
        let plan = plan(&seen);
        assert!(plan.take.is_empty() && plan.next_run.is_none());
        assert_eq!(plan.delete, ["s05", "s06"]);
    }

    #[test]
    fn one_point_is_under_way_at_a_time_and_then_only_the_newest_follows() {
        let snapshots = || vec![ready("08"), ready("09"), ready("10")];
        let busy = plan(&scene(snapshots(), vec![point("08", "Archiving")]));
        assert!(busy.archive.is_empty());
        assert!(busy.delete.is_empty(), "08 is being read, 09 and 10 are within retention");
        let free = plan(&scene(snapshots(), vec![point("08", "Complete")]));
        assert_eq!(archived_names(&free), ["s10"], "09 is passed over");
        let failed = plan(&scene(snapshots(), vec![point("09", "Failed")]));
        assert_eq!(archived_names(&failed), ["s10"], "a newer one does not wait for one that failed");
        let done = plan(&scene(snapshots(), vec![point("10", "Failed")]));
        assert!(done.archive.is_empty(), "the newest is tried again by its own controller");
    }

    #[test]
    fn a_point_that_failed_is_forgotten_once_a_newer_one_is_complete() {
        let old = names::archived("offsite", "here", "u08");
        let seen = scene(vec![ready("10")], vec![point("08", "Failed"), point("10", "Complete")]);
        assert_eq!(plan(&seen).forget, [old]);
        let seen = scene(vec![ready("10")], vec![point("08", "Failed"), point("10", "Archiving")]);
        assert!(plan(&seen).forget.is_empty());
    }

    #[test]
    fn the_newest_snapshot_of_each_schedule_stays_as_the_mark_of_its_slot() {
        let mut weekly = ready("04");
        weekly["metadata"]["labels"][labels::SCHEDULE] = json!("weekly");
        let mut seen = scene(vec![weekly, ready("07"), ready("08"), ready("09"), ready("10")], vec![]);
        seen.policy.spec.archive = None;
        assert_eq!(plan(&seen).delete, ["s07", "s08"], "04 would be taken again at once if it went");
    }

    #[test]
    fn snapshots_that_failed_go_a_day_after_a_newer_one_is_ready() {
        let mut seen = scene(vec![stuck("08"), ready("10")], vec![point("10", "Complete")]);
        assert!(plan(&seen).delete.is_empty());
        seen.now = at("2026-11-24T08:30:00Z");
        assert_eq!(plan(&seen).delete, ["s08"]);
    }
}
