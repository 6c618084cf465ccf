//! The table of the chart's values: defaults from values.yaml, meanings from values.schema.json.

use std::{fs, path::Path};

use holdfast_e2e::{Error, Result};
use serde_json::Value;

const HEAD: &str = "\
<!-- Written by `cargo xtask generate` from charts/holdfast/values.yaml and values.schema.json. -->
# Values of the chart

`helm install holdfast charts/holdfast --namespace holdfast-system --create-namespace` installs Holdfast with these
values; `--set` or a file given with `--values` changes them. Unknown values are refused.

| value | default | meaning |
|---|---|---|
";

/// The text of docs/chart.md.
pub fn documentation(chart: &Path) -> Result<String> {
    let values: Value = parse(&chart.join("values.yaml"))?;
    let schema: Value = parse(&chart.join("values.schema.json"))?;
    let mut text = String::from(HEAD);
    describe("", &schema, &values, &mut text);
    Ok(text)
}

fn parse(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|source| Error::File {
        action: "read",
        path: path.into(),
        source,
    })?;
    serde_yaml::from_str(&text)
        .map_err(|error| Error::Answer { from: path.display().to_string(), answer: error.to_string() })
}

/// Writes a row for each value that has a meaning of its own, and looks into the others.
fn describe(path: &str, schema: &Value, value: &Value, text: &mut String) {
    if let Some(meaning) = schema["description"].as_str() {
        text.push_str(&format!("| `{path}` | `{}` | {} |\n", short(value), meaning.replace('|', "\\|")));
        return;
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, schema) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        describe(&path, schema, &value[name], text);
    }
}

fn short(value: &Value) -> String {
    value.to_string()
}
