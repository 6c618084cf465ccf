//! What users do on a cluster, and what happens to them, with Holdfast installed.
//!
//! Each scenario has a namespace of its own, which is deleted after it.

mod archives;
mod fencing;
mod growth;
mod lifecycle;
mod removal;
mod snapshots;

use std::time::Duration;

use crate::{Error, Result, kind::Cluster, report};

const DELETE_LIMIT: Duration = Duration::from_secs(180);

/// Something that has to work.
pub struct Scenario {
    /// How it is asked for; its namespace, too.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    run: fn(&Cluster, &str) -> Result<()>,
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "statefulset",
        about: "a database keeps its rows when its pod is replaced",
        run: lifecycle::pod_is_replaced,
    },
    Scenario {
        name: "node-plugin-restart",
        about: "no I/O error and no lost write when node plugin and keeper are killed under load",
        run: lifecycle::plugin_is_killed,
    },
    Scenario { name: "move", about: "a volume follows its pod to another node", run: lifecycle::pod_moves },
    Scenario {
        name: "forced-detach",
        about: "a node that hung and comes back writes nothing into a volume that was taken from it",
        run: fencing::frozen_node_is_fenced,
    },
    Scenario { name: "expand", about: "a mounted volume grows", run: growth::volume_grows },
    Scenario {
        name: "snapshot-restore",
        about: "a volume from a snapshot has what was there when it was cut",
        run: snapshots::restored_volume_is_as_it_was,
    },
    Scenario {
        name: "archive-restore",
        about: "a policy archives a claim; once deleted, it is looked into and restored on another node",
        run: archives::claim_comes_back,
    },
    Scenario {
        name: "archive-kills",
        about: "the same while Job, operator, controller, node plugin and keeper are killed",
        run: archives::every_process_is_killed,
    },
    Scenario {
        name: "uninstall",
        about: "helm uninstall is refused while a volume is attached; installed again, the volume is there",
        run: removal::uninstall_is_refused_while_attached,
    },
];

impl Scenario {
    /// Runs it in its namespace and deletes that afterwards.
    pub fn run(&self, cluster: &Cluster) -> Result<()> {
        let result =
            report::step(&format!("{}: {}", self.name, self.about), || (self.run)(cluster, self.name));
        if let Err(error) = &result
            && !matches!(error, Error::Interrupted)
        {
            println!("{}", cluster.diagnosis());
        }
        let deleted = cluster
            .kubectl()
            .args(["delete", "namespace", self.name, "--ignore-not-found"])
            .arg(format!("--timeout={}s", DELETE_LIMIT.as_secs()))
            .limit(DELETE_LIMIT * 2)
            .run();
        result.and(deleted.map(drop))
    }
}

/// An error that says what a scenario saw and should not have seen.
fn unexpected(what: &str, seen: impl std::fmt::Display) -> Error {
    Error::Answer { from: what.into(), answer: seen.to_string() }
}
