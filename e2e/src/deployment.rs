//! Holdfast on a cluster, as its users install it: the image and the chart.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    Error, Result,
    images::{self, Profile},
    kind::{Cluster, POOL_ON_NODES},
    process::Output,
    report,
    stores::Location,
};

/// Where Holdfast runs.
pub const NAMESPACE: &str = "holdfast-system";
const READY_LIMIT: Duration = Duration::from_secs(300);
/// The node plugin is ready only when it has found its keeper, whose rollout kubectl cannot tell (OnDelete).
const WORKLOADS: [&str; 3] =
    ["deployment/holdfast-operator", "daemonset/holdfast-node", "deployment/holdfast-controller"];

/// Where volumes are kept.
#[derive(Debug, Clone)]
pub enum Pool {
    /// In a directory that the nodes share.
    Directory,
    /// In an object store, as the nodes see it.
    Store(Location),
}

impl Pool {
    /// The chart's values for it.
    fn values(&self) -> Result<Value> {
        Ok(match self {
            Pool::Directory => json!({
                "poolDirectory": POOL_ON_NODES,
                "pools": {"default": {"url": format!("file://{POOL_ON_NODES}/default")}},
            }),
            Pool::Store(location) => json!({
                "poolDirectory": "",
                "pools": {"default": serde_json::to_value(location).map_err(|error| Error::Answer {
                    from: "writing a pool".into(),
                    answer: error.to_string(),
                })?},
            }),
        })
    }
}

/// Builds Holdfast and installs it, and waits until every part is ready.
pub fn install(cluster: &Cluster, profile: Profile, pool: &Pool) -> Result<()> {
    let image = images::product(cluster.engine(), profile)?;
    cluster.load(&[&image])?;
    let (repository, tag) = image
        .rsplit_once(':')
        .ok_or_else(|| Error::Answer { from: "building the image".into(), answer: image.clone() })?;
    let mut values = pool.values()?;
    values["image"] = json!({"repository": repository, "tag": tag});
    report::step("helm install holdfast", || install_with(cluster, &values.to_string()))
}

/// Installs the chart with these values, and waits until every part is ready.
pub fn install_with(cluster: &Cluster, values: &str) -> Result<()> {
    cluster
        .helm()
        .args(["upgrade", "--install", "holdfast"])
        .arg(crate::repository().join("charts/holdfast"))
        .args(["--namespace", NAMESPACE, "--create-namespace", "--values", "-"])
        .input(values)
        .run()?;
    WORKLOADS.iter().try_for_each(|workload| wait_for_rollout(cluster, workload))
}

/// The values that Holdfast is installed with.
pub fn values(cluster: &Cluster) -> Result<String> {
    cluster.helm().args(["get", "values", "holdfast", "--namespace", NAMESPACE, "--output=json"]).read()
}

/// `helm uninstall`, which may be refused.
pub fn uninstall(cluster: &Cluster) -> Result<Output> {
    cluster
        .helm()
        .args(["uninstall", "holdfast", "--namespace", NAMESPACE, "--wait", "--timeout=180s"])
        .limit(READY_LIMIT)
        .output()
}

/// Waits until all pods of a workload are ready.
pub fn wait_for_rollout(cluster: &Cluster, workload: &str) -> Result<()> {
    cluster
        .kubectl()
        .args(["rollout", "status", workload, "--namespace", NAMESPACE])
        .arg(format!("--timeout={}s", READY_LIMIT.as_secs()))
        .limit(READY_LIMIT * 2)
        .run()?;
    Ok(())
}

/// A process of Holdfast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// The node plugin.
    NodePlugin,
    /// The keeper.
    Keeper,
    /// The CSI controller.
    Controller,
    /// The operator.
    Operator,
    /// What a Job of the operator runs.
    Job,
}

impl Process {
    /// A regular expression that its command line matches.
    fn pattern(self) -> &'static str {
        match self {
            Process::NodePlugin => "^holdfast-driver node ",
            Process::Keeper => "^holdfast-driver keeper ",
            Process::Controller => "^holdfast-driver controller ",
            Process::Operator => "^holdfast-operator ",
            Process::Job => "^holdfast job ",
        }
    }

    /// Kills it with SIGKILL where it runs on a node, and says whether it did. Kubernetes starts it again.
    pub fn kill(self, cluster: &Cluster, node: &str) -> Result<bool> {
        let output = cluster.exec(node).args(["pkill", "-KILL", "-f", self.pattern()]).output()?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(Error::Machine(format!("cannot kill {self:?} on {node}: {}", output.stderr))),
        }
    }

    /// Kills it where it has to run.
    pub fn kill_running(self, cluster: &Cluster, node: &str) -> Result<()> {
        if self.kill(cluster, node)? {
            return Ok(());
        }
        Err(Error::Machine(format!("{self:?} does not run on {node}")))
    }

    /// Kills it on whichever workers it runs, and says whether it ran on any.
    pub fn kill_anywhere(self, cluster: &Cluster) -> Result<bool> {
        let mut killed = false;
        for node in cluster.workers() {
            killed |= self.kill(cluster, &node)?;
        }
        Ok(killed)
    }
}
