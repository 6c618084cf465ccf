//! Conditions: set in place, keeping the time of the last change of status.

use holdfast_api::jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// A message never grows beyond what the schema allows.
const MAX_MESSAGE_BYTES: usize = 4096;

/// What a condition says now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// True, False or Unknown.
    pub status: &'static str,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence for a person.
    pub message: String,
}

impl Verdict {
    /// It is so.
    pub fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "True", reason, message: message.into() }
    }

    /// It is not so.
    pub fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "False", reason, message: message.into() }
    }

    /// It cannot be said.
    pub fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason, message: message.into() }
    }
}

/// Sets the condition of that type. Returns whether its status or reason changed, which is worth an event.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    verdict: &Verdict,
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let message = shorten(&verdict.message, MAX_MESSAGE_BYTES);
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(condition) => {
            let turned = condition.status != verdict.status;
            let changed = turned || condition.reason != verdict.reason;
            if turned {
                condition.status = verdict.status.to_owned();
                condition.last_transition_time = Time(whole_seconds(now));
            }
            condition.reason = verdict.reason.to_owned();
            condition.message = message;
            condition.observed_generation = generation;
            changed
        }
        None => {
            conditions.push(Condition {
                type_: type_.to_owned(),
                status: verdict.status.to_owned(),
                reason: verdict.reason.to_owned(),
                message,
                last_transition_time: Time(whole_seconds(now)),
                observed_generation: generation,
            });
            true
        }
    }
}

/// Removes the condition of that type.
pub fn clear(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|condition| condition.type_ != type_);
}

/// The condition of that type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of that type is True.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// The time as the API server stores it; a fraction of a second would differ from what is read back.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The text, cut to so many bytes at a character's boundary.
pub fn shorten(text: &str, most_bytes: usize) -> String {
    if text.len() <= most_bytes {
        return text.to_owned();
    }
    let mut end = most_bytes - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    #[test]
    fn the_transition_time_changes_only_with_the_status() {
        let mut list = Vec::new();
        let first = at("2026-11-23T10:00:00Z");
        assert!(set(&mut list, "Ready", &Verdict::no("Timeout", "no answer"), Some(1), first));
        assert!(!set(
            &mut list,
            "Ready",
            &Verdict::no("Timeout", "still no answer"),
            Some(1),
            first + minute()
        ));
        assert!(set(&mut list, "Ready", &Verdict::no("AccessDenied", "put"), Some(1), first + minute()));
        assert_eq!(list[0].last_transition_time, Time(first));
        assert!(set(&mut list, "Ready", &Verdict::yes("SelfTestPassed", ""), Some(2), first + minute()));
        assert_eq!(list[0].last_transition_time, Time(first + minute()));
        assert_eq!((list.len(), list[0].observed_generation), (1, Some(2)));
        assert!(is_true(&list, "Ready") && !is_true(&list, "Distributed"));
        clear(&mut list, "Ready");
        assert!(list.is_empty());
    }

    fn minute() -> holdfast_api::jiff::SignedDuration {
        holdfast_api::jiff::SignedDuration::from_mins(1)
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let cut = shorten(&"ä".repeat(100), 50);
        assert!(cut.len() <= 50 && cut.ends_with('…'));
        assert_eq!(shorten("short", 50), "short");
    }
}
