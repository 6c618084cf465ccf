//! Whether a namespace may restore a point, and the content that lets it. Pure.

use std::collections::BTreeMap;

use holdfast_api::target::RestoreScope;
use holdfast_api::{ArchiveTarget, ArchivedSnapshot, DRIVER, labels};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;

use crate::api;
use crate::policy::observe::selects;
use crate::snapshots::{
    VolumeSnapshot, VolumeSnapshotContent, VolumeSnapshotContentSource, VolumeSnapshotContentSpec,
};

/// A request and all it is judged by.
pub struct Request<'a> {
    /// The VolumeSnapshot that asks.
    pub snapshot: &'a VolumeSnapshot,
    /// The content it names.
    pub content_name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// That namespace's labels; `None` when it is gone.
    pub namespace_labels: Option<&'a BTreeMap<String, String>>,
    /// The ArchivedSnapshot it asks for; `None` when the name is not of the agreed form.
    pub archived: Option<&'a str>,
    /// That ArchivedSnapshot, if it exists.
    pub point: Option<&'a ArchivedSnapshot>,
    /// Its target, if it exists.
    pub target: Option<&'a ArchiveTarget>,
    /// The content of that name, if it exists.
    pub existing: Option<&'a VolumeSnapshotContent>,
}

/// The answer.
#[derive(Debug, PartialEq)]
pub enum Ruling {
    /// It has what it asks for.
    Granted,
    /// Create this content.
    Grant(Box<VolumeSnapshotContent>),
    /// No, or not yet.
    Refuse {
        /// The event's reason.
        reason: &'static str,
        /// A sentence that says what to do.
        message: String,
    },
}

fn refuse(reason: &'static str, message: String) -> Ruling {
    Ruling::Refuse { reason, message }
}

/// Decides.
pub fn decide(request: &Request<'_>) -> Ruling {
    if let Some(existing) = request.existing {
        return judge_existing(request, existing);
    }
    let namespace = request.namespace;
    let Some(archived) = request.archived else {
        let message = format!(
            "the content name must be holdfast-<ArchivedSnapshot>-{namespace}, not {}",
            request.content_name
        );
        return refuse("RestoreNameInvalid", message);
    };
    let Some(point) = request.point else {
        return refuse("ArchivedSnapshotNotFound", format!("there is no ArchivedSnapshot {archived}"));
    };
    let Some(target) = request.target else {
        return refuse("TargetNotFound", format!("there is no ArchiveTarget {}", point.spec.target_name));
    };
    if let Some(refusal) = refusal(request, point, target) {
        return refusal;
    }
    let Some(handle) = &point.spec.snapshot_handle else {
        return refuse("NotArchivedYet", format!("{archived} has not been archived yet"));
    };
    Ruling::Grant(Box::new(content(request, point, handle)))
}

/// A content that is there: ours for this snapshot, or in the way.
fn judge_existing(request: &Request<'_>, existing: &VolumeSnapshotContent) -> Ruling {
    let reference = &existing.spec.volume_snapshot_ref;
    let is_for_us = reference.namespace.as_deref() == Some(request.namespace)
        && reference.name == request.snapshot.metadata.name
        && reference.uid.as_ref().is_none_or(|uid| Some(uid) == request.snapshot.metadata.uid.as_ref());
    if is_for_us {
        return Ruling::Granted;
    }
    let holder = format!(
        "{}/{}",
        reference.namespace.as_deref().unwrap_or_default(),
        reference.name.as_deref().unwrap_or_default()
    );
    let message = format!(
        "content {} belongs to VolumeSnapshot {holder}; delete that first, or make volumes from it",
        request.content_name
    );
    refuse("RestoreInUse", message)
}

/// Why the namespace may not have the point; `None` when it may.
fn refusal(request: &Request<'_>, point: &ArchivedSnapshot, target: &ArchiveTarget) -> Option<Ruling> {
    let namespace = request.namespace;
    let name = target.name_any();
    if !request.namespace_labels.is_some_and(|labels| selects(target, labels)) {
        let message = format!("ArchiveTarget {name} does not select namespace {namespace}");
        return Some(refuse("RestoreDenied", message));
    }
    let source = &point.spec.source.namespace;
    if target.spec.restore_scope == RestoreScope::SourceNamespace && source != namespace {
        let message = format!(
            "{} is of another namespace, and ArchiveTarget {name} restores to the source's namespace only \
             (spec.restoreScope)",
            point.name_any()
        );
        return Some(refuse("RestoreDenied", message));
    }
    if target.metadata.deletion_timestamp.is_some() {
        return Some(refuse("TargetDeleting", format!("ArchiveTarget {name} is being deleted")));
    }
    None
}

fn content(request: &Request<'_>, point: &ArchivedSnapshot, handle: &str) -> VolumeSnapshotContent {
    let metadata = api::managed(
        None,
        request.content_name.to_owned(),
        [(labels::ARCHIVED_SNAPSHOT, point.name_any()), (labels::TARGET, point.spec.target_name.clone())],
    );
    VolumeSnapshotContent {
        metadata,
        spec: VolumeSnapshotContentSpec {
            deletion_policy: "Retain".to_owned(),
            driver: DRIVER.to_owned(),
            source: VolumeSnapshotContentSource {
                snapshot_handle: Some(handle.to_owned()),
                volume_handle: None,
            },
            source_volume_mode: Some(point.spec.source.volume_mode.as_str().to_owned()),
            volume_snapshot_class_name: None,
            // Without the UID: the snapshot controller fills it in when it binds the two.
            volume_snapshot_ref: ObjectReference {
                api_version: Some("snapshot.storage.k8s.io/v1".to_owned()),
                kind: Some("VolumeSnapshot".to_owned()),
                namespace: Some(request.namespace.to_owned()),
                name: request.snapshot.metadata.name.clone(),
                ..ObjectReference::default()
            },
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn point(namespace: &str, handle: Option<&str>) -> ArchivedSnapshot {
        serde_json::from_value(json!({
            "metadata": {"name": "offsite-7f3a9c"},
            "spec": {
                "targetName": "offsite", "pointInTime": "2026-11-23T05:00:00Z", "snapshotHandle": handle,
                "source": {"clusterUID": "c", "namespace": namespace, "claimName": "data", "volumeMode": "Block"},
            },
        }))
        .expect("a point")
    }

    fn target(scope: &str) -> ArchiveTarget {
        serde_json::from_value(json!({
            "metadata": {"name": "offsite"},
            "spec": {
                "url": "s3://b/p", "restoreScope": scope,
                "namespaceSelector": {"matchLabels": {"backup": "allowed"}},
            },
        }))
        .expect("a target")
    }

    fn snapshot() -> VolumeSnapshot {
        serde_json::from_value(json!({
            "metadata": {"name": "pg-from-offsite", "namespace": "shop", "uid": "s-uid"},
            "spec": {"source": {"volumeSnapshotContentName": "holdfast-offsite-7f3a9c-shop"}},
        }))
        .expect("a snapshot")
    }

    struct Scenario {
        labels: BTreeMap<String, String>,
        point: Option<ArchivedSnapshot>,
        target: Option<ArchiveTarget>,
        existing: Option<VolumeSnapshotContent>,
    }

    impl Default for Scenario {
        fn default() -> Self {
            Self {
                labels: BTreeMap::from([("backup".to_owned(), "allowed".to_owned())]),
                point: Some(point("shop", Some("7f3a-5e0c-012c"))),
                target: Some(target("SourceNamespace")),
                existing: None,
            }
        }
    }

    impl Scenario {
        fn ruling(&self) -> Ruling {
            decide(&Request {
                snapshot: &snapshot(),
                content_name: "holdfast-offsite-7f3a9c-shop",
                namespace: "shop",
                namespace_labels: Some(&self.labels),
                archived: Some("offsite-7f3a9c"),
                point: self.point.as_ref(),
                target: self.target.as_ref(),
                existing: self.existing.as_ref(),
            })
        }

        fn refused_for(&self) -> &'static str {
            match self.ruling() {
                Ruling::Refuse { reason, .. } => reason,
                other => panic!("expected a refusal, got {other:?}"),
            }
        }
    }

    #[test]
    fn the_owner_of_a_point_gets_a_content_that_retains_it() {
        let Ruling::Grant(content) = Scenario::default().ruling() else { panic!("expected a grant") };
        assert_eq!(
            serde_json::to_value(&content.spec).expect("serialises"),
            json!({
                "deletionPolicy": "Retain",
                "driver": "csi.holdfast.storage",
                "source": {"snapshotHandle": "7f3a-5e0c-012c"},
                "sourceVolumeMode": "Block",
                "volumeSnapshotRef": {
                    "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                    "namespace": "shop", "name": "pg-from-offsite",
                },
            })
        );
    }

    #[test]
    fn a_namespace_that_the_target_does_not_select_gets_nothing() {
        let scenario = Scenario { labels: BTreeMap::new(), ..Scenario::default() };
        assert_eq!(scenario.refused_for(), "RestoreDenied");
    }

    #[test]
    fn another_tenants_point_is_given_only_where_the_target_says_so() {
        let theirs = Some(point("bank", Some("h")));
        let scenario = Scenario { point: theirs.clone(), ..Scenario::default() };
        assert_eq!(scenario.refused_for(), "RestoreDenied");
        let scenario =
            Scenario { point: theirs, target: Some(target("SelectedNamespaces")), ..Scenario::default() };
        assert!(matches!(scenario.ruling(), Ruling::Grant(_)));
    }

    #[test]
    fn what_is_not_there_yet_is_named() {
        assert_eq!(Scenario { point: None, ..Scenario::default() }.refused_for(), "ArchivedSnapshotNotFound");
        assert_eq!(Scenario { target: None, ..Scenario::default() }.refused_for(), "TargetNotFound");
        let unfinished = Scenario { point: Some(point("shop", None)), ..Scenario::default() };
        assert_eq!(unfinished.refused_for(), "NotArchivedYet");
    }

    #[test]
    fn a_content_is_left_to_the_snapshot_it_was_made_for() {
        let Ruling::Grant(mut content) = Scenario::default().ruling() else { panic!("expected a grant") };
        let with = |content: &VolumeSnapshotContent| Scenario {
            existing: Some(content.clone()),
            ..Scenario::default()
        };
        assert_eq!(with(&content).ruling(), Ruling::Granted);
        content.spec.volume_snapshot_ref.uid = Some("s-uid".to_owned());
        assert_eq!(with(&content).ruling(), Ruling::Granted);
        content.spec.volume_snapshot_ref.uid = Some("an-older-snapshot".to_owned());
        assert_eq!(with(&content).refused_for(), "RestoreInUse");
        content.spec.volume_snapshot_ref.namespace = Some("bank".to_owned());
        assert_eq!(with(&content).refused_for(), "RestoreInUse");
    }
}
