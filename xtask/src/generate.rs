//! `cargo xtask generate`: the files of the repository that follow from others.
//!
//! | file | follows from |
//! |---|---|
//! | `charts/holdfast/files/crds/*.yaml` | the types of the `api` crate |
//! | `docs/chart.md` | the chart's values and their schema |

mod chart;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use holdfast_e2e::{Error, Result, repository};

const CRDS: &str = "charts/holdfast/files/crds";

/// Whether to write.
#[derive(Args)]
pub struct Options {
    /// Write nothing; fail if a file is not what it should be
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    let stale = stale()?;
    if options.check {
        for path in stale.keys() {
            eprintln!("{} is out of date: run `cargo xtask generate`", path.display());
        }
        return Ok(if stale.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    for (path, text) in stale {
        let full = repository().join(&path);
        match text {
            Some(text) => {
                let parent = full.parent().unwrap_or(Path::new("."));
                fs::create_dir_all(parent)
                    .and_then(|()| fs::write(&full, text))
                    .map_err(|source| Error::File { action: "write", path: full, source })?;
                println!("wrote {}", path.display());
            }
            None => {
                fs::remove_file(&full).map_err(|source| Error::File {
                    action: "remove",
                    path: full,
                    source,
                })?;
                println!("removed {}", path.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The files that are not what they should be, with what they should hold; `None` for those that should not exist.
pub fn stale() -> Result<BTreeMap<PathBuf, Option<String>>> {
    let wanted = wanted()?;
    let mut stale = BTreeMap::new();
    let crds = repository().join(CRDS);
    for entry in fs::read_dir(&crds).into_iter().flatten().flatten() {
        let path = Path::new(CRDS).join(entry.file_name());
        if !wanted.contains_key(&path) {
            stale.insert(path, None);
        }
    }
    for (path, text) in wanted {
        if fs::read_to_string(repository().join(&path)).ok().as_deref() != Some(&text) {
            stale.insert(path, Some(text));
        }
    }
    Ok(stale)
}

fn wanted() -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for definition in holdfast_api::crds() {
        let name = definition.metadata.name.as_deref().unwrap_or_default();
        let text = serde_yaml::to_string(&definition)
            .map_err(|error| Error::Answer { from: format!("CRD {name}"), answer: error.to_string() })?;
        files.insert(Path::new(CRDS).join(format!("{name}.yaml")), text);
    }
    files.insert("docs/chart.md".into(), chart::documentation(&repository().join("charts/holdfast"))?);
    Ok(files)
}
