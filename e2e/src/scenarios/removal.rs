//! Holdfast is removed from a cluster.

use std::time::Duration;

use crate::{Result, deployment, kind::Cluster, workload::Fio};

use super::unexpected;

const DETACH_LIMIT: Duration = Duration::from_secs(180);

pub(super) fn uninstall_is_refused_while_attached(cluster: &Cluster, namespace: &str) -> Result<()> {
    let [node, _] = cluster.workers();
    let fio = Fio::deploy(cluster, namespace, &node, "1Gi")?;
    let values = deployment::values(cluster)?;
    let refused = deployment::uninstall(cluster)?;
    if refused.status.success() {
        return Err(unexpected("helm uninstall while a volume is attached", "it went through"));
    }
    fio.write_and_verify(5)?;
    fio.remove_pod()?;
    cluster.until("the volume is detached", DETACH_LIMIT, &["volumeattachments"], |attachments| {
        attachments.is_empty().then_some(())
    })?;
    let removed = deployment::uninstall(cluster)?;
    if !removed.status.success() {
        return Err(unexpected("helm uninstall when nothing is attached", removed.stderr));
    }
    // What people have archived, and the claims, outlive the programs.
    let kinds = cluster.kubectl().args(["get", "crds", "--output=name"]).read()?;
    if !kinds.contains("archivedsnapshots.holdfast.storage") {
        return Err(unexpected("the resource definitions after helm uninstall", kinds));
    }
    let secrets = ["get", "secrets", "--namespace", deployment::NAMESPACE, "--output=name"];
    let secrets = cluster.kubectl().args(secrets).read()?;
    if !secrets.contains("secret/holdfast-pools") {
        return Err(unexpected("the pools' Secret after helm uninstall", secrets));
    }
    deployment::install_with(cluster, &values)?;
    Fio::deploy_on_claim(cluster, namespace, &node)?.write_and_verify(5)
}
