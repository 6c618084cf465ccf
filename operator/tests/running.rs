//! The whole operator at work: election, watches, all controllers, against an API server in memory.

mod support;

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::ArchivedSnapshot;
use holdfast_operator::run::run;
use holdfast_operator::server::Health;
use holdfast_operator::store::ArchivedPoint;
use serde_json::{Value, json};

use support::Cluster;

fn phase_of_only_point(cluster: &support::api_server::ApiServer) -> Value {
    cluster.all("archivedsnapshots").first().map(|point| point["status"]["phase"].clone()).unwrap_or_default()
}

fn name_of_only(cluster: &Cluster, plural: &str) -> String {
    let all = cluster.api.all(plural);
    assert_eq!(all.len(), 1, "{plural}");
    all[0]["metadata"]["name"].as_str().expect("a name").to_owned()
}

fn is_true(api: &support::api_server::ApiServer, plural: &str, name: &str, condition: &str) -> bool {
    let object = api.find(plural, name).unwrap_or_default();
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == condition && c["status"] == "True")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_applied_is_carried_out_without_further_ado() {
    let cluster = Arc::new(Cluster::at("2026-11-23T09:30:00Z").await);
    cluster.claim("data-pg-0").await;
    cluster
        .create(json!({
            "apiVersion": "holdfast.storage/v1alpha1", "kind": "SnapshotPolicy",
            "metadata": {"name": "gold", "namespace": "shop"},
            "spec": {
                "selector": {"matchLabels": {"app": "pg"}}, "volumeSnapshotClassName": "holdfast",
                "schedules": [{"name": "hourly", "cron": "0 * * * *"}], "retention": {"hourly": 24},
                "archive": {"targetName": "offsite", "schedules": ["hourly"]},
                "objectives": {"localRPO": "2h", "archiveRPO": "4h"},
            },
        }))
        .await;
    cluster.pass(31);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let operator = tokio::spawn(run(cluster.ctx.clone(), Health::default(), async move {
        let _: Result<(), _> = stopped.await;
    }));

    // The policy stands; its target comes later and is picked up.
    cluster.api.until("the snapshot is taken", |api| !api.all("volumesnapshots").is_empty()).await;
    // A driver that has loaded it: the target is looked at only each five minutes from then on.
    cluster.probe.load("10.0.0.1:9809", "offsite");
    cluster.driver("controller-0", "controller", "10.0.0.1").await;
    cluster.target().await;
    let points = |api: &support::api_server::ApiServer| {
        let target = api.find("archivetargets", "offsite").unwrap_or_default();
        target["status"]["points"].as_u64()
    };
    cluster
        .api
        .until("the target is distributed", |api| is_true(api, "archivetargets", "offsite", "Distributed"))
        .await;
    assert_eq!(points(&cluster.api), Some(0));
    let snapshot = name_of_only(&cluster, "volumesnapshots");
    cluster
        .create(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "content"},
            "spec": {
                "deletionPolicy": "Delete", "driver": "csi.holdfast.storage", "source": {"volumeHandle": "v"},
                "volumeSnapshotRef": {"name": snapshot, "namespace": "shop"},
            },
            "status": {"snapshotHandle": "pool-vol-snap"},
        }))
        .await;
    let ready = json!({
        "readyToUse": true, "creationTime": "2026-11-23T10:01:00Z", "boundVolumeSnapshotContentName": "content",
    });
    cluster.set_status("volumesnapshots", &snapshot, ready).await;

    cluster.api.until("the Job is started", |api| !api.all("jobs").is_empty()).await;
    let point: Arc<ArchivedSnapshot> = cluster.get(&name_of_only(&cluster, "archivedsnapshots")).await;
    let point_name = point.metadata.name.clone().expect("a name");
    cluster.store.put(ArchivedPoint {
        name: point_name.clone(),
        handle: "7f3a9c1d-vol-point".to_owned(),
        point_in_time: point.spec.point_in_time.0,
        source: point.spec.source.clone(),
        restore_size_bytes: 1 << 30,
        changed_bytes: Some(1 << 20),
        expires_at: None,
        newest: true,
    });
    let complete = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    cluster.set_status("jobs", &name_of_only(&cluster, "jobs"), complete).await;
    cluster.api.until("the point is complete", |api| phase_of_only_point(api) == "Complete").await;
    cluster.api.until("the target counts it", |api| points(api) == Some(1)).await;
    cluster
        .api
        .until("the policy is compliant", |api| is_true(api, "snapshotpolicies", "gold", "Compliant"))
        .await;

    // A tenant asks for the point in the standard way.
    let content = format!("holdfast-{point_name}-shop");
    cluster
        .create(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": "back", "namespace": "shop"},
            "spec": {"source": {"volumeSnapshotContentName": content}},
        }))
        .await;
    cluster
        .api
        .until("the content is made", |api| api.find("volumesnapshotcontents", &content).is_some())
        .await;
    assert!(cluster.api.find("secrets", "holdfast-node-tls").is_some(), "certificates were made");

    stop.send(()).expect("the operator listens");
    tokio::time::timeout(Duration::from_secs(10), operator).await.expect("in good order").expect("no panic");
    let lease = cluster.api.find("leases", "holdfast-operator").expect("the lease");
    assert_eq!(lease["spec"]["holderIdentity"], "", "given up, so that another need not wait");
}
