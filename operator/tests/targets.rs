//! The life of an archive target, against an API server and a store in memory.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_api::{ArchiveSource, ArchiveTarget};
use holdfast_operator::store::{ArchivedPoint, StoreError};
use holdfast_operator::{archive, target};
use serde_json::{Value, json};

use support::Cluster;

const START: &str = "2026-11-23T09:30:00Z";

async fn reconcile(cluster: &Cluster) -> Value {
    let target: Arc<ArchiveTarget> = cluster.get("offsite").await;
    target::reconcile(target, cluster.ctx.clone()).await.expect("the target");
    cluster.api.find("archivetargets", "offsite").unwrap_or(Value::Null)
}

/// A target that has been looked at: once for the finalizer, once for all else.
async fn ready_target() -> Cluster {
    let cluster = Cluster::at(START).await;
    cluster.target().await;
    for _ in 0..2 {
        reconcile(&cluster).await;
    }
    cluster
}

fn condition(object: &Value, type_: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array().expect("conditions");
    let found = conditions.iter().find(|condition| condition["type"] == type_).expect("the condition");
    (
        found["reason"].as_str().expect("a reason").to_owned(),
        found["message"].as_str().expect("text").to_owned(),
    )
}

fn decoded(secret: &Value, key: &str) -> String {
    let secret: k8s_openapi::api::core::v1::Secret =
        serde_json::from_value(secret.clone()).expect("a Secret");
    let data: BTreeMap<_, _> = secret.data.expect("data");
    String::from_utf8(data[key].0.clone()).expect("text")
}

fn point(cluster_uid: &str, name: &str, time: &str, expires_at: Option<&str>) -> ArchivedPoint {
    ArchivedPoint {
        name: name.to_owned(),
        handle: format!("7f3a9c1d-{name}"),
        point_in_time: time.parse().expect("a time"),
        source: ArchiveSource {
            cluster_uid: cluster_uid.to_owned(),
            namespace: "shop".to_owned(),
            claim_name: "data-pg-0".to_owned(),
            volume_mode: Default::default(),
            fs_type: Some("ext4".to_owned()),
        },
        restore_size_bytes: 10 << 30,
        changed_bytes: None,
        expires_at: expires_at.map(|time| time.parse().expect("a time")),
        newest: name != "offsite-1",
    }
}

#[tokio::test]
async fn nodes_get_the_readers_credentials_and_only_jobs_the_writers() {
    let cluster = ready_target().await;
    let target = cluster.api.find("archivetargets", "offsite").expect("the target");
    assert_eq!(condition(&target, "Ready").0, "SelfTestPassed");
    assert_eq!(target["status"]["poolID"], "7f3a9c1d");
    let nodes = decoded(&cluster.api.find("secrets", "holdfast-targets").expect("a Secret"), "offsite.yaml");
    let jobs =
        decoded(&cluster.api.find("secrets", "holdfast-targets-writer").expect("a Secret"), "offsite.yaml");
    assert!(nodes.contains("READER") && !nodes.contains("WRITER"), "{nodes}");
    assert!(jobs.contains("WRITER") && !jobs.contains("READER"), "{jobs}");
}

#[tokio::test]
async fn an_unsafe_store_is_refused_by_name_and_given_to_nobody() {
    let cluster = Cluster::at(START).await;
    cluster.target().await;
    cluster.store.fail_with(Some(StoreError::Unsafe("s3rver lets two creators win".to_owned())));
    reconcile(&cluster).await;
    let target = reconcile(&cluster).await;
    let (reason, message) = condition(&target, "Ready");
    assert_eq!(reason, "UnsafeStore");
    assert!(message.contains("s3rver lets two creators win"));
    assert_eq!(cluster.api.find("secrets", "holdfast-targets"), None);
    assert!(cluster.api.events().contains(&"UnsafeStore".to_owned()));
}

#[tokio::test]
async fn a_missing_secret_is_named() {
    let cluster = Cluster::at(START).await;
    cluster.target().await;
    cluster.delete("secrets", "offsite-reader").await;
    reconcile(&cluster).await;
    let target = reconcile(&cluster).await;
    let (reason, message) = condition(&target, "Ready");
    assert_eq!(reason, "SecretNotFound");
    assert_eq!(message, "there is no Secret offsite-reader in namespace holdfast-system");
}

#[tokio::test]
async fn a_target_is_distributed_once_every_driver_has_loaded_it() {
    let cluster = Cluster::at(START).await;
    cluster.driver("controller-0", "controller", "10.0.0.1").await;
    cluster.driver("node-a", "node", "10.0.0.2").await;
    cluster.probe.load("10.0.0.1:9809", "offsite");
    cluster.target().await;
    reconcile(&cluster).await;
    let target = reconcile(&cluster).await;
    let (reason, message) = condition(&target, "Distributed");
    assert_eq!(reason, "Distributing");
    assert_eq!(message, "1 of 2 drivers have not loaded it yet: node-of-node-a");
    let pod = cluster.api.find("pods", "node-a").expect("the pod");
    let generation = &pod["metadata"]["annotations"]["holdfast.storage/targets-generation"];
    assert!(generation.is_string(), "the pod was touched so that the kubelet brings the file at once");

    cluster.probe.load("10.0.0.2:9809", "offsite");
    let target = reconcile(&cluster).await;
    assert_eq!(condition(&target, "Distributed").0, "AllDriversLoaded");
}

#[tokio::test]
async fn points_of_other_clusters_are_found_and_vanished_ones_are_missing() {
    let cluster = ready_target().await;
    cluster.store.put(point("another-cluster", "prod-1", "2026-11-20T00:00:00Z", None));
    let target = reconcile(&cluster).await;
    assert_eq!(target["status"]["points"], 1);
    let found = cluster.api.all("archivedsnapshots");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["spec"]["snapshotHandle"], "7f3a9c1d-prod-1");
    assert_eq!(found[0]["status"]["phase"], "Complete");
    assert_eq!(found[0]["status"]["restoreSize"], "10Gi");

    cluster.store.fail_with(Some(StoreError::Timeout));
    reconcile(&cluster).await;
    assert_eq!(
        cluster.api.all("archivedsnapshots")[0]["status"]["phase"],
        "Complete",
        "no answer is no proof"
    );
    cluster.store.fail_with(None);
    cluster.store.clear();
    reconcile(&cluster).await;
    assert_eq!(cluster.api.all("archivedsnapshots")[0]["status"]["phase"], "Missing");
    assert!(cluster.api.events().contains(&"PointMissing".to_owned()));
}

#[tokio::test]
async fn an_expired_point_is_deleted_by_a_job_but_never_the_last_of_its_volume() {
    let cluster = ready_target().await;
    let here = cluster.ctx.cluster_uid.clone();
    let ended = Some("2026-11-22T00:00:00Z");
    cluster.store.put(point(&here, "offsite-1", "2026-11-20T00:00:00Z", ended));
    cluster.store.put(point(&here, "offsite-2", "2026-11-21T00:00:00Z", ended));
    for _ in 0..3 {
        reconcile(&cluster).await;
    }
    let jobs = cluster.api.all("jobs");
    assert_eq!(jobs.len(), 1);
    let args = &jobs[0]["spec"]["template"]["spec"]["containers"][0]["args"];
    assert_eq!(args[1], "expire");
    assert_eq!(args[5], "7f3a9c1d-offsite-1");

    cluster.store.clear();
    cluster.store.put(point(&here, "offsite-2", "2026-11-21T00:00:00Z", ended));
    reconcile(&cluster).await;
    let left: Vec<Value> = cluster.api.all("archivedsnapshots");
    assert_eq!(left.len(), 1, "gone as asked: not missing");
    assert_eq!(left[0]["metadata"]["name"], "offsite-2");
}

#[tokio::test]
async fn a_verification_runs_by_schedule_and_marks_the_points_it_read() {
    let cluster = ready_target().await;
    cluster.store.put(point("another-cluster", "prod-1", "2026-11-20T00:00:00Z", None));
    let rule = json!({"spec": {"verification": {"cron": "0 10 * * *", "timeZone": "UTC"}}});
    cluster.change("archivetargets", "offsite", rule).await;
    for _ in 0..2 {
        reconcile(&cluster).await;
    }
    assert!(cluster.api.all("jobs").is_empty());
    cluster.pass(31);
    for _ in 0..2 {
        reconcile(&cluster).await;
    }
    let jobs = cluster.api.all("jobs");
    assert_eq!(jobs.len(), 1, "once for each scheduled time");
    assert_eq!(jobs[0]["spec"]["template"]["spec"]["containers"][0]["args"][1], "verify");
    let job = jobs[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    cluster.set_status("jobs", &job, json!({"conditions": [{"type": "Complete", "status": "True"}]})).await;
    let target = reconcile(&cluster).await;
    assert_eq!(condition(&target, "Verified").0, "ChecksumsMatch");
    assert_eq!(target["status"]["lastVerifiedTime"], "2026-11-23T10:00:00Z");
    assert_eq!(condition(&cluster.api.all("archivedsnapshots")[0], "Verified").0, "ChecksumsMatch");
}

/// A ready target with one point, from which the claim `data-pg-0` is being restored.
async fn restoring() -> Cluster {
    let cluster = ready_target().await;
    cluster.store.put(point("another-cluster", "prod-1", "2026-11-20T00:00:00Z", None));
    for _ in 0..2 {
        reconcile(&cluster).await;
    }
    let archived = cluster.api.all("archivedsnapshots")[0]["metadata"]["name"].clone();
    cluster.claim("data-pg-0").await;
    let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "back"});
    cluster.change("persistentvolumeclaims", "data-pg-0", json!({"spec": {"dataSource": source}})).await;
    cluster
        .create(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {
                "name": "holdfast-x-shop", "labels": {"holdfast.storage/archived-snapshot": archived},
            },
            "spec": {
                "deletionPolicy": "Retain", "driver": "csi.holdfast.storage", "source": {"snapshotHandle": "h"},
                "volumeSnapshotRef": {"name": "back", "namespace": "shop"},
            },
        }))
        .await;
    cluster
}

#[tokio::test]
async fn a_point_lists_who_restores_from_it_and_how_far_they_are() {
    let cluster = restoring().await;
    cluster.store.hydrate("pool-data-pg-0", 3, 8);
    let archived = cluster.api.all("archivedsnapshots")[0]["metadata"]["name"].clone();
    let name = archived.as_str().expect("a name");
    archive::reconcile(cluster.get(name).await, cluster.ctx.clone()).await.expect("the point");
    let restores = cluster.api.all("archivedsnapshots")[0]["status"]["restores"].clone();
    assert_eq!(
        restores,
        json!([{"namespace": "shop", "claimName": "data-pg-0", "hydratedBytes": 3, "totalBytes": 8}])
    );
    // The user deletes snapshot and content: the volume still reads from the archive, and stays listed.
    cluster.delete("volumesnapshotcontents", "holdfast-x-shop").await;
    cluster.store.hydrate("pool-data-pg-0", 5, 8);
    archive::reconcile(cluster.get(name).await, cluster.ctx.clone()).await.expect("the point");
    let restores = cluster.api.all("archivedsnapshots")[0]["status"]["restores"].clone();
    assert_eq!(restores[0]["hydratedBytes"], 5);
}

#[tokio::test]
async fn a_deleted_target_waits_for_volumes_that_read_from_it_and_says_which() {
    let cluster = restoring().await;
    cluster.store.hydrate("pool-data-pg-0", 3, 8);
    cluster.delete("archivetargets", "offsite").await;
    let target = reconcile(&cluster).await;
    let (reason, message) = condition(&target, "Deleting");
    assert_eq!(reason, "RestoresHydrating");
    assert!(message.contains("shop/data-pg-0") && message.contains("force-delete"), "{message}");

    cluster.store.let_go("pool-data-pg-0");
    assert_eq!(reconcile(&cluster).await, Value::Null, "it is gone");
    assert!(cluster.api.all("archivedsnapshots").is_empty());
    let secret = cluster.api.find("secrets", "holdfast-targets").expect("the Secret");
    assert_eq!(secret["data"]["offsite.yaml"], Value::Null);
}

#[tokio::test]
async fn a_deleted_target_whose_store_is_gone_for_good_can_be_forced() {
    let cluster = restoring().await;
    cluster.store.fail_with(Some(StoreError::Unreachable("no such host".to_owned())));
    cluster.delete("archivetargets", "offsite").await;
    let target = reconcile(&cluster).await;
    assert_eq!(condition(&target, "Deleting").0, "RestoresHydrating");
    let force = json!({"metadata": {"annotations": {"holdfast.storage/force-delete": "true"}}});
    cluster.change("archivetargets", "offsite", force).await;
    assert_eq!(reconcile(&cluster).await, Value::Null, "it is gone");
}
