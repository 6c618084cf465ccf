//! A volume grows while it is in use.

use std::time::Duration;

use crate::{
    Result,
    interrupt::{self, Seen},
    kind::{Cluster, is_confined},
    report,
    workload::Fio,
};

const GROW_LIMIT: Duration = Duration::from_secs(180);
const PATCH: &str = r#"{"spec": {"resources": {"requests": {"storage": "3Gi"}}}}"#;

pub(super) fn volume_grows(cluster: &Cluster, namespace: &str) -> Result<()> {
    let [node, _] = cluster.workers();
    let mut fio = Fio::deploy(cluster, namespace, &node, "1Gi")?;
    cluster.kubectl().args(["patch", "pvc/fio", "--namespace", namespace, "--patch", PATCH]).run()?;
    if is_confined() {
        report::note(
            "this machine withholds CAP_SYS_RESOURCE: a mounted ext4 grows when its pod is replaced",
        );
        cluster.until("the volume has grown", GROW_LIMIT, &["persistentvolumes"], |volumes| {
            let ours = volumes.iter().find(|v| v["spec"]["claimRef"]["namespace"] == namespace)?;
            (ours["spec"]["capacity"]["storage"] == "3Gi").then_some(())
        })?;
        fio.remove_pod()?;
        fio = Fio::deploy_on_claim(cluster, namespace, &node)?;
    }
    interrupt::until("the file system has grown", GROW_LIMIT, Duration::from_secs(1), || {
        let size = fio.exec().args(["df", "--output=size", "--block-size=1M", "/data"]).read()?;
        let megabytes = size.lines().last().and_then(|line| line.trim().parse::<u64>().ok());
        Ok(if megabytes.is_some_and(|size| size > 2500) { Seen::Reached(()) } else { Seen::NotYet(size) })
    })?;
    fio.write_and_verify(5)
}
