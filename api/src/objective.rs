//! Recovery point objectives: how much work a volume would lose now, against what was promised.

use k8s_openapi::jiff::Timestamp;

use crate::HumanDuration;

/// How far a volume's newest point lies behind `now`. Before the first point, the lag counts from when the
/// volume came under protection.
pub fn lag(now: Timestamp, newest: Option<Timestamp>, protected_since: Timestamp) -> HumanDuration {
    let behind = now.duration_since(newest.unwrap_or(protected_since)).as_secs();
    HumanDuration::from_secs(u64::try_from(behind).unwrap_or(0))
}

/// When a promise of `objective` is broken unless a newer point comes first: later than this, not at it.
pub fn broken_after(
    objective: HumanDuration,
    newest: Option<Timestamp>,
    protected_since: Timestamp,
) -> Option<Timestamp> {
    newest.unwrap_or(protected_since).checked_add(objective.to_signed()).ok()
}

/// Whether the lag breaks the promise.
pub fn is_breached(objective: Option<HumanDuration>, lag: HumanDuration) -> bool {
    objective.is_some_and(|promised| lag > promised)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    #[test]
    fn a_promise_breaks_only_after_its_whole_time() {
        let newest = Some(at("2026-11-23T05:00:00Z"));
        let born = at("2026-11-01T00:00:00Z");
        let promised = HumanDuration::from_hours(4);
        assert!(!is_breached(Some(promised), lag(at("2026-11-23T09:00:00Z"), newest, born)));
        assert!(is_breached(Some(promised), lag(at("2026-11-23T09:00:01Z"), newest, born)));
        assert_eq!(broken_after(promised, newest, born), Some(at("2026-11-23T09:00:00Z")));
    }

    #[test]
    fn a_volume_without_a_point_lags_since_it_came_under_protection() {
        let born = at("2026-11-23T05:00:00Z");
        assert_eq!(lag(at("2026-11-23T06:00:00Z"), None, born), HumanDuration::from_hours(1));
        // A clock that runs behind must not make the lag wrap round.
        assert_eq!(lag(at("2026-11-23T04:00:00Z"), None, born), HumanDuration::from_secs(0));
    }

    #[test]
    fn without_an_objective_nothing_is_breached() {
        assert!(!is_breached(None, HumanDuration::from_hours(10_000)));
    }
}
