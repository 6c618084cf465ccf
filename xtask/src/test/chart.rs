//! The chart and the examples: what Helm says of the chart, and every object that it renders or that is in
//! `manifests/` against the schemas of Kubernetes itself, of the oldest version that is supported and of the one that
//! the tests' cluster runs.

mod schemas;

use std::{
    fs,
    path::{Path, PathBuf},
};

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
    "node.journal.size=much",
    "node.hydrateBytesPerSecond=fast",
    "node.journal.directory=journals",
    "sidecars.provisioner.image=csi-provisioner",
    "poolDirectory=",
];

/// The example of values for the chart.
const EXAMPLE_VALUES: &str = "manifests/s3/values.yaml";

/// An example of a kind that the oldest version does not have.
const NEWER_EXAMPLE: &str = "manifests/durability/volume-attributes-classes.yaml";

/// Lints and renders the chart with its defaults, with each file in its directory ci/ and with the example of values,
/// and checks what comes out. Checks the examples.
pub(super) fn check() -> Result<Tally> {
    let [helm] = programs::build([HELM])?;
    let chart = repository().join("charts/holdfast");
    let mut cases: Vec<Option<PathBuf>> = vec![None];
    cases.extend(yaml_files(&chart.join("ci"))?.into_iter().map(Some));
    let example_values = repository().join(EXAMPLE_VALUES);
    let newer_example = repository().join(NEWER_EXAMPLE);
    let mut examples = Vec::new();
    for directory in ["manifests", "manifests/durability", "manifests/restore", "manifests/s3"] {
        examples.extend(yaml_files(&repository().join(directory))?);
    }
    examples.retain(|path| *path != example_values);
    cases.push(Some(example_values));

    let mut tally = Tally::default();
    for version in [OLDEST, KUBERNETES_VERSION] {
        let schemas = Schemas::of(version)?;
        for case in &cases {
            tally += check_case(&helm, &chart, case.as_deref(), version, &schemas)?;
        }
        for example in &examples {
            if version == OLDEST && *example == newer_example {
                continue;
            }
            let text = fs::read_to_string(example).map_err(|source| Error::File {
                action: "read",
                path: example.clone(),
                source,
            })?;
            tally += check_objects(&example.display().to_string(), &text, version, &schemas)?;
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

fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let error = |source| Error::File { action: "list", path: directory.into(), source };
    let mut files = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .map_err(error)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
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
    tally += check_objects(&name, &rendered, version, schemas)?;
    Ok(tally)
}

/// Checks each object of a text of YAML documents.
fn check_objects(name: &str, text: &str, version: &str, schemas: &Schemas) -> Result<Tally> {
    let mut tally = Tally::default();
    for document in serde_yaml::Deserializer::from_str(text) {
        let object = Value::deserialize(document)
            .map_err(|error| Error::Answer { from: name.into(), answer: error.to_string() })?;
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
