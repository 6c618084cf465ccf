//! A snapshot, and a volume made from it.

use std::time::Duration;

use serde_json::json;

use crate::{Result, kind::Cluster, workload::Fio};

use super::unexpected;

const READY_LIMIT: Duration = Duration::from_secs(120);

pub(super) fn restored_volume_is_as_it_was(cluster: &Cluster, namespace: &str) -> Result<()> {
    let [first, second] = cluster.workers();
    let fio = Fio::deploy(cluster, namespace, &first, "1Gi")?;
    let write = |fio: &Fio<'_>, text: &str| {
        fio.exec().args(["sh", "-c", &format!("echo {text} >/data/state && sync")]).run().map(drop)
    };
    write(&fio, "before")?;
    cut(cluster, namespace)?;
    write(&fio, "after")?;
    fio.remove_pod()?;
    cluster.kubectl().args(["delete", "pvc/fio", "--namespace", namespace, "--timeout=90s"]).run()?;

    cluster.apply(&claim_from_snapshot(namespace))?;
    let restored = Fio::deploy_on_claim(cluster, namespace, &second)?;
    let state = restored.exec().args(["cat", "/data/state"]).read()?;
    if state != "before" {
        return Err(unexpected("the restored file", state));
    }
    restored.write_and_verify(5)
}

fn cut(cluster: &Cluster, namespace: &str) -> Result<()> {
    let snapshot = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": "cut", "namespace": namespace},
        "spec": {"volumeSnapshotClassName": "holdfast", "source": {"persistentVolumeClaimName": "fio"}},
    });
    cluster.apply(&snapshot.to_string())?;
    let arguments = ["volumesnapshots", "--namespace", namespace];
    cluster.until("the snapshot is ready", READY_LIMIT, &arguments, |snapshots| {
        snapshots.iter().any(|snapshot| snapshot["status"]["readyToUse"] == true).then_some(())
    })
}

fn claim_from_snapshot(namespace: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "fio", "namespace": namespace},
        "spec": {
            "storageClassName": "holdfast",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "cut"},
        },
    })
    .to_string()
}
