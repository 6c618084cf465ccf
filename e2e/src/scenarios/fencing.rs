//! A node hangs, its volume is taken from it by force, and it comes back.

use std::time::Duration;

use crate::{
    Result,
    deployment::Process,
    interrupt::{self, Seen},
    kind::Cluster,
    workload::Fio,
};

use super::unexpected;

/// The kubelet is given up after 50 s; then the volume is detached by force.
const DETACH_LIMIT: Duration = Duration::from_secs(240);
const CLEAN_LIMIT: Duration = Duration::from_secs(240);
const TAINT: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
/// Appends numbered lines, each made durable before the next, until a write fails.
const WRITER: &str = "(i=0; while echo $i >>/data/log && sync /data/log; do i=$((i+1)); sleep 0.05; done) \
                      >/dev/null 2>&1 &";

pub(super) fn frozen_node_is_fenced(cluster: &Cluster, namespace: &str) -> Result<()> {
    let [hung, healthy] = cluster.workers();
    let fio = Fio::deploy(cluster, namespace, &hung, "1Gi")?;
    fio.exec().args(["sh", "-c", WRITER]).run()?;
    interrupt::pause(Duration::from_secs(3))?;

    cluster.freeze(&hung)?;
    let frozen = Frozen { cluster, node: &hung };
    cluster.kubectl().args(["taint", "nodes", &hung, TAINT, "--overwrite"]).run()?;
    cluster
        .kubectl()
        .args(["delete", "pod/fio", "--namespace", namespace, "--force", "--grace-period=0"])
        .run()?;
    cluster.until("the volume is detached", DETACH_LIMIT, &["volumeattachments"], |attachments| {
        attachments.iter().all(|a| a["spec"]["nodeName"] != hung.as_str()).then_some(())
    })?;
    let successor = Fio::deploy(cluster, namespace, &healthy, "1Gi")?;
    let lines = count(&successor)?;
    if lines == 0 {
        return Err(unexpected("the lines that were durable before the node hung", lines));
    }
    successor.write_and_verify(5)?;

    drop(frozen);
    Process::NodePlugin.kill_running(cluster, &hung)?;
    mounts_are_cleaned_up(cluster, &hung)?;
    cluster.kubectl().args(["taint", "nodes", &hung, &format!("{TAINT}-")]).run()?;

    // A fresh mount sees what is in the volume, not what the successor's kernel remembers.
    successor.remove_pod()?;
    let again = Fio::deploy(cluster, namespace, &hung, "1Gi")?;
    let after = count(&again)?;
    if after == lines { Ok(()) } else { Err(unexpected("the lines after the node came back", after)) }
}

fn count(fio: &Fio<'_>) -> Result<u64> {
    let text = fio.exec().args(["sh", "-c", "wc -l </data/log"]).read()?;
    text.parse().map_err(|_| unexpected("the number of lines", text))
}

/// Waits until the kubelet has unmounted what its deleted pod had.
fn mounts_are_cleaned_up(cluster: &Cluster, node: &str) -> Result<()> {
    interrupt::until("the node has no volume mounted", CLEAN_LIMIT, Duration::from_secs(1), || {
        let mounts = cluster.exec(node).args(["cat", "/proc/self/mounts"]).read()?;
        let left: Vec<_> = mounts.lines().filter(|line| line.contains("kubernetes.io~csi")).collect();
        Ok(if left.is_empty() { Seen::Reached(()) } else { Seen::NotYet(left.join("; ")) })
    })
}

/// A frozen node, which goes on when dropped.
struct Frozen<'a> {
    cluster: &'a Cluster,
    node: &'a str,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.thaw(self.node) {
            eprintln!("node {} was not thawed: {error}", self.node);
        }
    }
}
