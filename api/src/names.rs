//! The names of everything the operator makes: deterministic, within Kubernetes' limits, and without collisions.
//!
//! # Guarantees
//! - The same inputs give the same name in every replica and every release: a repeated step meets the object of
//!   the first try instead of making a second.
//! - Different inputs give different names. Where joining parts with `-` would be ambiguous (`a-b`,`c` and
//!   `a`,`b-c`), or a name had to be cut, it ends in a hash of the parts themselves.
//! - The hash is cut from SHA-256: no tenant can choose a claim's name such that it meets another tenant's.

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;

/// The longest label value, and the longest name of an object that also becomes a label or a host name.
pub const MAX_LABEL: usize = 63;
/// The longest name of any other object.
pub const MAX_NAME: usize = 253;
/// The longest name of an ArchiveTarget: leaves room for the hash in an ArchivedSnapshot's name, which is a label.
pub const MAX_TARGET_NAME: usize = 32;
/// How the content starts that a restore asks for.
pub const RESTORE_PREFIX: &str = "holdfast-";

/// Hex digits of a hash over `parts`, each part delimited so that their boundaries count.
fn hash(parts: &[&str], digits: usize) -> String {
    let mut text = Vec::new();
    for part in parts {
        text.extend_from_slice(&(part.len() as u64).to_be_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    let sum = digest(&SHA256, &text);
    let mut hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(digits);
    hex
}

/// A number in `0..bound` that depends on `parts` alone; 0 when `bound` is 0.
pub fn spread(parts: &[&str], bound: u64) -> u64 {
    // Sixteen hex digits are 64 bits; a hash never has another character.
    let value = u64::from_str_radix(&hash(parts, 16), 16).unwrap_or(0);
    value.checked_rem(bound).unwrap_or(0)
}

/// `readable`, cut if need be, and `-` and a hash: at most `limit` bytes, ends in a letter or digit.
fn with_hash(readable: &str, parts: &[&str], limit: usize, digits: usize) -> String {
    let room = limit - digits - 1;
    let mut end = readable.len().min(room);
    while !readable.is_char_boundary(end) {
        end -= 1;
    }
    let readable = readable[..end].trim_end_matches(['-', '.']);
    format!("{readable}-{}", hash(parts, digits))
}

/// The text as a label value: itself if it fits, else cut and hashed.
pub fn label_value(text: &str) -> String {
    if text.len() <= MAX_LABEL { text.to_owned() } else { with_hash(text, &[text], MAX_LABEL, 10) }
}

/// The scheduled time as it stands in names and labels: `20261123-1000`, in UTC.
pub fn slot_stamp(slot: Timestamp) -> String {
    slot.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M").to_string()
}

/// The VolumeSnapshot that a policy takes of a claim for a scheduled time.
pub fn snapshot(policy: &str, schedule: &str, claim: &str, slot: Timestamp) -> String {
    let stamp = slot_stamp(slot);
    let room = MAX_NAME - stamp.len() - 8;
    let mut readable = format!("{policy}-{claim}");
    readable.truncate(room);
    let readable = readable.trim_end_matches(['-', '.']);
    format!("{readable}-{stamp}-{}", hash(&[policy, schedule, claim, &stamp], 6))
}

/// The ArchivedSnapshot of one local snapshot in one target, within this cluster.
pub fn archived(target: &str, cluster_uid: &str, snapshot_uid: &str) -> String {
    with_hash(target, &[target, cluster_uid, snapshot_uid], MAX_LABEL, 16)
}

/// The ArchivedSnapshot of a point that another cluster wrote into a target.
pub fn discovered(target: &str, snapshot_handle: &str) -> String {
    with_hash(target, &["discovered", target, snapshot_handle], MAX_LABEL, 16)
}

/// The Job that does `action` (`archive`, `expire`, `verify`) for the object of that name; `attempt` tells
/// repetitions apart.
pub fn job(action: &str, object: &str, attempt: u64) -> String {
    with_hash(&format!("holdfast-{action}-{object}"), &[action, object, &attempt.to_string()], MAX_LABEL, 8)
}

/// The VolumeSnapshotContent through which `namespace` restores `archived`.
pub fn restore_content(archived: &str, namespace: &str) -> String {
    format!("{RESTORE_PREFIX}{archived}-{namespace}")
}

/// The ArchivedSnapshot that a VolumeSnapshot in `namespace` asks for by naming `content`; `None` when the name
/// does not ask Holdfast for anything in that namespace.
pub fn restored_from<'a>(content: &'a str, namespace: &str) -> Option<&'a str> {
    let archived = content.strip_prefix(RESTORE_PREFIX)?.strip_suffix(namespace)?.strip_suffix('-')?;
    (!archived.is_empty()).then_some(archived)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    #[test]
    fn names_read_well_and_never_change() {
        let slot = at("2026-11-23T10:00:00Z");
        assert_eq!(snapshot("gold", "hourly", "data-pg-2", slot), "gold-data-pg-2-20261123-1000-949b17");
        assert_eq!(restore_content("offsite-7f3a9c", "shop"), "holdfast-offsite-7f3a9c-shop");
    }

    #[test]
    fn joined_parts_are_told_apart() {
        let slot = at("2026-11-23T10:00:00Z");
        assert_ne!(snapshot("a-b", "hourly", "c", slot), snapshot("a", "hourly", "b-c", slot));
        assert_ne!(snapshot("a", "hourly", "c", slot), snapshot("a", "daily", "c", slot));
        assert_ne!(archived("t", "cluster1", "u"), archived("t", "cluster2", "u"));
    }

    #[test]
    fn a_restore_is_recognised_only_in_its_own_namespace() {
        let content = restore_content("offsite-7f3a9c", "shop");
        assert_eq!(restored_from(&content, "shop"), Some("offsite-7f3a9c"));
        assert_eq!(restored_from(&content, "other"), None);
        assert_eq!(restored_from("snapcontent-1234", "shop"), None);
        assert_eq!(restored_from("holdfast--shop", "shop"), None);
    }

    fn is_dns_name(name: &str) -> bool {
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        name.starts_with(edge)
            && name.ends_with(edge)
            && name.chars().all(|c| edge(c) || c == '-' || c == '.')
    }

    proptest! {
        #[test]
        fn every_name_is_valid(
            policy in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            claim in "[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?",
            target in "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?",
            namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        ) {
            let slot = at("2026-11-23T10:00:00Z");
            let name = snapshot(&policy, "hourly", &claim, slot);
            prop_assert!(name.len() <= MAX_NAME && is_dns_name(&name), "{}", name);
            let point = archived(&target, "0b6e", "7c1f");
            prop_assert!(point.len() <= MAX_LABEL && is_dns_name(&point), "{}", point);
            let content = restore_content(&point, &namespace);
            prop_assert!(content.len() <= MAX_NAME && is_dns_name(&content));
            prop_assert_eq!(restored_from(&content, &namespace), Some(point.as_str()));
            let run = job("archive", &point, 3);
            prop_assert!(run.len() <= MAX_LABEL && is_dns_name(&run), "{}", run);
            prop_assert!(label_value(&claim).len() <= MAX_LABEL && is_dns_name(&label_value(&claim)));
        }

        #[test]
        fn spreading_stays_below_its_bound(seed in "\\PC{0,40}", bound in 1u64..100_000) {
            prop_assert!(spread(&[&seed], bound) < bound);
            prop_assert_eq!(spread(&[&seed], 0), 0);
        }
    }
}
