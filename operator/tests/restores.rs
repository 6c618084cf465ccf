//! Restores as a tenant asks for them, against an API server in memory.

mod support;

use holdfast_operator::restore;
use serde_json::{Value, json};

use support::Cluster;

const CONTENT: &str = "holdfast-offsite-1-shop";

/// A cluster with a target, the point `offsite-1` of the given namespace, and a snapshot in `shop` that asks for it.
async fn asked(of_namespace: &str) -> Cluster {
    let cluster = Cluster::at("2026-11-23T09:30:00Z").await;
    cluster.target().await;
    cluster
        .create(json!({
            "apiVersion": "holdfast.storage/v1alpha1", "kind": "ArchivedSnapshot",
            "metadata": {"name": "offsite-1"},
            "spec": {
                "targetName": "offsite", "snapshotHandle": "7f3a-1-2", "pointInTime": "2026-11-20T00:00:00Z",
                "source": {
                    "clusterUID": "c", "namespace": of_namespace, "claimName": "data", "volumeMode": "Filesystem",
                },
            },
        }))
        .await;
    ask(&cluster).await;
    cluster
}

async fn ask(cluster: &Cluster) {
    cluster
        .create(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": "back", "namespace": "shop"},
            "spec": {"source": {"volumeSnapshotContentName": CONTENT}},
        }))
        .await;
}

async fn reconcile(cluster: &Cluster) -> Value {
    restore::reconcile(cluster.get("back").await, cluster.ctx.clone()).await.expect("the snapshot");
    cluster.api.find("volumesnapshots", "back").expect("the snapshot")
}

#[tokio::test]
async fn a_tenant_gets_its_own_point_back() {
    let cluster = asked("shop").await;
    for _ in 0..2 {
        reconcile(&cluster).await;
    }
    let content = cluster.api.find("volumesnapshotcontents", CONTENT).expect("the content");
    assert_eq!(content["spec"]["source"]["snapshotHandle"], "7f3a-1-2");
    assert_eq!(content["spec"]["deletionPolicy"], "Retain");
    assert_eq!(content["spec"]["sourceVolumeMode"], "Filesystem");
    assert_eq!(cluster.api.events(), ["RestoreGranted"]);
}

#[tokio::test]
async fn a_refusal_stands_on_the_snapshot_until_it_no_longer_holds() {
    let cluster = asked("bank").await;
    let snapshot = reconcile(&cluster).await;
    let note =
        snapshot["metadata"]["annotations"]["holdfast.storage/restore-denied"].as_str().expect("a note");
    assert!(note.starts_with("RestoreDenied: offsite-1 is of another namespace"), "{note}");
    assert_eq!(cluster.api.find("volumesnapshotcontents", CONTENT), None);
    reconcile(&cluster).await;
    assert_eq!(cluster.api.events(), ["RestoreDenied"], "said once");

    let open = json!({"spec": {"restoreScope": "SelectedNamespaces"}});
    cluster.change("archivetargets", "offsite", open).await;
    let snapshot = reconcile(&cluster).await;
    assert!(cluster.api.find("volumesnapshotcontents", CONTENT).is_some());
    assert_eq!(snapshot["metadata"]["annotations"]["holdfast.storage/restore-denied"], Value::Null);
}

#[tokio::test]
async fn a_namespace_that_is_not_selected_gets_nothing() {
    let cluster = asked("shop").await;
    cluster.change("namespaces", "shop", json!({"metadata": {"labels": {"backup": null}}})).await;
    reconcile(&cluster).await;
    assert_eq!(cluster.api.find("volumesnapshotcontents", CONTENT), None);
    assert_eq!(cluster.api.events(), ["RestoreDenied"]);
}

#[tokio::test]
async fn a_content_ends_with_its_snapshot_and_the_name_can_be_used_again() {
    let cluster = asked("shop").await;
    reconcile(&cluster).await;
    let uid = cluster.api.find("volumesnapshots", "back").expect("the snapshot")["metadata"]["uid"].clone();
    // What the snapshot controller does when it binds the two.
    let bound = json!({"spec": {"volumeSnapshotRef": {"uid": uid}}});
    cluster.change("volumesnapshotcontents", CONTENT, bound).await;
    let end = async || {
        restore::content::reconcile(cluster.get(CONTENT).await, cluster.ctx.clone())
            .await
            .expect("the content");
        cluster.api.find("volumesnapshotcontents", CONTENT).is_none()
    };
    cluster.pass(10);
    assert!(!end().await, "its snapshot is alive");

    cluster.delete("volumesnapshots", "back").await;
    ask(&cluster).await;
    let snapshot = reconcile(&cluster).await;
    let note =
        snapshot["metadata"]["annotations"]["holdfast.storage/restore-denied"].as_str().expect("a note");
    assert!(note.starts_with("RestoreInUse"), "{note}");
    assert!(end().await, "it belonged to the snapshot that is gone");
    reconcile(&cluster).await;
    assert!(cluster.api.find("volumesnapshotcontents", CONTENT).is_some());
}

#[tokio::test]
async fn an_ordinary_snapshot_is_none_of_our_business() {
    let cluster = Cluster::at("2026-11-23T09:30:00Z").await;
    cluster
        .create(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": "back", "namespace": "shop"},
            "spec": {"source": {"volumeSnapshotContentName": "snapcontent-1"}},
        }))
        .await;
    let before = cluster.api.writes().len();
    reconcile(&cluster).await;
    assert_eq!(cluster.api.writes().len(), before);
}
