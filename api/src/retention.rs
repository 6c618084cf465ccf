//! Which recovery points to keep: grandfather, father, son, by counts.
//!
//! Time is cut into hours, days, weeks (from Monday), months and years of a time zone. The *first* point in a
//! period stands for it. `daily: 7` keeps the points that stand for the newest seven days that have a point;
//! the tiers add up. So a point's role never changes once a later one exists, and periods without points cost nothing:
//! a volume that nobody snapshots any more keeps what it has.
//!
//! Local points are dropped when [`Retention::keep`] no longer names them. Archived points carry their expiry in
//! themselves, so [`Retention::expires_at`] promises it when the point is made.
//!
//! # Guarantees
//! - The newest point is always kept.
//! - A larger count, or one tier more, never drops a point that was kept before.
//! - What is kept of what is kept is the same again: repeating the rule deletes nothing further.

use std::collections::BTreeSet;

use k8s_openapi::jiff::civil::{Date, ISOWeekDate, Weekday};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Span, Timestamp, Zoned};

use crate::policy::Retention;

/// A period, named by its kind and the local date and hour at which it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Tier {
    /// Where the period that holds `time` begins. An hour repeated by the end of summer time is one period.
    fn period(self, time: &Zoned) -> (Date, i8) {
        let date = time.date();
        match self {
            Tier::Hour => (date, time.hour()),
            Tier::Day => (date, 0),
            Tier::Week => {
                let week = date.iso_week_date();
                let monday = ISOWeekDate::new(week.year(), week.week(), Weekday::Monday);
                (monday.map_or(date, ISOWeekDate::date), 0)
            }
            Tier::Month => (date.first_of_month(), 0),
            Tier::Year => (date.first_of_year(), 0),
        }
    }

    fn span(self, count: i64) -> Span {
        match self {
            Tier::Hour => Span::new().hours(count),
            Tier::Day => Span::new().days(count),
            Tier::Week => Span::new().weeks(count),
            Tier::Month => Span::new().months(count),
            Tier::Year => Span::new().years(count),
        }
    }
}

impl Retention {
    fn tiers(&self) -> [(Tier, u32); 5] {
        [
            (Tier::Hour, self.hourly),
            (Tier::Day, self.daily),
            (Tier::Week, self.weekly),
            (Tier::Month, self.monthly),
            (Tier::Year, self.yearly),
        ]
    }

    /// The times to keep of `points`, whose order does not matter. Points of the same time share their fate.
    pub fn keep(&self, points: &[Timestamp], zone: &TimeZone) -> BTreeSet<Timestamp> {
        let times: BTreeSet<Timestamp> = points.iter().copied().collect();
        let mut kept: BTreeSet<Timestamp> = times.last().copied().into_iter().collect();
        for (tier, count) in self.tiers() {
            let mut first_of_period = Vec::new();
            let mut current = None;
            for &time in &times {
                let period = tier.period(&time.to_zoned(zone.clone()));
                if current != Some(period) {
                    current = Some(period);
                    first_of_period.push(time);
                }
            }
            kept.extend(first_of_period.iter().rev().take(count as usize));
        }
        kept
    }

    /// Until when a new point of `time` is promised, given the times of the points before it.
    ///
    /// It gets the longest of the tiers whose period it opens; a point that opens none serves only until the next
    /// one replaces it, so its promise ends at once.
    pub fn expires_at(&self, time: Timestamp, earlier: &[Timestamp], zone: &TimeZone) -> Timestamp {
        let local = time.to_zoned(zone.clone());
        let opens = |tier: Tier| {
            let period = tier.period(&local);
            !earlier.iter().any(|&other| other < time && tier.period(&other.to_zoned(zone.clone())) == period)
        };
        self.tiers()
            .into_iter()
            .filter(|&(tier, count)| count > 0 && opens(tier))
            .filter_map(|(tier, count)| local.checked_add(tier.span(i64::from(count))).ok())
            .map(|end| end.timestamp())
            .max()
            .unwrap_or(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn hours_from(start: &str, count: i64) -> Vec<Timestamp> {
        (0..count).map(|hour| at(start) + Span::new().hours(hour)).collect()
    }

    #[test]
    fn hourly_points_of_ten_days_thin_out_to_a_day_of_hours_and_a_week_of_days() {
        let retention = Retention { hourly: 24, daily: 7, ..Retention::default() };
        let points = hours_from("2026-11-01T00:00:00Z", 240);
        let kept = retention.keep(&points, &TimeZone::UTC);
        // The last 24 hours, among them the day's first point, and the first points of six days before.
        assert_eq!(kept.len(), 24 + 6);
        assert!(kept.contains(&at("2026-11-04T00:00:00Z")) && !kept.contains(&at("2026-11-03T00:00:00Z")));
    }

    #[test]
    fn days_begin_at_midnight_of_the_zone() {
        let retention = Retention { daily: 1, ..Retention::default() };
        let points = [at("2026-11-22T22:30:00Z"), at("2026-11-22T23:30:00Z"), at("2026-11-23T10:00:00Z")];
        let berlin = crate::schedule::time_zone("Europe/Berlin").expect("a zone");
        // 23:30 UTC is the first point of the 23rd in Berlin.
        assert_eq!(retention.keep(&points, &berlin), [points[1], points[2]].into());
        assert_eq!(retention.keep(&points, &TimeZone::UTC), [points[2]].into());
    }

    #[test]
    fn a_week_begins_on_monday_also_across_the_year() {
        let retention = Retention { weekly: 2, ..Retention::default() };
        // 2026-12-28 is a Monday; 2027-01-03 the Sunday of the same week.
        let points = [at("2026-12-28T08:00:00Z"), at("2027-01-03T08:00:00Z"), at("2027-01-04T08:00:00Z")];
        assert_eq!(retention.keep(&points, &TimeZone::UTC), [points[0], points[2]].into());
    }

    #[test]
    fn an_archived_point_is_promised_the_longest_tier_it_opens() {
        let retention = Retention { daily: 30, monthly: 12, ..Retention::default() };
        let zone = &TimeZone::UTC;
        let first = at("2026-11-23T05:00:00Z");
        assert_eq!(retention.expires_at(first, &[], zone), at("2027-11-23T05:00:00Z"));
        let next_day = at("2026-11-24T05:00:00Z");
        assert_eq!(retention.expires_at(next_day, &[first], zone), at("2026-12-24T05:00:00Z"));
        let later = at("2026-11-24T06:00:00Z");
        assert_eq!(retention.expires_at(later, &[first, next_day], zone), later);
    }

    fn retention() -> impl Strategy<Value = Retention> {
        (0u32..30, 0u32..10, 0u32..6, 0u32..6, 0u32..3).prop_map(
            |(hourly, daily, weekly, monthly, yearly)| Retention { hourly, daily, weekly, monthly, yearly },
        )
    }

    fn times() -> impl Strategy<Value = Vec<Timestamp>> {
        prop::collection::vec(
            (1_700_000_000i64..1_800_000_000).prop_map(|s| Timestamp::from_second(s).expect("in range")),
            1..80,
        )
    }

    fn zone() -> impl Strategy<Value = TimeZone> {
        prop::sample::select(vec!["UTC", "Europe/Berlin", "Asia/Kolkata", "Pacific/Apia"])
            .prop_map(|name| crate::schedule::time_zone(name).expect("a zone"))
    }

    proptest! {
        #[test]
        fn the_newest_point_is_always_kept(rule in retention(), points in times(), zone in zone()) {
            prop_assert!(rule.keep(&points, &zone).contains(points.iter().max().expect("not empty")));
        }

        #[test]
        fn larger_counts_keep_all_that_smaller_ones_keep(
            rule in retention(), more in retention(), points in times(), zone in zone(),
        ) {
            let larger = Retention {
                hourly: rule.hourly + more.hourly,
                daily: rule.daily + more.daily,
                weekly: rule.weekly + more.weekly,
                monthly: rule.monthly + more.monthly,
                yearly: rule.yearly + more.yearly,
            };
            prop_assert!(larger.keep(&points, &zone).is_superset(&rule.keep(&points, &zone)));
        }

        #[test]
        fn keeping_again_drops_nothing(rule in retention(), points in times(), zone in zone()) {
            let once = rule.keep(&points, &zone);
            let again = rule.keep(&once.iter().copied().collect::<Vec<_>>(), &zone);
            prop_assert_eq!(once, again);
        }

        #[test]
        fn no_more_is_kept_than_the_counts_say(rule in retention(), points in times(), zone in zone()) {
            let most = rule.hourly + rule.daily + rule.weekly + rule.monthly + rule.yearly + 1;
            prop_assert!(rule.keep(&points, &zone).len() <= most as usize);
        }

        #[test]
        fn a_point_dropped_stays_dropped_when_time_goes_on(
            rule in retention(), points in times(), zone in zone(), later in 1i64..10_000_000,
        ) {
            let newer = *points.iter().max().expect("not empty") + Span::new().seconds(later);
            let mut more = points.clone();
            more.push(newer);
            let before = rule.keep(&points, &zone);
            let after = rule.keep(&more, &zone);
            prop_assert!(after.iter().all(|time| *time == newer || before.contains(time)));
        }

        #[test]
        fn a_promise_never_ends_before_the_point(rule in retention(), points in times(), zone in zone()) {
            let time = *points.iter().max().expect("not empty");
            prop_assert!(rule.expires_at(time, &points, &zone) >= time);
        }
    }
}
