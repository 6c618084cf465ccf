//! The resource definitions as the API server will enforce them: bounds everywhere, and each rule refuses what it
//! is there to refuse, with a message that says what to do.

use std::path::Path;

use holdfast_api::{ArchiveTarget, ArchivedSnapshot, SnapshotPolicy, crds};
use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde_json::{Value, json};

fn schema_of<T: CustomResourceExt>() -> Value {
    let crd = serde_json::to_value(T::crd()).expect("a definition serialises");
    crd.pointer("/spec/versions/0/schema/openAPIV3Schema").expect("a schema").clone()
}

/// The messages of the rules that refuse `object`.
fn refusals<T: CustomResourceExt>(object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema_of::<T>(), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(|error| error.message.clone()).collect(),
    }
}

fn policy() -> Value {
    json!({
        "apiVersion": "holdfast.storage/v1alpha1",
        "kind": "SnapshotPolicy",
        "metadata": {"name": "gold", "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "pg"}},
            "volumeSnapshotClassName": "holdfast",
            "schedules": [{
                "name": "hourly", "cron": "0 * * * *", "timeZone": "Europe/Berlin", "jitter": "5m",
                "startingDeadline": "2h",
            }],
            "retention": {"hourly": 24, "daily": 7},
            "archive": {
                "targetName": "offsite", "schedules": ["hourly"],
                "retention": {"daily": 30, "weekly": 12, "monthly": 12},
            },
            "objectives": {"localRPO": "2h", "archiveRPO": "4h"},
        },
    })
}

fn target() -> Value {
    json!({
        "apiVersion": "holdfast.storage/v1alpha1",
        "kind": "ArchiveTarget",
        "metadata": {"name": "offsite"},
        "spec": {
            "url": "s3://backups/prod",
            "writerSecretName": "offsite-writer",
            "readerSecretName": "offsite-reader",
            "encryption": {"keySecretName": "offsite-key"},
            "namespaceSelector": {"matchLabels": {"backup": "allowed"}},
            "limits": {"bytesPerSecond": "100Mi", "parallelJobs": 4},
            "retention": {"minimum": "168h"},
            "verification": {"cron": "0 3 * * 0"},
        },
    })
}

fn archived() -> Value {
    json!({
        "apiVersion": "holdfast.storage/v1alpha1",
        "kind": "ArchivedSnapshot",
        "metadata": {"name": "offsite-7f3a9c"},
        "spec": {
            "targetName": "offsite",
            "pointInTime": "2026-11-23T05:00:00Z",
            "source": {
                "clusterUID": "0b6e", "namespace": "shop", "claimName": "data-pg-2",
                "volumeMode": "Filesystem", "fsType": "ext4",
            },
            "origin": {"volumeSnapshotName": "gold-data-pg-2", "uid": "7c1f", "snapshotHandle": "a-b-c"},
        },
    })
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect("the parent exists").as_object_mut().expect("an object");
    if value.is_null() {
        parent.remove(key);
    } else {
        parent.insert(key.to_owned(), value);
    }
    object
}

#[test]
fn the_documented_examples_are_accepted_and_read_back() {
    assert_eq!(refusals::<SnapshotPolicy>(&policy(), None), Vec::<String>::new());
    assert_eq!(refusals::<ArchiveTarget>(&target(), None), Vec::<String>::new());
    assert_eq!(refusals::<ArchivedSnapshot>(&archived(), None), Vec::<String>::new());

    let read: SnapshotPolicy = serde_json::from_value(policy()).expect("a policy");
    assert_eq!(read.spec.schedules[0].jitter.expect("jitter").as_secs(), 300);
    let read: ArchiveTarget = serde_json::from_value(target()).expect("a target");
    assert_eq!(read.spec.limits.expect("limits").bytes_per_second.expect("a limit").bytes(), 100 << 20);
    assert_eq!(read.spec.parallel_jobs(), 4);
    let read: ArchivedSnapshot = serde_json::from_value(archived()).expect("a point");
    assert_eq!(read.spec.source.fs_type.as_deref(), Some("ext4"));
}

#[test]
fn a_policy_that_cannot_work_is_refused() {
    for (pointer, value, message) in [
        (
            "/spec/retention",
            json!({}),
            "at least one of hourly, daily, weekly, monthly, yearly must be greater than 0",
        ),
        (
            "/spec/archive/schedules",
            json!(["weekly"]),
            "archive.schedules may only name schedules of this policy",
        ),
        ("/spec/archive", Value::Null, "objectives.archiveRPO needs an archive section to be met by"),
        ("/metadata/name", json!("p".repeat(64)), "the name becomes a label: at most 63 characters"),
    ] {
        assert_eq!(refusals::<SnapshotPolicy>(&with(policy(), pointer, value), None), [message], "{pointer}");
    }
}

#[test]
fn a_target_that_cannot_work_is_refused() {
    for (pointer, value, message) in [
        (
            "/spec/readerSecretName",
            Value::Null,
            "an object store needs writerSecretName and readerSecretName",
        ),
        (
            "/spec/writerSecretName",
            Value::Null,
            "an object store needs writerSecretName and readerSecretName",
        ),
        (
            "/metadata/name",
            json!("t".repeat(33)),
            "the name begins those of its points: at most 32 characters without a dot",
        ),
    ] {
        assert_eq!(refusals::<ArchiveTarget>(&with(target(), pointer, value), None), [message], "{pointer}");
    }
    let directory = with(target(), "/spec/url", json!("file:///var/lib/archive"));
    let directory = with(directory, "/spec/readerSecretName", Value::Null);
    assert_eq!(refusals::<ArchiveTarget>(&directory, None), Vec::<String>::new());
}

#[test]
fn what_identifies_a_target_or_a_point_cannot_change() {
    let moved = with(target(), "/spec/url", json!("s3://elsewhere/prod"));
    assert_eq!(refusals::<ArchiveTarget>(&moved, Some(&target())), ["url is immutable: make another target"]);
    let plain = with(target(), "/spec/encryption", Value::Null);
    assert_eq!(
        refusals::<ArchiveTarget>(&plain, Some(&target())),
        ["whether a target is encrypted cannot be changed"]
    );

    let done = with(archived(), "/spec/snapshotHandle", json!("7f3a9c1d-5e0c-012c"));
    assert_eq!(refusals::<ArchivedSnapshot>(&done, Some(&archived())), Vec::<String>::new());
    let other = with(archived(), "/spec/snapshotHandle", json!("7f3a9c1d-5e0c-ffff"));
    let once = "snapshotHandle is set once, when the point exists";
    assert_eq!(refusals::<ArchivedSnapshot>(&other, Some(&done)), [once]);
    assert_eq!(refusals::<ArchivedSnapshot>(&archived(), Some(&done)), [once]);
    let elsewhere = with(archived(), "/spec/source/namespace", json!("other"));
    assert_eq!(refusals::<ArchivedSnapshot>(&elsewhere, Some(&archived())), ["source is immutable"]);
}

/// Collects every place in a schema that has no upper bound.
fn unbounded(path: &Path, schema: &Value, found: &mut Vec<String>) {
    let has = |key: &str| schema.get(key).is_some();
    let here = || path.display().to_string();
    match schema.get("type").and_then(Value::as_str) {
        Some("string") if !(has("maxLength") || has("enum") || has("format")) => found.push(here()),
        Some("array") if !has("maxItems") => found.push(here()),
        Some("integer") if !has("minimum") => found.push(here()),
        Some("object") if has("additionalProperties") && !has("maxProperties") => found.push(here()),
        None if !has("enum") => found.push(format!("{} has no type", here())),
        _ => {}
    }
    for (name, child) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        unbounded(&path.join(name), child, found);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = schema.get(key) {
            unbounded(&path.join(key), child, found);
        }
    }
}

#[test]
fn every_string_list_map_and_number_has_a_bound() {
    let mut found = Vec::new();
    for crd in crds() {
        let name = crd.metadata.name.clone().expect("a name");
        let crd = serde_json::to_value(crd).expect("a definition serialises");
        let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").expect("a schema");
        for part in ["spec", "status"] {
            let child = schema.pointer(&format!("/properties/{part}")).expect("spec and status");
            unbounded(&Path::new(&name).join(part), child, &mut found);
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn definitions_have_status_columns_and_scope() {
    for (crd, scope) in crds().into_iter().zip(["Namespaced", "Cluster", "Cluster"]) {
        assert_eq!(crd.spec.scope, scope);
        let version = &crd.spec.versions[0];
        assert_eq!(version.name, "v1alpha1");
        assert!(version.subresources.as_ref().is_some_and(|sub| sub.status.is_some()));
        assert!(version.additional_printer_columns.as_ref().is_some_and(|columns| columns.len() >= 5));
    }
}
