//! fio with verification, in a pod on a chosen node.

use std::time::Duration;

use crate::{Result, images, kind::Cluster, process::Cmd};

use super::ensure_namespace;

const CLAIM: &str = include_str!("../../manifests/fio-claim.yaml");
const POD: &str = include_str!("../../manifests/fio.yaml");
const RUN_LIMIT: Duration = Duration::from_secs(600);
const READY_LIMIT: Duration = Duration::from_secs(180);

/// A pod with a volume at /data.
#[derive(Debug, Clone, Copy)]
pub struct Fio<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
}

impl<'a> Fio<'a> {
    /// Makes claim and pod, or only the pod if the claim exists, and waits until it runs.
    pub fn deploy(cluster: &'a Cluster, namespace: &'a str, node: &str, size: &str) -> Result<Self> {
        ensure_namespace(cluster, namespace)?;
        cluster.apply(&CLAIM.replace("NAMESPACE", namespace).replace("SIZE", size))?;
        Fio::deploy_on_claim(cluster, namespace, node)
    }

    /// Makes the pod on the claim `fio` that exists, and waits until it runs.
    pub fn deploy_on_claim(cluster: &'a Cluster, namespace: &'a str, node: &str) -> Result<Self> {
        let image = images::postgres(cluster.engine())?;
        cluster.apply(&POD.replace("NAMESPACE", namespace).replace("NODE", node).replace("IMAGE", &image))?;
        let fio = Fio { cluster, namespace };
        fio.kubectl()
            .args(["wait", "--for=condition=Ready", "pod/fio"])
            .arg(format!("--timeout={}s", READY_LIMIT.as_secs()))
            .limit(READY_LIMIT * 2)
            .run()?;
        Ok(fio)
    }

    /// Deletes the pod and keeps the claim.
    pub fn remove_pod(&self) -> Result<()> {
        self.kubectl().args(["delete", "pod/fio", "--timeout=90s"]).run()?;
        Ok(())
    }

    /// Writes at random for some seconds, with an fsync every few writes, and reads everything back.
    pub fn write_and_verify(&self, seconds: u32) -> Result<()> {
        self.exec()
            .args([
                "fio",
                "--name=verify",
                "--filename=/data/file",
                "--size=256M",
                "--rw=randwrite",
                "--bs=4k",
            ])
            .args(["--ioengine=libaio", "--direct=1", "--iodepth=8", "--fsync=32", "--time_based"])
            .arg(format!("--runtime={seconds}"))
            .args(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=1024", "--output-format=terse"])
            .limit(Duration::from_secs(u64::from(seconds)) + RUN_LIMIT)
            .run()?;
        Ok(())
    }

    /// A command in the pod.
    pub fn exec(&self) -> Cmd {
        self.kubectl().args(["exec", "pod/fio", "--"])
    }

    fn kubectl(&self) -> Cmd {
        self.cluster.kubectl().args(["--namespace", self.namespace])
    }
}
