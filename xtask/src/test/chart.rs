//! The chart: what Helm says of it, and every object that it renders against the schemas of Kubernetes itself, of
//! the oldest version that is supported and of the one that the tests' cluster runs.

mod schemas;

use std::path::{Path, PathBuf};

use holdfast_e2e::{
    Error, Result,
    process::Cmd,
    programs::{self, HELM, KUBERNETES_VERSION},
    repository,
};
use serde::Deserialize;
use serde_json::Value;

use super::Tally;
use schemas::Schemas;

/// The oldest version of Kubernetes that is supported.
const OLDEST: &str = "1.31.0";

/// Values that the schema has to refuse.
const REFUSED: &[&str] = &[
    "controler.replicas=1",
    "controller.replicas=0",
    "pools.default.url=ftp://example.org/x",
    "pools.Default.url=s3://bucket/x",
    "sidecars.timeout=soon",
    "storageClass.fsType=ntfs",
    "kubeletDir=var/lib/kubelet",
    "node.cacheSize=much",
    "sidecars.provisioner.image=csi-provisioner",
    "poolDirectory=",
];

/// Lints and renders the chart with its defaults and with each file in its directory ci/, and checks what comes out.
pub(super) fn check() -> Result<Tally> {
    let [helm] = programs::build([HELM])?;
    let chart = repository().join("charts/holdfast");
    let mut cases: Vec<Option<PathBuf>> = vec![None];
    cases.extend(values_files(&chart)?.into_iter().map(Some));

    let mut tally = Tally::default();
    for version in [OLDEST, KUBERNETES_VERSION] {
        let schemas = Schemas::of(version)?;
        for case in &cases {
            tally += check_case(&helm, &chart, case.as_deref(), version, &schemas)?;
        }
    }
    for setting in REFUSED {
        let output = render(&helm, &chart, None, OLDEST).args(["--set", setting]).output()?;
        if output.status.success() {
            println!("the chart takes {setting}");
        }
        tally += Tally::one(!output.status.success());
    }
    Ok(tally)
}

fn values_files(chart: &Path) -> Result<Vec<PathBuf>> {
    let directory = chart.join("ci");
    let error = |source| Error::File { action: "list", path: directory.clone(), source };
    let mut files = std::fs::read_dir(&directory)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .map_err(error)?;
    files.sort();
    Ok(files)
}

fn check_case(
    helm: &Path,
    chart: &Path,
    values: Option<&Path>,
    version: &str,
    schemas: &Schemas,
) -> Result<Tally> {
    let name = values.and_then(Path::file_name).map_or("defaults".into(), |name| name.to_string_lossy());
    let mut lint = Cmd::new(helm).args(["lint", "--strict", "--kube-version", version]).arg(chart);
    if let Some(values) = values {
        lint = lint.arg("--values").arg(values);
    }
    lint.run()?;
    let mut tally = Tally::one(true);
    let rendered = render(helm, chart, values, version).run()?.stdout;
    for document in serde_yaml::Deserializer::from_str(&rendered) {
        let object = Value::deserialize(document)
            .map_err(|error| Error::Answer { from: "helm template".into(), answer: error.to_string() })?;
        if object.is_null() {
            continue;
        }
        let faults = schemas.faults(&object)?;
        for fault in &faults {
            let kind = object["kind"].as_str().unwrap_or("?");
            let object = object["metadata"]["name"].as_str().unwrap_or("?");
            println!("{name}, Kubernetes {version}: {kind} {object}: {fault}");
        }
        tally += Tally::one(faults.is_empty());
    }
    Ok(tally)
}

fn render(helm: &Path, chart: &Path, values: Option<&Path>, version: &str) -> Cmd {
    let mut command = Cmd::new(helm).args(["template", "holdfast"]).arg(chart).args([
        "--namespace",
        "holdfast-system",
        "--kube-version",
        version,
    ]);
    if let Some(values) = values {
        command = command.arg("--values").arg(values);
    }
    command
}
