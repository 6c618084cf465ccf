//! csi-sanity, the conformance suite of CSI, against a driver binary: a controller, a node plugin and a keeper on
//! Unix sockets, with a directory as the pool, and real mounts.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    Error, Result,
    error::Named,
    interrupt::{self, Seen},
    packages,
    process::{Cmd, Daemon},
    programs::{self, CSI_SANITY},
    report,
};

const START_LIMIT: Duration = Duration::from_secs(30);
const SUITE_LIMIT: Duration = Duration::from_secs(1800);

/// How the suite ended.
#[derive(Debug)]
pub struct Outcome {
    /// How many cases passed.
    pub passed: usize,
    /// The cases that failed.
    pub failed: Vec<Case>,
    /// The cases that the suite did not run.
    pub skipped: Vec<Case>,
}

/// A case that did not pass.
#[derive(Debug)]
pub struct Case {
    /// Its full name.
    pub name: String,
    /// What the suite says about it.
    pub reason: String,
}

/// Runs the suite, or the cases that match a regular expression.
pub fn run(driver: &Path, focus: Option<&str>) -> Result<Outcome> {
    packages::ensure("mounting volumes", &["e2fsprogs", "xfsprogs", "util-linux", "mount"])?;
    let [suite] = programs::build([CSI_SANITY])?;
    let site = Site::start(driver)?;
    report::step("csi-sanity", || site.run(&suite, focus))
}

/// The driver's processes and their directories. The processes end before the directories go.
struct Site {
    _node: Daemon,
    _controller: Daemon,
    _keeper: Daemon,
    scratch: TempDir,
}

impl Site {
    fn start(driver: &Path) -> Result<Self> {
        let scratch = tempfile::Builder::new()
            .prefix("holdfast-sanity-")
            .tempdir()
            .map_err(|source| Error::System { what: "making a temporary directory", source })?;
        let root = scratch.path().to_owned();
        for name in ["pool", "pools", "targets", "kubelet/plugins_registry", "state", "run", "log"] {
            let directory = root.join(name);
            fs::create_dir_all(&directory).named("create", &directory)?;
        }
        write(&root.join("pools/default.yaml"), &format!("url: file://{}/pool\n", root.display()))?;
        write(&root.join("parameters.yaml"), "pool: default\n")?;

        let start = |role: &str, arguments: &[String]| -> Result<Daemon> {
            Cmd::new(driver).arg(role).args(arguments).spawn(role, &root.join("log").join(role))
        };
        let keeper_socket = root.join("run/keeper.sock");
        let mut keeper = start("keeper", &[format!("--socket={}", keeper_socket.display())])?;
        listens(&keeper_socket, &mut keeper)?;
        let shared = |name: &str| {
            vec![
                format!("--endpoint=unix://{}", root.join(name).display()),
                format!("--pools-dir={}", root.join("pools").display()),
                format!("--targets-dir={}", root.join("targets").display()),
                format!("--file-root={}", root.display()),
                "--health-addr=127.0.0.1:0".to_owned(),
                "--metrics-addr=127.0.0.1:0".to_owned(),
            ]
        };
        let mut controller = start("controller", &shared("controller.sock"))?;
        let mut arguments = shared("node.sock");
        arguments.extend([
            "--node-id=sanity".to_owned(),
            "--node-addr=127.0.0.1:0".to_owned(),
            format!("--kubelet-dir={}", root.join("kubelet").display()),
            format!("--state-dir={}", root.join("state").display()),
            format!("--keeper-socket={}", keeper_socket.display()),
        ]);
        let mut node = start("node", &arguments)?;
        listens(&root.join("controller.sock"), &mut controller)?;
        listens(&root.join("node.sock"), &mut node)?;
        Ok(Site { _node: node, _controller: controller, _keeper: keeper, scratch })
    }

    fn run(&self, suite: &Path, focus: Option<&str>) -> Result<Outcome> {
        let root = self.scratch.path();
        let socket = |name: &str| format!("unix://{}", root.join(name).display());
        let report = root.join("report.json");
        let mut command = Cmd::new(suite)
            .args(["-csi.endpoint", &socket("node.sock")])
            .args(["-csi.controllerendpoint", &socket("controller.sock")])
            .arg("-csi.mountdir")
            .arg(root.join("mount"))
            .arg("-csi.stagingdir")
            .arg(root.join("staging"))
            .arg("-csi.testvolumeparameters")
            .arg(root.join("parameters.yaml"))
            .args(["-csi.testvolumesize", "1073741824", "-csi.testvolumeexpandsize", "2147483648"])
            .args(["-ginkgo.no-color", "-ginkgo.timeout=25m"])
            .arg(format!("-ginkgo.json-report={}", report.display()))
            .limit(SUITE_LIMIT);
        if let Some(focus) = focus {
            command = command.arg(format!("-ginkgo.focus={focus}"));
        }
        let output = command.output()?;
        let json = fs::read_to_string(&report).map_err(|_| Error::Failed {
            command: "csi-sanity".into(),
            status: output.status,
            output: format!("{}{}", output.stdout, output.stderr),
        })?;
        outcome(&json)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).named("write", path)
}

/// Waits until a process accepts connections on its socket.
fn listens(socket: &PathBuf, server: &mut Daemon) -> Result<()> {
    let what = format!("{} accepts connections", socket.display());
    interrupt::until(&what, START_LIMIT, Duration::from_millis(50), || {
        server.check()?;
        Ok(match std::os::unix::net::UnixStream::connect(socket) {
            Ok(_) => Seen::Reached(()),
            // The keeper speaks in packets: it listens, and refuses a stream.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error()) => {
                Seen::Reached(())
            }
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
}

/// The parts of Ginkgo's JSON report that matter here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

fn outcome(json: &str) -> Result<Outcome> {
    let suites: Vec<Suite> = serde_json::from_str(json)
        .map_err(|error| Error::Answer { from: "csi-sanity's report".into(), answer: error.to_string() })?;
    let mut outcome = Outcome { passed: 0, failed: Vec::new(), skipped: Vec::new() };
    for spec in suites.into_iter().flat_map(|suite| suite.spec_reports) {
        let mut name = spec.container_hierarchy_texts.unwrap_or_default();
        name.push(spec.leaf_node_text);
        let case = Case { name: name.join(" "), reason: spec.failure.message.trim().to_owned() };
        match spec.state.as_str() {
            "passed" => outcome.passed += usize::from(spec.leaf_node_type == "It"),
            // Left out by the focus, or by the suite's own marks.
            "skipped" | "pending" if case.reason.is_empty() => {}
            "skipped" | "pending" => outcome.skipped.push(case),
            _ => outcome.failed.push(case),
        }
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_told_by_what_passed_failed_and_was_skipped() {
        let json = r#"[{"SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
            {"ContainerHierarchyTexts": ["Node", "Stage"], "LeafNodeType": "It", "LeafNodeText": "works", "State": "passed"},
            {"ContainerHierarchyTexts": ["Node"], "LeafNodeType": "It", "LeafNodeText": "breaks", "State": "failed",
             "Failure": {"Message": "no\n"}},
            {"ContainerHierarchyTexts": ["Group"], "LeafNodeType": "It", "LeafNodeText": "x", "State": "skipped",
             "Failure": {"Message": "not supported"}},
            {"ContainerHierarchyTexts": ["Group"], "LeafNodeType": "It", "LeafNodeText": "y", "State": "skipped"}
        ]}]"#;
        let outcome = outcome(json).unwrap();
        assert_eq!(outcome.passed, 1);
        assert_eq!(
            (outcome.failed[0].name.as_str(), outcome.failed[0].reason.as_str()),
            ("Node breaks", "no")
        );
        assert_eq!(outcome.skipped.len(), 1);
    }
}
