//! What to do about a point that is to be made. Pure.
//!
//! The target is asked first: whatever became of Jobs, a point it has is complete. So a step can be repeated by any
//! replica, and a Job that was deleted, or ended unseen, changes nothing.

use holdfast_api::archived::Phase;
use holdfast_api::jiff::{SignedDuration, Timestamp};

use crate::jobs::JobState;
use crate::store::ArchivedPoint;

/// The first wait after a failed Job; doubles with each.
const FIRST_BACKOFF: SignedDuration = SignedDuration::from_mins(1);
/// The longest wait.
const MAX_BACKOFF: SignedDuration = SignedDuration::from_hours(1);

/// What is known about the point.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Its phase so far.
    pub phase: Phase,
    /// How many Jobs have been started for it.
    pub attempts: u32,
    /// When the last of them failed.
    pub last_failure: Option<Timestamp>,
    /// The point in the target, if it is there.
    pub point: Option<ArchivedPoint>,
    /// The Job of the last attempt, and what it said when it failed.
    pub job: Option<(JobState, String)>,
    /// Why the target cannot be written now.
    pub target_trouble: Option<String>,
    /// Jobs at work for the target.
    pub running: usize,
    /// How many there may be.
    pub limit: usize,
    /// Whether another Job copies the same volume to the same target.
    pub volume_busy: bool,
    /// Whether the local snapshot still exists.
    pub origin_exists: bool,
    /// Whether a newer point of the volume is to be made, or made.
    pub superseded: bool,
    /// The time.
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The target has the point.
    Complete(ArchivedPoint),
    /// The Job is at work: look at its progress.
    Watch,
    /// Start the Job of this attempt.
    Start {
        /// Which Job for the point.
        attempt: u32,
    },
    /// Not now.
    Wait {
        /// The condition reason.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// The Job of the last attempt failed.
    Fail {
        /// What it said.
        message: String,
    },
    /// Failed before; tried again at that time.
    Backoff {
        /// When.
        until: Timestamp,
    },
    /// It will not be made any more.
    GiveUp {
        /// The condition reason.
        reason: &'static str,
        /// Why.
        message: String,
    },
}

/// Decides.
pub fn decide(seen: &Observation) -> Step {
    if let Some(point) = &seen.point {
        return Step::Complete(point.clone());
    }
    match &seen.job {
        Some((JobState::Running, _)) => return Step::Watch,
        Some((JobState::Failed, message)) if seen.phase == Phase::Archiving => {
            return Step::Fail { message: message.clone() };
        }
        Some((JobState::Succeeded, _)) if seen.phase == Phase::Archiving => {
            return Step::Fail { message: "the Job ended well, but the target has no such point".to_owned() };
        }
        Some((JobState::Failed | JobState::Succeeded, _)) | None => {}
    }
    if seen.superseded {
        let message = "a newer point of the volume takes its place".to_owned();
        return Step::GiveUp { reason: "Superseded", message };
    }
    if !seen.origin_exists {
        let message = "its VolumeSnapshot was deleted before it was archived".to_owned();
        return Step::GiveUp { reason: "SnapshotDeleted", message };
    }
    if seen.phase == Phase::Failed
        && let Some(until) = seen.last_failure.map(|failed| failed + backoff(seen.attempts))
        && until > seen.now
    {
        return Step::Backoff { until };
    }
    if let Some(trouble) = &seen.target_trouble {
        return Step::Wait { reason: "TargetNotReady", message: trouble.clone() };
    }
    if seen.volume_busy {
        let message = "another point of the volume is being archived".to_owned();
        return Step::Wait { reason: "VolumeBusy", message };
    }
    if seen.running >= seen.limit {
        let message = format!("{} Jobs are at work for the target, its limit", seen.running);
        return Step::Wait { reason: "Queued", message };
    }
    // Phase Archiving without a Job: it was recorded but not started, or the Job is gone. The same attempt again.
    let attempt = if seen.phase == Phase::Archiving { seen.attempts.max(1) } else { seen.attempts + 1 };
    Step::Start { attempt }
}

/// How long to wait after so many failed Jobs.
fn backoff(attempts: u32) -> SignedDuration {
    let doubled = FIRST_BACKOFF.checked_mul(1 << attempts.saturating_sub(1).min(10)).unwrap_or(MAX_BACKOFF);
    doubled.min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::ArchiveSource;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn fresh() -> Observation {
        Observation {
            phase: Phase::Pending,
            attempts: 0,
            last_failure: None,
            point: None,
            job: None,
            target_trouble: None,
            running: 0,
            limit: 2,
            volume_busy: false,
            origin_exists: true,
            superseded: false,
            now: at("2026-11-23T10:00:00Z"),
        }
    }

    fn point() -> ArchivedPoint {
        ArchivedPoint {
            name: "offsite-1".to_owned(),
            handle: "h".to_owned(),
            point_in_time: at("2026-11-23T09:00:00Z"),
            source: ArchiveSource {
                cluster_uid: "c".to_owned(),
                namespace: "shop".to_owned(),
                claim_name: "data".to_owned(),
                volume_mode: Default::default(),
                fs_type: None,
            },
            restore_size_bytes: 1,
            changed_bytes: None,
            expires_at: None,
            newest: true,
        }
    }

    #[test]
    fn a_fresh_point_starts_its_first_job() {
        assert_eq!(decide(&fresh()), Step::Start { attempt: 1 });
    }

    #[test]
    fn a_point_that_the_target_has_is_complete_whatever_became_of_its_job() {
        for job in [
            None,
            Some((JobState::Running, String::new())),
            Some((JobState::Failed, "killed".to_owned())),
            Some((JobState::Succeeded, String::new())),
        ] {
            let seen = Observation { point: Some(point()), job, phase: Phase::Archiving, ..fresh() };
            assert_eq!(decide(&seen), Step::Complete(point()));
        }
    }

    #[test]
    fn a_job_that_says_success_without_a_point_has_failed() {
        let job = Some((JobState::Succeeded, String::new()));
        let seen = Observation { job, phase: Phase::Archiving, attempts: 1, ..fresh() };
        assert!(matches!(decide(&seen), Step::Fail { .. }));
    }

    #[test]
    fn an_attempt_recorded_by_a_replica_that_died_is_started_under_the_same_name() {
        let seen = Observation { phase: Phase::Archiving, attempts: 2, ..fresh() };
        assert_eq!(decide(&seen), Step::Start { attempt: 2 });
    }

    #[test]
    fn a_failed_job_is_followed_by_another_after_a_growing_wait() {
        let failed_at = at("2026-11-23T09:59:30Z");
        let job = Some((JobState::Failed, "AccessDenied on put".to_owned()));
        let seen = Observation { phase: Phase::Archiving, attempts: 1, job: job.clone(), ..fresh() };
        assert_eq!(decide(&seen), Step::Fail { message: "AccessDenied on put".to_owned() });

        let waiting =
            Observation { phase: Phase::Failed, attempts: 1, job, last_failure: Some(failed_at), ..fresh() };
        assert_eq!(decide(&waiting), Step::Backoff { until: failed_at + SignedDuration::from_mins(1) });
        let later = Observation { now: at("2026-11-23T10:00:30Z"), ..waiting };
        assert_eq!(decide(&later), Step::Start { attempt: 2 });
        let many = Observation { attempts: 30, ..later };
        assert_eq!(decide(&many), Step::Backoff { until: failed_at + SignedDuration::from_hours(1) });
    }

    #[test]
    fn limits_and_troubles_hold_a_start_back_and_say_so() {
        let reason = |seen: &Observation| match decide(seen) {
            Step::Wait { reason, .. } => reason,
            other => panic!("expected a wait, got {other:?}"),
        };
        assert_eq!(reason(&Observation { running: 2, ..fresh() }), "Queued");
        assert_eq!(reason(&Observation { volume_busy: true, ..fresh() }), "VolumeBusy");
        let trouble = Some("no bucket".to_owned());
        assert_eq!(reason(&Observation { target_trouble: trouble, ..fresh() }), "TargetNotReady");
    }

    #[test]
    fn a_point_nobody_can_or_need_make_any_more_is_given_up() {
        let reason = |seen: &Observation| match decide(seen) {
            Step::GiveUp { reason, .. } => reason,
            other => panic!("expected to give up, got {other:?}"),
        };
        assert_eq!(reason(&Observation { origin_exists: false, ..fresh() }), "SnapshotDeleted");
        assert_eq!(reason(&Observation { superseded: true, phase: Phase::Failed, ..fresh() }), "Superseded");
    }

    #[test]
    fn a_job_at_work_is_left_alone_although_its_snapshot_is_gone() {
        let job = Some((JobState::Running, String::new()));
        let seen = Observation { job, origin_exists: false, phase: Phase::Archiving, ..fresh() };
        assert_eq!(decide(&seen), Step::Watch);
    }
}
