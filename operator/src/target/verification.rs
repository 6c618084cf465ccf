//! Verification of a target by schedule: a Job reads all points back and compares checksums.
//!
//! The scheduled time of the last run is kept in the status, because the Job itself is removed some time after it
//! ended. It is written after the Job was created, and the Job's name follows from it: a crash between the two starts
//! the same Job.

use holdfast_api::archived::Phase;
use holdfast_api::jiff::Timestamp;
use holdfast_api::schedule::Calendar;
use holdfast_api::{ArchiveTarget, ArchiveTargetStatus, ArchivedSnapshot};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::api;
use crate::archive::failure;
use crate::conditions::{self, Verdict};
use crate::context::Context;
use crate::error::Error;
use crate::jobs::{self, JobState, Work};

/// Starts a run that is due, and reads the result of the last.
pub async fn run(
    ctx: &Context,
    target: &ArchiveTarget,
    status: &mut ArchiveTargetStatus,
    known: &[ArchivedSnapshot],
) -> Result<(), Error> {
    let Some(rule) = &target.spec.verification else {
        conditions::clear(&mut status.conditions, "Verified");
        return Ok(());
    };
    let generation = target.metadata.generation;
    let now = ctx.now();
    let calendar = match Calendar::parse("verification", &rule.cron, &rule.time_zone) {
        Ok(calendar) => calendar,
        Err(error) => {
            let verdict = Verdict::unknown("InvalidSchedule", error.to_string());
            conditions::set(&mut status.conditions, "Verified", &verdict, generation, now);
            return Ok(());
        }
    };
    let jobs = ctx.own::<Job>();
    if let Some(last) = status.last_verification_time.as_ref().map(|time| time.0) {
        let name = Work::Verify { slot: last.as_second() }.job_name(&target.name_any());
        if let Some(job) = api::get(&jobs, &name).await? {
            let verdict = match jobs::state(&job) {
                JobState::Running => return Ok(()),
                JobState::Succeeded => {
                    mark_points(ctx, known, job.creation_timestamp().map(|time| time.0)).await?;
                    status.last_verified_time = Some(Time(last));
                    Verdict::yes("ChecksumsMatch", format!("all points were read back whole at {last}"))
                }
                JobState::Failed => Verdict::no("VerificationFailed", failure(ctx, &name).await?),
            };
            conditions::set(&mut status.conditions, "Verified", &verdict, generation, now);
        }
    }
    let created = target.creation_timestamp().map(|time| time.0);
    let Some(slot) = due(&calendar, now, created, status.last_verification_time.as_ref().map(|t| t.0)) else {
        return Ok(());
    };
    let job = jobs::job(&ctx.settings, target, Work::Verify { slot: slot.as_second() });
    api::create(&jobs, &job).await?;
    status.last_verification_time = Some(Time(slot));
    Ok(())
}

/// The scheduled time to run for now, if there is one: the latest, unless it has run or lies before the target.
fn due(
    calendar: &Calendar,
    now: Timestamp,
    created: Option<Timestamp>,
    last: Option<Timestamp>,
) -> Option<Timestamp> {
    let slot = calendar.latest_until(now)?;
    let is_new = created.is_none_or(|created| slot >= created) && last.is_none_or(|last| slot > last);
    is_new.then_some(slot)
}

/// Notes on the points that were there when the run began that it found them whole.
async fn mark_points(
    ctx: &Context,
    known: &[ArchivedSnapshot],
    began: Option<Timestamp>,
) -> Result<(), Error> {
    let Some(began) = began else { return Ok(()) };
    let api = ctx.everywhere::<ArchivedSnapshot>();
    let verdict = Verdict::yes("ChecksumsMatch", format!("read back whole in the verification of {began}"));
    for point in known {
        let Some(before) = &point.status else { continue };
        let archived = conditions::find(&before.conditions, "Archived");
        let was_there = archived.is_some_and(|condition| condition.last_transition_time.0 < began);
        if before.phase != Phase::Complete || !was_there {
            continue;
        }
        let mut status = before.clone();
        conditions::set(&mut status.conditions, "Verified", &verdict, point.metadata.generation, ctx.now());
        api::write_status(&api, point, Some(before), &status).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<Timestamp> {
        Some(text.parse().expect("a timestamp"))
    }

    #[test]
    fn a_verification_runs_once_for_each_time_and_not_for_those_before_the_target() {
        let weekly = Calendar::parse("verification", "0 3 * * 0", "UTC").expect("valid");
        // 2026-11-22 is a Sunday.
        let now = at("2026-11-23T10:00:00Z").expect("a time");
        let slot = at("2026-11-22T03:00:00Z");
        assert_eq!(due(&weekly, now, at("2026-11-01T00:00:00Z"), None), slot);
        assert_eq!(due(&weekly, now, at("2026-11-01T00:00:00Z"), at("2026-11-15T03:00:00Z")), slot);
        assert_eq!(due(&weekly, now, at("2026-11-01T00:00:00Z"), slot), None);
        assert_eq!(due(&weekly, now, at("2026-11-22T04:00:00Z"), None), None);
    }
}
