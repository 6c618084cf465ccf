//! From a policy to archived points, and back.

use std::time::Duration;

use crate::{
    Result,
    deployment::Process,
    images::Profile,
    interrupt::{self, Seen},
    kind::{Cluster, POOL_ON_NODES},
    plugin::Plugin,
    stores::Location,
    workload::{Fio, Protection},
};

use super::unexpected;

const APP: &str = "fio";
const JOB_LIMIT: Duration = Duration::from_secs(240);
/// A Job of little data is soon done.
const MOMENT: Duration = Duration::from_millis(20);

pub(super) fn claim_comes_back(cluster: &Cluster, namespace: &str) -> Result<()> {
    come_back(cluster, namespace, |_| Ok(()), |_| Ok(()))
}

pub(super) fn every_process_is_killed(cluster: &Cluster, namespace: &str) -> Result<()> {
    let kill_leaders = |cluster: &Cluster| {
        for process in [Process::Operator, Process::Controller] {
            if !process.kill_anywhere(cluster)? {
                return Err(unexpected("the processes on the workers", format!("no {process:?}")));
            }
        }
        Ok(())
    };
    let while_archiving = |cluster: &Cluster| {
        interrupt::until("a Job of an archive is killed", JOB_LIMIT, MOMENT, || {
            let is_killed = Process::Job.kill_anywhere(cluster)?;
            Ok(if is_killed { Seen::Reached(()) } else { Seen::NotYet("no Job runs".into()) })
        })?;
        kill_leaders(cluster)
    };
    let while_restoring = |cluster: &Cluster| {
        let [first, second] = cluster.workers();
        Process::NodePlugin.kill_running(cluster, &second)?;
        Process::Keeper.kill_running(cluster, &first)?;
        kill_leaders(cluster)
    };
    come_back(cluster, namespace, while_archiving, while_restoring)
}

/// Archives a claim, deletes it, looks into the archived point, and restores it on another node.
fn come_back(
    cluster: &Cluster,
    namespace: &str,
    while_archiving: impl FnOnce(&Cluster) -> Result<()>,
    while_restoring: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<()> {
    let [first, second] = cluster.workers();
    let plugin = Plugin::build(Profile::Dev)?;
    let fio = Fio::deploy(cluster, namespace, &first, "1Gi")?;
    let label = format!("app={APP}");
    cluster.kubectl().args(["label", "pvc/fio", &label, "--namespace", namespace]).run()?;
    fio.exec().args(["sh", "-c", "head -c 200000000 /dev/urandom >/data/random && sync"]).run()?;
    let checksum = |fio: &Fio<'_>| fio.exec().args(["sha256sum", "/data/random"]).read();
    let before = checksum(&fio)?;
    let archive = Location::directory(&format!("{POOL_ON_NODES}/{namespace}"));
    let protection = Protection::apply(cluster, namespace, APP, namespace, &archive)?;
    while_archiving(cluster)?;
    let point = protection.archived_after("")?;

    let kubectl =
        |arguments: &[&str]| plugin.command(cluster).args(arguments).args(["--namespace", namespace]);
    let status = kubectl(&["status"]).read()?;
    if !status.contains(&point.time) {
        return Err(unexpected("kubectl holdfast status", status));
    }
    protection.delete_policy()?;
    fio.remove_pod()?;
    cluster.kubectl().args(["delete", "pvc/fio", "--namespace", namespace, "--timeout=90s"]).run()?;

    let seen = plugin
        .command(cluster)
        .args(["browse", "--point", &point.name, "--namespace", namespace, "--", "sha256sum", "random"])
        .limit(JOB_LIMIT)
        .read()?;
    let digest = |line: &str| line.split_whitespace().next().map(str::to_owned);
    if digest(&seen) != digest(&before) {
        return Err(unexpected("the checksum seen by kubectl holdfast browse", seen));
    }
    kubectl(&["restore", "fio"]).run()?;
    let restored = Fio::deploy_on_claim(cluster, namespace, &second)?;
    while_restoring(cluster)?;
    let after = checksum(&restored)?;
    if after != before {
        return Err(unexpected("the checksum of the restored file", after));
    }
    protection.wait_until_hydrated("fio")?;
    restored.write_and_verify(5)?;
    protection.delete_target()
}
