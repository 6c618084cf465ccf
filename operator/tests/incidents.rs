//! What node plugins tell becomes events of claims.

mod support;

use std::collections::BTreeSet;

use holdfast_operator::incidents::publish;
use holdfast_operator::probe::Incident;
use serde_json::json;

use support::{Cluster, SYSTEM};

#[tokio::test]
async fn an_incident_becomes_one_event_of_the_claim_whoever_sees_it() {
    let cluster = Cluster::at("2026-11-23T09:30:00Z").await;
    cluster.claim("data-pg-0").await;
    let claim = json!({"name": "data-pg-0", "namespace": "shop", "uid": "u-1"});
    cluster.change("persistentvolumes", "pv-data-pg-0", json!({"spec": {"claimRef": claim}})).await;
    for (name, ip) in [("node-a", "10.0.0.1"), ("node-b", "10.0.0.2")] {
        cluster
            .create(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": name, "namespace": SYSTEM,
                    "labels": {"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "node"},
                },
                "spec": {"nodeName": "worker-1", "containers": [{"name": "driver"}]},
                "status": {"phase": "Running", "podIP": ip},
            }))
            .await;
    }
    // The other one does not answer.
    let incident = |id: &str, volume: &str| Incident {
        id: id.to_owned(),
        volume: volume.to_owned(),
        reason: "WritesDropped".to_owned(),
        message: "up to 4096 bytes are dropped".to_owned(),
        time_ms: 1_795_000_000_000,
    };
    cluster
        .probe
        .tell("10.0.0.1:9809", vec![incident("a1", "pool-data-pg-0"), incident("a2", "of-another-cluster")]);
    let mut told = BTreeSet::new();
    for _ in 0..2 {
        publish(&cluster.ctx, &mut told).await.expect("published");
    }
    // Another leader knows nothing of it.
    publish(&cluster.ctx, &mut BTreeSet::new()).await.expect("published");

    assert_eq!(cluster.api.events(), ["WritesDropped"]);
    let event = &cluster.api.all("events")[0];
    assert_eq!(event["regarding"]["name"], "data-pg-0");
    assert_eq!(event["regarding"]["uid"], "u-1");
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["note"], "node worker-1: up to 4096 bytes are dropped");
}
