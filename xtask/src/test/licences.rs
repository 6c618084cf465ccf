//! What the dependencies are: their licences, where they come from, and which must not be among them.
//!
//! The rules are deny.toml, in the form that cargo-deny reads. This check takes what matters here from it and
//! needs no tool that compiles longer than the product.

use std::{collections::BTreeSet, fs};

use holdfast_e2e::{Error, Result, repository};
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use super::{Tally, code::cargo};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    name: String,
    reason: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

impl Package {
    fn line(&self) -> String {
        format!("{} v{}", self.name, self.version)
    }
}

/// Checks each package that is built for one of the targets.
pub(super) fn check() -> Result<Tally> {
    let path = repository().join("deny.toml");
    let text = fs::read_to_string(&path).map_err(|source| Error::File { action: "read", path, source })?;
    let rules: Rules = toml::from_str(&text)
        .map_err(|error| Error::Answer { from: "deny.toml".into(), answer: error.to_string() })?;
    let allowed = parse_allowed(&rules.licenses.allow)?;

    let json = cargo().args(["metadata", "--format-version=1", "--locked"]).read()?;
    let metadata: Metadata = serde_json::from_str(&json)
        .map_err(|error| Error::Answer { from: "cargo metadata".into(), answer: error.to_string() })?;
    let used = used(&rules.graph.targets)?;

    let mut tally = Tally::default();
    for package in metadata.packages.iter().filter(|package| used.contains(&package.line())) {
        let faults = faults(package, &rules.bans.deny, &allowed);
        for fault in &faults {
            println!("{} {}: {fault}", package.name, package.version);
        }
        tally += Tally::one(faults.is_empty());
    }
    Ok(tally)
}

/// The packages that are built for one of the targets, as `name vVERSION`. Only `cargo tree` tells: the metadata also
/// name dependencies of features that nobody enables.
fn used(targets: &[String]) -> Result<BTreeSet<String>> {
    let mut command = cargo().args(["tree", "--workspace", "--locked", "--prefix=none", "--format={p}"]);
    for target in targets {
        command = command.args(["--target", target]);
    }
    let list = command.read()?;
    Ok(list.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect())
}

fn parse_allowed(names: &[String]) -> Result<Vec<Licensee>> {
    names
        .iter()
        .map(|name| {
            Licensee::parse(name).map_err(|error| Error::Answer {
                from: format!("licence {name} in deny.toml"),
                answer: error.to_string(),
            })
        })
        .collect()
}

fn faults(package: &Package, bans: &[Ban], allowed: &[Licensee]) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(ban) = bans.iter().find(|ban| ban.name == package.name) {
        faults.push(format!("banned: {}", ban.reason));
    }
    if package.source.as_deref().is_some_and(|source| source != CRATES_IO) {
        faults.push(format!("comes from {}", package.source.as_deref().unwrap_or_default()));
    }
    let text = package.license.as_deref().unwrap_or_default();
    match Expression::parse_mode(text, ParseMode::LAX) {
        Ok(expression) if is_allowed(&expression, allowed) => {}
        Ok(_) => faults.push(format!("licence {text} is not allowed by deny.toml")),
        Err(_) => faults.push(format!("licence {text:?} cannot be understood")),
    }
    faults
}

fn is_allowed(expression: &Expression, allowed: &[Licensee]) -> bool {
    expression.evaluate(|requirement| allowed.iter().any(|licensee| licensee.satisfies(requirement)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(name: &str, license: &str, source: Option<&str>) -> Vec<String> {
        let package = Package {
            name: name.into(),
            version: "1.0.0".into(),
            license: Some(license.into()),
            source: source.map(str::to_owned),
        };
        let bans = [Ban { name: "ring".into(), reason: "one provider".into() }];
        let allowed = parse_allowed(&["MIT".into(), "Apache-2.0".into()]).unwrap();
        faults(&package, &bans, &allowed)
    }

    #[test]
    fn one_allowed_alternative_is_enough_and_every_part_must_be_allowed() {
        assert!(faults_of("a", "GPL-3.0-only OR MIT", Some(CRATES_IO)).is_empty());
        assert!(faults_of("a", "MIT/Apache-2.0", Some(CRATES_IO)).is_empty());
        assert_eq!(faults_of("a", "MIT AND GPL-3.0-only", Some(CRATES_IO)).len(), 1);
        assert_eq!(faults_of("a", "", Some(CRATES_IO)).len(), 1);
    }

    #[test]
    fn bans_and_foreign_sources_are_found() {
        assert_eq!(faults_of("ring", "MIT", Some("git+https://example.org/ring")).len(), 2);
    }
}
