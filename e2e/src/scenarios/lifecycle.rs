//! Pods and processes come and go; the data stay.

use std::time::Duration;

use crate::{
    Result,
    deployment::{self, Process},
    interrupt,
    kind::Cluster,
    workload::{Fio, Postgres},
};

use super::unexpected;

const READY_LIMIT: Duration = Duration::from_secs(240);
const COUNT: &str = "select count(*) from pgbench_accounts";

pub(super) fn pod_is_replaced(cluster: &Cluster, namespace: &str) -> Result<()> {
    let database = Postgres::new(cluster, namespace);
    database.deploy("1Gi")?;
    database.wait_until_ready(READY_LIMIT)?;
    database.fill(2)?;
    cluster.kubectl().args(["delete", "pod/pg-0", "--namespace", namespace, "--timeout=90s"]).run()?;
    database.wait_until_ready(READY_LIMIT)?;
    database.verify()?;
    match database.query(COUNT)?.as_str() {
        "200000" => Ok(()),
        count => Err(unexpected("the number of accounts", count)),
    }
}

pub(super) fn plugin_is_killed(cluster: &Cluster, namespace: &str) -> Result<()> {
    let [node, _] = cluster.workers();
    let fio = Fio::deploy(cluster, namespace, &node, "1Gi")?;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| fio.write_and_verify(30));
        for process in [Process::NodePlugin, Process::Keeper, Process::NodePlugin] {
            interrupt::pause(Duration::from_secs(7))?;
            process.kill_running(cluster, &node)?;
        }
        load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    deployment::wait_for_rollout(cluster, "daemonset/holdfast-node")
}

pub(super) fn pod_moves(cluster: &Cluster, namespace: &str) -> Result<()> {
    let [first, second] = cluster.workers();
    let fio = Fio::deploy(cluster, namespace, &first, "1Gi")?;
    fio.exec().args(["sh", "-c", "head -c 50000000 /dev/urandom >/data/random && sync"]).run()?;
    let checksum = |fio: &Fio<'_>| fio.exec().args(["sha256sum", "/data/random"]).read();
    let before = checksum(&fio)?;
    fio.remove_pod()?;
    let after = checksum(&Fio::deploy(cluster, namespace, &second, "1Gi")?)?;
    if before == after { Ok(()) } else { Err(unexpected("the checksum on the other node", after)) }
}
