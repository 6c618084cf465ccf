//! The schemas of Kubernetes' objects, made strict: a field that a schema does not know is a fault.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use holdfast_e2e::{Error, Result, programs::Module, repository};
use jsonschema::Validator;
use serde_json::{Map, Value, json};

const SNAPSHOT_MODULE: &str = "github.com/kubernetes-csi/external-snapshotter/client/v8";

/// What kind of object.
type Kind = (String, String);

/// The schemas of one version of Kubernetes, of VolumeSnapshots, and of our own resources.
pub(super) struct Schemas {
    definitions: Value,
    names: BTreeMap<Kind, String>,
    custom: BTreeMap<Kind, Value>,
}

impl Schemas {
    /// Reads them from Kubernetes' own module.
    pub(super) fn of(version: &str) -> Result<Self> {
        let source = Module::Kubernetes.source_of(&format!("k8s.io/kubernetes@v{version}"))?;
        let mut swagger: Value = parse(&source.join("api/openapi-spec/swagger.json"))?;
        let mut definitions = swagger["definitions"].take();
        let mut names = BTreeMap::new();
        for (name, definition) in definitions.as_object().into_iter().flatten() {
            for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                let text = |field: &str| kind[field].as_str().unwrap_or_default().to_owned();
                let (group, version) = (text("group"), text("version"));
                let api = if group.is_empty() { version } else { format!("{group}/{version}") };
                names.insert((api, text("kind")), name.clone());
            }
        }
        make_strict(&mut definitions);
        Ok(Schemas { definitions, names, custom: custom()? })
    }

    /// What is wrong with an object.
    pub(super) fn faults(&self, object: &Value) -> Result<Vec<String>> {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let kind = (text("apiVersion"), text("kind"));
        let schema = if let Some(schema) = self.custom.get(&kind) {
            schema.clone()
        } else if let Some(name) = self.names.get(&kind) {
            json!({"$ref": format!("#/definitions/{name}"), "definitions": self.definitions})
        } else {
            return Ok(vec![format!("{} {} is not known to Kubernetes", kind.0, kind.1)]);
        };
        let validator: Validator = jsonschema::draft4::new(&schema).map_err(|error| Error::Answer {
            from: "Kubernetes' schemas".into(),
            answer: error.to_string(),
        })?;
        Ok(validator.iter_errors(object).map(|e| format!("{}: {e}", e.instance_path())).collect())
    }
}

/// The schemas of all CRDs.
fn custom() -> Result<BTreeMap<Kind, Value>> {
    let snapshots = Module::Tools.source_of(SNAPSHOT_MODULE)?.join("config/crd");
    let ours = repository().join("charts/holdfast/files/crds");
    let mut schemas = BTreeMap::new();
    for plural in ["volumesnapshotclasses", "volumesnapshots", "volumesnapshotcontents"] {
        add(&mut schemas, &snapshots.join(format!("snapshot.storage.k8s.io_{plural}.yaml")))?;
    }
    for plural in ["snapshotpolicies", "archivetargets", "archivedsnapshots"] {
        add(&mut schemas, &ours.join(format!("{plural}.holdfast.storage.yaml")))?;
    }
    Ok(schemas)
}

/// Adds the schemas of a CRD, one for each version of its API.
fn add(schemas: &mut BTreeMap<Kind, Value>, path: &Path) -> Result<()> {
    let crd = parse(path)?;
    let group = crd["spec"]["group"].as_str().unwrap_or_default();
    let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default();
    for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
        let api = format!("{group}/{}", version["name"].as_str().unwrap_or_default());
        let mut schema = version["schema"]["openAPIV3Schema"].clone();
        make_strict(&mut schema);
        // These are in every object, and a CRD says little or nothing of them.
        schema["properties"]["apiVersion"] = json!({"type": "string"});
        schema["properties"]["kind"] = json!({"type": "string"});
        schema["properties"]["metadata"] = json!({"type": "object"});
        schemas.insert((api, kind.to_owned()), schema);
    }
    Ok(())
}

/// Forbids unknown fields wherever a schema names fields, and says what OpenAPI's own formats mean.
fn make_strict(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for value in fields.values_mut() {
                make_strict(value);
            }
            if is_int_or_string(fields) {
                fields.insert("type".into(), json!(["integer", "string"]));
                fields.remove("format");
            }
            let is_open = fields.contains_key("additionalProperties")
                || fields.contains_key("x-kubernetes-preserve-unknown-fields");
            if fields.get("type") == Some(&json!("object")) && fields.contains_key("properties") && !is_open {
                fields.insert("additionalProperties".into(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_strict),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_int_or_string(fields: &Map<String, Value>) -> bool {
    fields.get("format") == Some(&json!("int-or-string"))
        || fields.get("x-kubernetes-int-or-string") == Some(&json!(true))
}

fn parse(path: &Path) -> Result<Value> {
    let named = |source| Error::File { action: "read", path: PathBuf::from(path), source };
    let text = fs::read_to_string(path).map_err(named)?;
    serde_yaml::from_str(&text)
        .map_err(|error| Error::Answer { from: path.display().to_string(), answer: error.to_string() })
}
