//! The keys of a pool: every name in it is built and read here.
//!
//! Numbers have 20 decimal digits, so that key order is number order.

use aws_lc_rs::digest::{SHA256, digest};

use crate::ids::{GrantId, ObjectId, RecordNumber, SnapshotId, VolumeId};

/// The pool's own description.
pub const POOL: &str = "holdfast.json";
/// Everything of every volume.
pub const VOLUMES: &str = "volumes/";
/// The bindings of volume names.
pub const NAMES: &str = "names/";
/// The bindings of snapshot names.
pub const SNAPSHOTS: &str = "snapshots/";
/// Generations of the wrapped master key.
pub const KEYS: &str = "keys/";
/// Registered nodes.
pub const NODES: &str = "nodes/";

/// How a name appears in keys: its SHA-256 in hexadecimal, so that any name makes a valid key of one length.
pub fn name_hash(name: &str) -> String {
    hex::encode(digest(&SHA256, name.as_bytes()))
}

/// A generation of the wrapped master key.
pub fn key_generation(number: u64) -> String {
    format!("{KEYS}{number:020}")
}

/// The bindings of one volume name, given by its hash.
pub fn bindings(hash: &str) -> String {
    format!("{NAMES}{hash}/")
}

/// A binding of a volume name, given by its hash.
pub fn binding(hash: &str, number: u64) -> String {
    format!("{NAMES}{hash}/{number:020}")
}

/// The hash and the number that a binding's key names.
pub fn binding_in(key: &str) -> Option<(&str, u64)> {
    let (hash, number) = key.strip_prefix(NAMES)?.split_once('/')?;
    Some((hash, number.parse().ok()?))
}

/// A key after all bindings of the volume name with this hash, and before those of the next.
pub fn after_bindings(hash: &str) -> String {
    // The character after the slash.
    format!("{NAMES}{hash}0")
}

/// The binding of a snapshot name, given by its hash.
pub fn snapshot_binding(hash: &str) -> String {
    format!("{SNAPSHOTS}{hash}")
}

/// The hash that a snapshot binding's key names.
pub fn snapshot_hash_in(key: &str) -> Option<&str> {
    key.strip_prefix(SNAPSHOTS)
}

/// A node's registration. Kubernetes' node names hold nothing that a key may not.
pub fn node(name: &str) -> String {
    format!("{NODES}{name}")
}

/// Everything of one volume.
pub fn volume(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/")
}

/// A key after everything of a volume, and before the next one's.
pub fn after_volume(volume: VolumeId) -> String {
    // The character after the slash.
    format!("{VOLUMES}{volume}0")
}

/// The volume that a key belongs to.
pub fn volume_in(key: &str) -> Option<VolumeId> {
    key.strip_prefix(VOLUMES)?.split_once('/')?.0.parse().ok()
}

/// A volume's description.
pub fn volume_json(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/volume.json")
}

/// The changes of a volume's parameters.
pub fn parameter_generations(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/parameters/")
}

/// A change of a volume's parameters.
pub fn parameter_generation(volume: VolumeId, number: u64) -> String {
    format!("{VOLUMES}{volume}/parameters/{number:020}")
}

/// The records of a volume's log.
pub fn records(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/log/")
}

/// A record.
pub fn record(volume: VolumeId, number: RecordNumber) -> String {
    format!("{VOLUMES}{volume}/log/{number:020}", number = number.0)
}

/// A volume's checkpoints.
pub fn roots(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/root/")
}

/// A checkpoint.
pub fn root(volume: VolumeId, number: RecordNumber) -> String {
    format!("{VOLUMES}{volume}/root/{number:020}", number = number.0)
}

/// A volume's segments.
pub fn segments(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/seg/")
}

/// A segment.
pub fn segment(volume: VolumeId, id: ObjectId) -> String {
    format!("{VOLUMES}{volume}/seg/{id}")
}

/// The objects of a volume's map.
pub fn maps(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/map/")
}

/// An object of a volume's map.
pub fn map(volume: VolumeId, id: ObjectId) -> String {
    format!("{VOLUMES}{volume}/map/{id}")
}

/// The signs that the controller wants grants back.
pub fn fences(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/fence/")
}

/// The sign that the controller wants a grant back.
pub fn fence(volume: VolumeId, grant: GrantId) -> String {
    format!("{VOLUMES}{volume}/fence/{grant}")
}

/// The pins on a volume.
pub fn pins(volume: VolumeId) -> String {
    format!("{VOLUMES}{volume}/pins/")
}

/// The pin that `clone` holds on a snapshot of `volume`.
pub fn pin(volume: VolumeId, clone: VolumeId, snapshot: SnapshotId) -> String {
    format!("{VOLUMES}{volume}/pins/{clone}.{snapshot}")
}

/// The clone and the snapshot that a pin's key names.
pub fn pin_in(key: &str) -> Option<(VolumeId, SnapshotId)> {
    let (clone, snapshot) = last(key).split_once('.')?;
    Some((clone.parse().ok()?, snapshot.parse().ok()?))
}

/// The number that a record's or root's key ends in.
pub fn number_in(key: &str) -> Option<RecordNumber> {
    last(key).parse().ok().map(RecordNumber)
}

/// The id that a segment's or map object's key ends in.
pub fn object_id_in(key: &str) -> Option<ObjectId> {
    last(key).parse().ok()
}

fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_order_is_number_order() {
        let volume = VolumeId([1; 16]);
        let keys: Vec<_> = [1, 9, 10, 99, 1 << 40, u64::MAX].map(|n| record(volume, RecordNumber(n))).into();
        assert!(keys.is_sorted());
        assert_eq!(number_in(&keys[4]), Some(RecordNumber(1 << 40)));
    }

    #[test]
    fn bindings_of_one_name_lie_together() {
        let (hash, next) = (name_hash("a"), name_hash("b"));
        let key = binding(&hash, u64::MAX);
        assert_eq!(binding_in(&key), Some((hash.as_str(), u64::MAX)));
        assert!(key.starts_with(&bindings(&hash)) && key < after_bindings(&hash));
        assert_eq!(after_bindings(&hash) < binding(&next, 1), hash < next);
    }

    #[test]
    fn a_pin_names_its_clone_and_snapshot() {
        let (parent, clone, snapshot) = (VolumeId([1; 16]), VolumeId([2; 16]), SnapshotId(0x12c));
        assert_eq!(pin_in(&pin(parent, clone, snapshot)), Some((clone, snapshot)));
        assert_eq!(pin_in("volumes/x/pins/junk"), None);
    }
}
