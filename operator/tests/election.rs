//! Leader election and certificates, against an API server in memory.

mod support;

use std::time::{Duration, Instant};

use holdfast_operator::certificates;
use holdfast_operator::lease::{Candidate, Timing};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::{Value, json};

use support::{Cluster, SYSTEM};

const START: &str = "2026-11-23T09:30:00Z";

fn candidate(cluster: &Cluster, name: &str) -> Candidate {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), SYSTEM);
    Candidate::new(leases, "holdfast-operator", name, Timing::default())
}

fn holder(cluster: &Cluster) -> Value {
    cluster.api.find("leases", "holdfast-operator").expect("the lease")["spec"]["holderIdentity"].clone()
}

#[tokio::test]
async fn one_of_two_leads_and_the_other_waits() {
    let cluster = Cluster::at(START).await;
    let (mut a, mut b) = (candidate(&cluster, "a"), candidate(&cluster, "b"));
    let now = Instant::now();
    assert!(a.turn(now).await.expect("an answer"));
    assert!(!b.turn(now).await.expect("an answer"));
    assert!(a.turn(now + Duration::from_secs(2)).await.expect("an answer"));
    assert!(!b.turn(now + Duration::from_secs(2)).await.expect("an answer"));
    assert_eq!(holder(&cluster), "a");
}

#[tokio::test]
async fn a_silent_leader_is_replaced_only_after_its_whole_lease_was_seen_to_pass() {
    let cluster = Cluster::at(START).await;
    let (mut a, mut b) = (candidate(&cluster, "a"), candidate(&cluster, "b"));
    let now = Instant::now();
    let after = |seconds| now + Duration::from_secs(seconds);
    assert!(a.turn(now).await.expect("an answer"));
    assert!(!b.turn(now).await.expect("an answer"));
    assert!(!b.turn(after(14)).await.expect("an answer"));
    // A renewal starts the wait anew.
    assert!(a.turn(after(14)).await.expect("an answer"));
    assert!(!b.turn(after(16)).await.expect("an answer"));
    assert!(!b.turn(after(30)).await.expect("an answer"));
    assert!(b.turn(after(32)).await.expect("an answer"));
    assert_eq!(holder(&cluster), "b");
    let lease = cluster.api.find("leases", "holdfast-operator").expect("the lease");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
    // The old leader comes back and finds itself replaced.
    assert!(!a.turn(after(33)).await.expect("an answer"));
}

#[tokio::test]
async fn a_lease_given_up_is_taken_at_once() {
    let cluster = Cluster::at(START).await;
    let (mut a, mut b) = (candidate(&cluster, "a"), candidate(&cluster, "b"));
    let now = Instant::now();
    assert!(a.turn(now).await.expect("an answer"));
    assert!(!b.turn(now).await.expect("an answer"));
    b.release().await.expect("nothing to give up");
    assert_eq!(holder(&cluster), "a", "only the holder gives it up");
    a.release().await.expect("given up");
    assert!(b.turn(now + Duration::from_secs(1)).await.expect("an answer"));
}

#[tokio::test]
async fn a_leader_steps_down_when_another_holds_the_lease() {
    let cluster = Cluster::at(START).await;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let quick = Timing {
        duration: Duration::from_secs(15),
        renew_deadline: Duration::from_secs(10),
        retry: Duration::from_millis(1),
    };
    let mut a = Candidate::new(leases, "holdfast-operator", "a", quick);
    a.acquire(|| {}).await;
    let stolen = json!({"spec": {"holderIdentity": "b"}});
    cluster.change("leases", "holdfast-operator", stolen).await;
    tokio::time::timeout(Duration::from_secs(5), a.hold(|| {})).await.expect("steps down at once");
}

fn entry(cluster: &Cluster, secret: &str, key: &str) -> Value {
    cluster.api.find("secrets", secret).expect("the Secret")["data"][key].clone()
}

#[tokio::test]
async fn certificates_are_made_once_and_renewed_in_time() {
    let cluster = Cluster::at(START).await;
    certificates::ensure(&cluster.ctx).await.expect("certificates");
    let ca = entry(&cluster, "holdfast-ca", "ca.crt");
    for secret in ["holdfast-node-tls", "holdfast-controller-tls"] {
        assert_eq!(entry(&cluster, secret, "ca.crt"), ca);
        assert!(entry(&cluster, secret, "tls.key").is_string());
    }
    let before = cluster.api.writes().len();
    certificates::ensure(&cluster.ctx).await.expect("certificates");
    assert_eq!(cluster.api.writes().len(), before, "nothing is due");

    let leaf = entry(&cluster, "holdfast-node-tls", "tls.crt");
    cluster.pass(61 * 24 * 60);
    certificates::ensure(&cluster.ctx).await.expect("certificates");
    assert_ne!(entry(&cluster, "holdfast-node-tls", "tls.crt"), leaf);
    assert_eq!(entry(&cluster, "holdfast-ca", "ca.crt"), ca);
}

#[tokio::test]
async fn a_new_authority_reaches_every_bundle_before_it_signs() {
    let cluster = Cluster::at(START).await;
    certificates::ensure(&cluster.ctx).await.expect("certificates");
    let first = entry(&cluster, "holdfast-ca", "tls.crt");
    cluster.pass(740 * 24 * 60);
    certificates::ensure(&cluster.ctx).await.expect("certificates");
    assert_eq!(entry(&cluster, "holdfast-ca", "tls.crt"), first, "the old one still signs");
    assert!(entry(&cluster, "holdfast-ca", "next.crt").is_string());
    assert_eq!(entry(&cluster, "holdfast-node-tls", "ca.crt"), entry(&cluster, "holdfast-ca", "ca.crt"));
    let leaf = entry(&cluster, "holdfast-node-tls", "tls.crt");

    cluster.pass(25 * 60);
    certificates::ensure(&cluster.ctx).await.expect("certificates");
    assert_eq!(entry(&cluster, "holdfast-ca", "previous.crt"), first);
    assert_ne!(entry(&cluster, "holdfast-node-tls", "tls.crt"), leaf, "signed by the new one");
}

#[tokio::test]
async fn secrets_that_somebody_else_provides_are_left_alone() {
    let cluster = Cluster::at(START).await;
    cluster
        .create(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "holdfast-ca", "namespace": SYSTEM},
            "data": {"ca.crt": "b3Vycw=="},
        }))
        .await;
    certificates::ensure(&cluster.ctx).await.expect("nothing to do");
    assert_eq!(entry(&cluster, "holdfast-ca", "ca.crt"), "b3Vycw==");
    assert_eq!(
        cluster.api.find("secrets", "holdfast-node-tls"),
        None,
        "whoever brings the CA brings the leaves"
    );
}
