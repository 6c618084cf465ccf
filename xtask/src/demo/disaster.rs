//! The namespace with its volume and its snapshots is destroyed, and comes back from the archive.

use std::time::{Duration, Instant};

use holdfast_e2e::{
    Result,
    kind::Cluster,
    report,
    workload::{Postgres, Protection, ensure_namespace},
};
use serde_json::{Value, json};

use super::{NAMESPACE, READY_LIMIT, VOLUME};

const DELETE_LIMIT: Duration = Duration::from_secs(300);
const HISTORY: &str = "select count(*) from pgbench_history";
const ACCOUNTS: &str = "select count(*) from pgbench_accounts";

/// Destroys and restores.
pub fn strike_and_restore(
    cluster: &Cluster,
    database: &Postgres<'_>,
    protection: &Protection<'_>,
) -> Result<()> {
    let before = (database.query(HISTORY)?, database.query(ACCOUNTS)?);
    database.checkpoint()?;
    let now = database.query(r#"select to_char(now() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"#)?;
    let point = report::step("an archived point of this very state", || protection.archived_after(&now))?;
    report::step("namespace, claims, snapshots and volumes are deleted", || strike(cluster))?;

    let start = Instant::now();
    report::step(&format!("restore from {}", point.name), || {
        ensure_namespace(cluster, NAMESPACE)?;
        cluster.apply(&claim(&point.name).to_string())?;
        database.deploy(VOLUME)?;
        database.wait_until_ready(READY_LIMIT)
    })?;
    let accounts = database.query(ACCOUNTS)?;
    let hydration = protection.hydration(Postgres::CLAIM)?.unwrap_or_default();
    report::note(&format!(
        "first query answered after {:.1} s: {accounts} accounts; {} of {} copied back by then",
        start.elapsed().as_secs_f64(),
        megabytes(hydration.done_bytes),
        megabytes(hydration.total_bytes)
    ));
    report::step("the rest is copied back behind it", || protection.wait_until_hydrated(Postgres::CLAIM))?;
    report::step("pg_amcheck", || database.verify())?;
    let after = (database.query(HISTORY)?, database.query(ACCOUNTS)?);
    report::note(&format!("history and accounts before: {before:?}, after: {after:?}"));
    if before == after {
        return Ok(());
    }
    Err(holdfast_e2e::Error::Answer { from: "the restored database".into(), answer: format!("{after:?}") })
}

fn strike(cluster: &Cluster) -> Result<()> {
    cluster
        .kubectl()
        .args(["delete", "namespace", NAMESPACE])
        .arg(format!("--timeout={}s", DELETE_LIMIT.as_secs()))
        .limit(DELETE_LIMIT * 2)
        .run()?;
    cluster.until("no volume is left", DELETE_LIMIT, &["persistentvolumes"], |volumes| {
        volumes.is_empty().then_some(())
    })?;
    let snapshots = ["volumesnapshotcontents"];
    cluster
        .until("no snapshot is left", DELETE_LIMIT, &snapshots, |contents| contents.is_empty().then_some(()))
}

/// What a tenant applies to get a volume back.
fn claim(point: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {"name": "from-offsite", "namespace": NAMESPACE},
            "spec": {"source": {"volumeSnapshotContentName": format!("holdfast-{point}-{NAMESPACE}")}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": Postgres::CLAIM, "namespace": NAMESPACE, "labels": {"app": "pg"}},
            "spec": {
                "storageClassName": "holdfast",
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": VOLUME}},
                "dataSource": {
                    "apiGroup": "snapshot.storage.k8s.io",
                    "kind": "VolumeSnapshot",
                    "name": "from-offsite",
                },
            },
        },
    ]})
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
