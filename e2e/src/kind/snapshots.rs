//! The cluster-wide half of VolumeSnapshots: their CRDs and their controller, which every Kubernetes distribution
//! brings by itself and kind does not.

use std::time::Duration;

use crate::{
    Result, images,
    programs::{Module, SNAPSHOT_CONTROLLER},
};

use super::Cluster;

const MANIFESTS: &str = include_str!("../../manifests/snapshot-controller.yaml");
const CONTROLLER_MODULE: &str = "github.com/kubernetes-csi/external-snapshotter/v8";
const CLIENT_MODULE: &str = "github.com/kubernetes-csi/external-snapshotter/client/v8";
const READY_LIMIT: Duration = Duration::from_secs(180);

/// Installs both and waits until the controller runs.
pub(super) fn install(cluster: &Cluster) -> Result<()> {
    let definitions = Module::Tools.source_of(CLIENT_MODULE)?.join("config/crd");
    cluster.kubectl().args(["apply", "--server-side", "-k"]).arg(definitions).run()?;
    let image = images::sidecar_tag(SNAPSHOT_CONTROLLER, CONTROLLER_MODULE)?;
    cluster.apply(&MANIFESTS.replace("IMAGE", &image))?;
    cluster
        .kubectl()
        .args(["rollout", "status", "deployment/snapshot-controller", "--namespace=kube-system"])
        .arg(format!("--timeout={}s", READY_LIMIT.as_secs()))
        .limit(READY_LIMIT * 2)
        .run()?;
    Ok(())
}
