//! From a policy to archived points, against an API server and a store in memory.

mod support;

use std::sync::Arc;

use holdfast_api::{ArchivedSnapshot, SnapshotPolicy};
use holdfast_operator::error::Error;
use holdfast_operator::store::{ArchivedPoint, StoreError};
use holdfast_operator::{archive, policy, target};
use kube::runtime::controller::Action;
use serde_json::{Value, json};

use support::{Cluster, SYSTEM};

const START: &str = "2026-11-23T09:30:00Z";

fn gold() -> Value {
    json!({
        "apiVersion": "holdfast.storage/v1alpha1", "kind": "SnapshotPolicy",
        "metadata": {"name": "gold", "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "pg"}},
            "volumeSnapshotClassName": "holdfast",
            "schedules": [{"name": "hourly", "cron": "0 * * * *", "timeZone": "UTC"}],
            "retention": {"hourly": 2},
            "archive": {"targetName": "offsite", "schedules": ["hourly"], "retention": {"daily": 30}},
            "objectives": {"localRPO": "2h", "archiveRPO": "4h"},
        },
    })
}

/// A cluster with one claim, a ready target and the policy.
async fn protected() -> Cluster {
    let cluster = Cluster::at(START).await;
    cluster.claim("data-pg-0").await;
    cluster.target().await;
    for _ in 0..2 {
        target::reconcile(cluster.get("offsite").await, cluster.ctx.clone()).await.expect("the target");
    }
    cluster.create(gold()).await;
    cluster
}

async fn reconcile_policy(cluster: &Cluster) -> Arc<SnapshotPolicy> {
    policy::reconcile(cluster.get("gold").await, cluster.ctx.clone()).await.expect("the policy");
    cluster.get("gold").await
}

async fn reconcile_point(cluster: &Cluster, name: &str) -> Arc<ArchivedSnapshot> {
    archive::reconcile(cluster.get(name).await, cluster.ctx.clone()).await.expect("the point");
    cluster.get(name).await
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

/// The driver finishes the newest snapshot.
async fn make_ready(cluster: &Cluster, snapshot: &str) {
    let created = cluster.ctx.now().to_string();
    cluster
        .create(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": format!("content-{snapshot}")},
            "spec": {
                "deletionPolicy": "Delete", "driver": "csi.holdfast.storage", "source": {"volumeHandle": "v"},
                "volumeSnapshotRef": {"name": snapshot, "namespace": "shop"},
            },
            "status": {"snapshotHandle": format!("pool-vol-{snapshot}")},
        }))
        .await;
    let status = json!({
        "readyToUse": true, "creationTime": created,
        "boundVolumeSnapshotContentName": format!("content-{snapshot}"),
    });
    cluster.set_status("volumesnapshots", snapshot, status).await;
}

fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().expect("conditions");
    conditions.iter().find(|condition| condition["type"] == type_).expect("the condition")
}

/// The store has what a Job for the point would have put there.
fn finish_archive(cluster: &Cluster, point: &ArchivedSnapshot) {
    let name = point.metadata.name.clone().expect("a name");
    cluster.store.put(ArchivedPoint {
        handle: format!("7f3a9c1d-{name}"),
        name,
        point_in_time: point.spec.point_in_time.0,
        source: point.spec.source.clone(),
        restore_size_bytes: 10 << 30,
        changed_bytes: Some(4096),
        expires_at: point.spec.expires_at.as_ref().map(|time| time.0),
        newest: true,
    });
}

#[tokio::test]
async fn a_schedule_leads_to_a_snapshot_an_archive_job_and_a_complete_point() {
    let cluster = protected().await;
    let policy = reconcile_policy(&cluster).await;
    assert!(cluster.api.all("volumesnapshots").is_empty(), "nothing is due before the next hour");
    let next = policy.status.as_ref().and_then(|status| status.next_run_time.clone());
    assert_eq!(next.map(|time| time.0.to_string()).as_deref(), Some("2026-11-23T10:00:00Z"));

    cluster.pass(31);
    reconcile_policy(&cluster).await;
    let snapshots = cluster.api.all("volumesnapshots");
    assert_eq!(snapshots.len(), 1);
    let snapshot = name(&snapshots[0]).to_owned();
    assert!(snapshot.starts_with("gold-data-pg-0-20261123-1000-"), "{snapshot}");
    assert_eq!(snapshots[0]["metadata"]["labels"]["holdfast.storage/policy"], "gold");
    assert_eq!(snapshots[0]["metadata"]["ownerReferences"], Value::Null, "no owner: it outlives its policy");
    assert_eq!(snapshots[0]["metadata"]["annotations"]["holdfast.storage/fs-type"], "ext4");
    assert!(cluster.api.all("archivedsnapshots").is_empty(), "not before it is ready");

    make_ready(&cluster, &snapshot).await;
    reconcile_policy(&cluster).await;
    let points = cluster.api.all("archivedsnapshots");
    assert_eq!(points.len(), 1);
    let point_name = name(&points[0]).to_owned();
    assert_eq!(points[0]["spec"]["origin"]["snapshotHandle"], format!("pool-vol-{snapshot}"));
    assert_eq!(points[0]["spec"]["expiresAt"], "2026-12-23T10:01:00Z");
    assert!(cluster.api.all("jobs").is_empty(), "the point comes first");

    let point = reconcile_point(&cluster, &point_name).await;
    let jobs = cluster.api.all("jobs");
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0]["metadata"]["namespace"], SYSTEM);
    assert_eq!(jobs[0]["metadata"]["ownerReferences"][0]["name"], point_name);
    assert_eq!(point.status.as_ref().map(|s| (s.phase.as_str(), s.attempts)), Some(("Archiving", 1)));

    finish_archive(&cluster, &point);
    let complete = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    cluster.set_status("jobs", name(&jobs[0]), complete).await;
    let point = reconcile_point(&cluster, &point_name).await;
    let status = point.status.as_ref().expect("a status");
    assert_eq!(status.phase.as_str(), "Complete");
    assert_eq!(point.spec.snapshot_handle, Some(format!("7f3a9c1d-{point_name}")));
    assert_eq!(status.progress.map(|progress| progress.changed_bytes), Some(4096));
    assert_eq!(status.restore_size.map(|size| size.to_string()).as_deref(), Some("10Gi"));

    reconcile_policy(&cluster).await;
    let policy = cluster.api.find("snapshotpolicies", "gold").expect("the policy");
    assert_eq!(condition(&policy, "Compliant")["status"], "True");
    assert_eq!(policy["status"]["volumes"][0]["lastLocal"]["name"], snapshot);
    assert_eq!(policy["status"]["volumes"][0]["lastArchived"]["name"], point_name);
}

/// A replica that works on an old copy is told so, and tries again.
fn retried(result: Result<Action, Error>) {
    assert!(result.as_ref().err().is_none_or(Error::is_conflict), "{result:?}");
}

#[tokio::test]
async fn repeating_what_another_replica_began_makes_nothing_twice() {
    let cluster = protected().await;
    cluster.pass(31);
    let stale_policy: Arc<SnapshotPolicy> = cluster.get("gold").await;
    for _ in 0..3 {
        retried(policy::reconcile(stale_policy.clone(), cluster.ctx.clone()).await);
    }
    let snapshots = cluster.api.all("volumesnapshots");
    assert_eq!(snapshots.len(), 1);
    make_ready(&cluster, name(&snapshots[0])).await;
    for _ in 0..2 {
        retried(policy::reconcile(stale_policy.clone(), cluster.ctx.clone()).await);
    }
    let points = cluster.api.all("archivedsnapshots");
    assert_eq!(points.len(), 1);
    let stale_point: Arc<ArchivedSnapshot> = cluster.get(name(&points[0])).await;
    for _ in 0..3 {
        retried(archive::reconcile(stale_point.clone(), cluster.ctx.clone()).await);
    }
    assert_eq!(cluster.api.all("jobs").len(), 1);
}

#[tokio::test]
async fn a_reconcile_with_nothing_to_do_writes_nothing() {
    let cluster = protected().await;
    cluster.pass(31);
    for _ in 0..2 {
        reconcile_policy(&cluster).await;
    }
    let before = cluster.api.writes().len();
    for _ in 0..3 {
        reconcile_policy(&cluster).await;
        target::reconcile(cluster.get("offsite").await, cluster.ctx.clone()).await.expect("the target");
    }
    assert_eq!(cluster.api.writes().len(), before, "{:?}", cluster.api.writes());
}

#[tokio::test]
async fn retention_deletes_old_snapshots_but_never_one_that_waits_to_be_archived() {
    let cluster = protected().await;
    cluster.store.fail_with(Some(StoreError::Timeout));
    for _ in 0..6 {
        cluster.pass(60);
        reconcile_policy(&cluster).await;
        let pending: Vec<String> = cluster
            .api
            .all("volumesnapshots")
            .iter()
            .filter(|snapshot| snapshot["status"].is_null())
            .map(|snapshot| name(snapshot).to_owned())
            .collect();
        for snapshot in pending {
            make_ready(&cluster, &snapshot).await;
        }
        reconcile_policy(&cluster).await;
    }
    // Two by retention, and the first, which the only point under way still has to read.
    let mut left: Vec<String> =
        cluster.api.all("volumesnapshots").iter().map(|s| name(s).to_owned()).collect();
    left.sort();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left[0].contains("20261123-1000") && left[2].contains("20261123-1500"), "{left:?}");
    let points = cluster.api.all("archivedsnapshots");
    assert_eq!(points.len(), 1, "one point of a volume at a time");
    let point = reconcile_point(&cluster, name(&points[0])).await;
    let point = serde_json::to_value(&*point).expect("serialises");
    assert_eq!(condition(&point, "Archived")["reason"], "TargetNotReady");
    assert!(cluster.api.all("jobs").is_empty());

    let policy = cluster.api.find("snapshotpolicies", "gold").expect("the policy");
    assert_eq!(condition(&policy, "Compliant")["reason"], "ArchiveLagging");
    let message = condition(&policy, "Compliant")["message"].as_str().expect("a message");
    assert!(message.contains("data-pg-0: never archived in 6h, promised 4h"), "{message}");
}

#[tokio::test]
async fn a_failed_job_says_why_and_is_tried_again_later() {
    let cluster = protected().await;
    cluster.pass(31);
    reconcile_policy(&cluster).await;
    let snapshot = name(&cluster.api.all("volumesnapshots")[0]).to_owned();
    make_ready(&cluster, &snapshot).await;
    reconcile_policy(&cluster).await;
    let point = name(&cluster.api.all("archivedsnapshots")[0]).to_owned();
    reconcile_point(&cluster, &point).await;
    let job = name(&cluster.api.all("jobs")[0]).to_owned();
    cluster
        .create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "job-pod", "namespace": SYSTEM, "labels": {"batch.kubernetes.io/job-name": job},
            },
            "status": {"containerStatuses": [{
                "name": "holdfast", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 1, "message": "reading\nAccessDenied on put\n"}},
            }]},
        }))
        .await;
    cluster.set_status("jobs", &job, json!({"conditions": [{"type": "Failed", "status": "True"}]})).await;
    let failed = reconcile_point(&cluster, &point).await;
    let status = failed.status.as_ref().expect("a status");
    assert_eq!(status.phase.as_str(), "Failed");
    assert_eq!(status.conditions[0].message, "AccessDenied on put");
    assert!(cluster.api.events().contains(&"ArchiveFailed".to_owned()));

    reconcile_point(&cluster, &point).await;
    assert_eq!(cluster.api.all("jobs").len(), 1, "not at once");
    cluster.pass(2);
    let again = reconcile_point(&cluster, &point).await;
    assert_eq!(again.status.as_ref().map(|s| (s.phase.as_str(), s.attempts)), Some(("Archiving", 2)));
    assert_eq!(cluster.api.all("jobs").len(), 2);
}

#[tokio::test]
async fn a_policy_says_what_is_wrong_with_it_and_does_the_rest() {
    let cluster = Cluster::at(START).await;
    cluster.claim("data-pg-0").await;
    let mut policy = gold();
    policy["spec"]["schedules"] = json!([
        {"name": "hourly", "cron": "0 * * * *"},
        {"name": "never", "cron": "0 0 31 2 *"},
    ]);
    cluster.create(policy).await;
    cluster.pass(31);
    reconcile_policy(&cluster).await;
    let policy = cluster.api.find("snapshotpolicies", "gold").expect("the policy");
    let accepted = condition(&policy, "Accepted");
    assert_eq!(
        (accepted["status"].as_str(), accepted["reason"].as_str()),
        (Some("False"), Some("InvalidSchedule"))
    );
    let message = accepted["message"].as_str().expect("a message");
    assert!(
        message.contains("schedule never") && message.contains("there is no ArchiveTarget offsite"),
        "{message}"
    );
    assert_eq!(cluster.api.all("volumesnapshots").len(), 1, "the valid schedule goes on");
    assert!(cluster.api.events().contains(&"InvalidSchedule".to_owned()));
}

#[tokio::test]
async fn a_policy_that_selects_nothing_or_may_not_use_its_target_says_so() {
    let cluster = Cluster::at(START).await;
    cluster.target().await;
    cluster.change("namespaces", "shop", json!({"metadata": {"labels": {"backup": null}}})).await;
    cluster.create(gold()).await;
    reconcile_policy(&cluster).await;
    let policy = cluster.api.find("snapshotpolicies", "gold").expect("the policy");
    assert_eq!(condition(&policy, "Accepted")["reason"], "TargetNotAllowed");
    assert_eq!(condition(&policy, "Compliant")["reason"], "NoVolumes");
}

#[tokio::test]
async fn overlapping_policies_do_not_touch_each_others_snapshots() {
    let cluster = protected().await;
    let mut silver = gold();
    silver["metadata"]["name"] = json!("silver");
    silver["spec"]["retention"] = json!({"hourly": 1});
    silver["spec"].as_object_mut().expect("a spec").remove("archive");
    silver["spec"]["objectives"] = json!({"localRPO": "2h"});
    cluster.create(silver).await;
    for _ in 0..4 {
        cluster.pass(60);
        for policy in ["gold", "silver"] {
            policy::reconcile(cluster.get(policy).await, cluster.ctx.clone()).await.expect("a policy");
        }
        for snapshot in cluster.api.all("volumesnapshots") {
            if snapshot["status"].is_null() {
                make_ready(&cluster, name(&snapshot)).await;
            }
        }
    }
    for policy in ["gold", "silver"] {
        policy::reconcile(cluster.get(policy).await, cluster.ctx.clone()).await.expect("a policy");
    }
    let count = |policy: &str| {
        let all = cluster.api.all("volumesnapshots");
        all.iter().filter(|s| s["metadata"]["labels"]["holdfast.storage/policy"] == policy).count()
    };
    assert_eq!(count("silver"), 1);
    assert!(count("gold") >= 2);
    assert!(
        cluster
            .api
            .all("archivedsnapshots")
            .iter()
            .all(|point| { point["metadata"]["labels"]["holdfast.storage/policy"] == "gold" })
    );
}
