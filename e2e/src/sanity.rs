//! csi-sanity, the conformance suite of CSI, against a driver binary, with a directory as the pool.

use std::{fs, path::Path, time::Duration};

use serde::Deserialize;

use crate::{
    Error, Result,
    error::Named,
    process::Cmd,
    programs::{self, CSI_SANITY},
    report,
    site::Site,
    stores::{Directory, Store},
};

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
    let [suite] = programs::build([CSI_SANITY])?;
    let pool = Directory::start()?;
    let site = Site::start(driver, &[("default", pool.location("pool").pool_file()?)], &[])?;
    report::step("csi-sanity", || conformance(&site, &suite, focus))
}

fn conformance(site: &Site, suite: &Path, focus: Option<&str>) -> Result<Outcome> {
    let root = site.root();
    let parameters = root.join("parameters.yaml");
    fs::write(&parameters, "pool: default\n").named("write", &parameters)?;
    let mutable = root.join("mutable-parameters.yaml");
    fs::write(&mutable, "durability: journal\n").named("write", &mutable)?;
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
        .arg(&parameters)
        .arg("-csi.testvolumemutableparameters")
        .arg(&mutable)
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
