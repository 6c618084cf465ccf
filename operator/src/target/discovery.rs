//! What a target holds against what the cluster knows of it: points to make known, points that vanished, points whose
//! promise has ended. Pure.
//!
//! # Guarantees
//! - Only points that this cluster made expire here; another cluster's are its own affair.
//! - The newest point of an archive never expires by itself, nor one younger than the target's minimum retention, nor one
//!   that a restored volume still reads from.
//! - A point that vanished unasked is shown as Missing, not forgotten.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::archived::{Phase, Restore};
use holdfast_api::jiff::Timestamp;
use holdfast_api::{ArchivedSnapshot, ArchivedSnapshotSpec, HumanDuration, labels, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::api;
use crate::conditions::whole_seconds;
use crate::store::ArchivedPoint;

/// The two sides, and the rules of the target.
pub struct Sides<'a> {
    /// The target.
    pub target: &'a str,
    /// This cluster.
    pub cluster_uid: &'a str,
    /// What the target holds.
    pub points: &'a [ArchivedPoint],
    /// What the cluster knows of it.
    pub known: &'a [ArchivedSnapshot],
    /// The least age of a point before it may expire.
    pub minimum: HumanDuration,
    /// The time.
    pub now: Timestamp,
}

/// What has to be done so that both sides agree.
#[derive(Debug, Default)]
pub struct Difference {
    /// Points to make known.
    pub create: Vec<(ArchivedSnapshot, ArchivedPoint)>,
    /// Known points and what the target says of them.
    pub found: Vec<(ArchivedSnapshot, ArchivedPoint)>,
    /// Known points that the target no longer has.
    pub missing: Vec<ArchivedSnapshot>,
    /// Known points that are gone as they should.
    pub forget: Vec<String>,
    /// Points to delete from the target.
    pub expire: Vec<(ArchivedSnapshot, ArchivedPoint)>,
}

/// Compares.
pub fn compare(sides: &Sides<'_>) -> Difference {
    let mut difference = Difference::default();
    let by_handle: BTreeMap<&str, &ArchivedPoint> =
        sides.points.iter().map(|point| (point.handle.as_str(), point)).collect();
    let known_names: BTreeSet<String> = sides.known.iter().map(|known| known.name_any()).collect();
    let known_handles: BTreeSet<&str> =
        sides.known.iter().filter_map(|known| known.spec.snapshot_handle.as_deref()).collect();

    for point in sides.points.iter().filter(|point| !known_handles.contains(point.handle.as_str())) {
        let name = object_name(sides, point);
        if !known_names.contains(&name) {
            difference.create.push((discovered(sides, name, point), point.clone()));
        }
    }
    for known in sides.known {
        let Some(handle) = known.spec.snapshot_handle.as_deref() else { continue };
        match by_handle.get(handle) {
            Some(&point) => {
                if may_expire(sides, known, point) {
                    difference.expire.push((known.clone(), point.clone()));
                }
                difference.found.push((known.clone(), point.clone()));
            }
            None if promise_has_ended(sides, known) => difference.forget.push(known.name_any()),
            None => difference.missing.push(known.clone()),
        }
    }
    difference
}

/// A point of this cluster was archived under its object's name; any other gets a name of its own.
fn object_name(sides: &Sides<'_>, point: &ArchivedPoint) -> String {
    let is_ours = point.source.cluster_uid == sides.cluster_uid;
    let fits = point.name.len() <= names::MAX_LABEL
        && point.name.strip_prefix(sides.target).is_some_and(|rest| rest.starts_with('-'));
    if is_ours && fits { point.name.clone() } else { names::discovered(sides.target, &point.handle) }
}

fn discovered(sides: &Sides<'_>, name: String, point: &ArchivedPoint) -> ArchivedSnapshot {
    let metadata = api::managed(
        None,
        name,
        [
            (labels::NAMESPACE, names::label_value(&point.source.namespace)),
            (labels::CLAIM, names::label_value(&point.source.claim_name)),
            (labels::TARGET, sides.target.to_owned()),
        ],
    );
    ArchivedSnapshot {
        metadata,
        spec: ArchivedSnapshotSpec {
            target_name: sides.target.to_owned(),
            snapshot_handle: Some(point.handle.clone()),
            point_in_time: Time(whole_seconds(point.point_in_time)),
            source: point.source.clone(),
            origin: None,
            expires_at: point.expires_at.map(|time| Time(whole_seconds(time))),
        },
        status: None,
    }
}

/// Whether the object's promise has ended and this cluster was to end it: then the point is gone because we asked.
fn promise_has_ended(sides: &Sides<'_>, known: &ArchivedSnapshot) -> bool {
    let status = known.status.as_ref();
    let expires_at = status.and_then(|status| status.expires_at.as_ref()).or(known.spec.expires_at.as_ref());
    expires_at.is_some_and(|time| time.0 <= sides.now)
}

fn may_expire(sides: &Sides<'_>, known: &ArchivedSnapshot, point: &ArchivedPoint) -> bool {
    let is_ours = point.source.cluster_uid == sides.cluster_uid;
    let has_ended = point.expires_at.is_some_and(|time| time <= sides.now);
    let oldest_kept = sides.now.checked_sub(sides.minimum.to_signed());
    let is_old_enough = oldest_kept.is_ok_and(|oldest| point.point_in_time <= oldest);
    let restores = known.status.as_ref().map(|status| status.restores.as_slice()).unwrap_or_default();
    let is_read = restores.iter().any(Restore::needs_archive);
    is_ours && has_ended && is_old_enough && !point.newest && !is_read
}

/// Whether what the target says of a known point is news.
pub fn is_news(known: &ArchivedSnapshot, point: &ArchivedPoint) -> bool {
    let Some(status) = &known.status else { return true };
    status.phase != Phase::Complete
        || status.restore_size.map(|size| size.bytes()) != Some(point.restore_size_bytes)
        || status.expires_at.as_ref().map(|time| time.0) != point.expires_at.map(whole_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::{ArchiveSource, ArchivedSnapshotStatus};

    const NOW: &str = "2026-11-23T10:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn point(cluster: &str, claim: &str, handle: &str, time: &str, expires: Option<&str>) -> ArchivedPoint {
        ArchivedPoint {
            name: format!("offsite-{handle}"),
            handle: handle.to_owned(),
            point_in_time: at(time),
            source: ArchiveSource {
                cluster_uid: cluster.to_owned(),
                namespace: "shop".to_owned(),
                claim_name: claim.to_owned(),
                volume_mode: Default::default(),
                fs_type: None,
            },
            restore_size_bytes: 1 << 30,
            changed_bytes: None,
            expires_at: expires.map(at),
            newest: false,
        }
    }

    fn newest(point: ArchivedPoint) -> ArchivedPoint {
        ArchivedPoint { newest: true, ..point }
    }

    fn known(point: &ArchivedPoint) -> ArchivedSnapshot {
        let sides = sides(&[], &[]);
        let mut object = discovered(&sides, format!("offsite-{}", point.handle), point);
        object.status = Some(ArchivedSnapshotStatus {
            phase: Phase::Complete,
            expires_at: point.expires_at.map(Time),
            ..ArchivedSnapshotStatus::default()
        });
        object
    }

    fn sides<'a>(points: &'a [ArchivedPoint], known: &'a [ArchivedSnapshot]) -> Sides<'a> {
        Sides {
            target: "offsite",
            cluster_uid: "here",
            points,
            known,
            minimum: HumanDuration::default(),
            now: at(NOW),
        }
    }

    fn handles(list: &[(ArchivedSnapshot, ArchivedPoint)]) -> Vec<&str> {
        list.iter().map(|(_, point)| point.handle.as_str()).collect()
    }

    #[test]
    fn points_of_other_clusters_and_lost_objects_of_our_own_become_known() {
        let points = [
            point("there", "data", "h1", "2026-11-20T00:00:00Z", None),
            point("here", "data", "h2", "2026-11-21T00:00:00Z", None),
        ];
        let difference = compare(&sides(&points, &[]));
        let names: Vec<String> = difference.create.iter().map(|(object, _)| object.name_any()).collect();
        assert_eq!(names, [names::discovered("offsite", "h1"), "offsite-h2".to_owned()]);
        assert_eq!(difference.create[0].0.spec.source.cluster_uid, "there");

        let again: Vec<ArchivedSnapshot> = difference.create.into_iter().map(|(object, _)| object).collect();
        assert!(compare(&sides(&points, &again)).create.is_empty(), "once known, not made again");
    }

    #[test]
    fn a_run_under_way_is_left_to_its_own_controller() {
        let points = [point("here", "data", "h2", "2026-11-21T00:00:00Z", None)];
        let mut object = known(&points[0]);
        object.spec.snapshot_handle = None;
        let objects = [object];
        let difference = compare(&sides(&points, &objects));
        assert!(difference.create.is_empty() && difference.found.is_empty() && difference.missing.is_empty());
    }

    #[test]
    fn a_point_that_vanished_is_missing_unless_its_promise_had_ended() {
        let lasting = known(&point("here", "data", "h1", "2026-11-20T00:00:00Z", None));
        let ended = known(&point("here", "data", "h2", "2026-11-20T00:00:00Z", Some("2026-11-22T00:00:00Z")));
        let objects = [lasting, ended];
        let difference = compare(&sides(&[], &objects));
        assert_eq!(difference.missing.len(), 1);
        assert_eq!(difference.missing[0].name_any(), "offsite-h1");
        assert_eq!(difference.forget, ["offsite-h2"]);
    }

    #[test]
    fn a_point_whose_promise_ended_expires_unless_it_is_the_newest_of_its_archive() {
        let points = [
            point("here", "data", "h1", "2026-11-20T00:00:00Z", Some("2026-11-22T00:00:00Z")),
            newest(point("here", "data", "h2", "2026-11-21T00:00:00Z", Some("2026-11-22T00:00:00Z"))),
            point("here", "other", "h3", "2026-11-23T00:00:00Z", None),
        ];
        let objects: Vec<ArchivedSnapshot> = points.iter().map(known).collect();
        // h2 stays although its promise has ended too.
        assert_eq!(handles(&compare(&sides(&points, &objects)).expire), ["h1"]);
    }

    #[test]
    fn another_clusters_points_never_expire_here() {
        let points = [
            point("there", "data", "h1", "2026-11-20T00:00:00Z", Some("2026-11-22T00:00:00Z")),
            point("there", "data", "h2", "2026-11-21T00:00:00Z", None),
        ];
        let objects: Vec<ArchivedSnapshot> = points.iter().map(known).collect();
        assert!(compare(&sides(&points, &objects)).expire.is_empty());
    }

    #[test]
    fn the_targets_minimum_retention_outranks_a_promise_that_ended() {
        let points = [
            point("here", "data", "h1", "2026-11-20T00:00:00Z", Some("2026-11-21T00:00:00Z")),
            point("here", "data", "h2", "2026-11-21T00:00:00Z", None),
        ];
        let objects: Vec<ArchivedSnapshot> = points.iter().map(known).collect();
        let strict = Sides { minimum: HumanDuration::from_hours(168), ..sides(&points, &objects) };
        assert!(compare(&strict).expire.is_empty());
        let mild = Sides { minimum: HumanDuration::from_hours(24), ..sides(&points, &objects) };
        assert_eq!(handles(&compare(&mild).expire), ["h1"]);
    }

    #[test]
    fn a_point_that_a_restored_volume_reads_from_does_not_expire() {
        let points = [
            point("here", "data", "h1", "2026-11-20T00:00:00Z", Some("2026-11-21T00:00:00Z")),
            point("here", "data", "h2", "2026-11-21T00:00:00Z", None),
        ];
        let mut objects: Vec<ArchivedSnapshot> = points.iter().map(known).collect();
        let restore = |hydrated_bytes| Restore {
            namespace: "shop".to_owned(),
            claim_name: "data".to_owned(),
            hydrated_bytes,
            total_bytes: 10,
        };
        let status = objects[0].status.as_mut().expect("a status");
        status.restores = vec![restore(4)];
        assert!(compare(&sides(&points, &objects)).expire.is_empty());
        objects[0].status.as_mut().expect("a status").restores = vec![restore(10)];
        assert_eq!(handles(&compare(&sides(&points, &objects)).expire), ["h1"]);
    }

    #[test]
    fn news_is_what_the_status_does_not_say_yet() {
        let found = point("here", "data", "h1", "2026-11-20T00:00:00Z", None);
        let mut object = known(&found);
        assert!(is_news(&object, &found), "the size is not known yet");
        crate::archive::describe_point(object.status.as_mut().expect("a status"), &found);
        assert!(!is_news(&object, &found));
        object.status.as_mut().expect("a status").phase = Phase::Missing;
        assert!(is_news(&object, &found), "it came back");
    }
}
