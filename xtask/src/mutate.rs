//! `cargo xtask mutate`: do the tests notice when a rule that keeps data safe is left out?
//!
//! `engine/mutations/NAME.patch` leaves one rule out. Its first lines say which rule that is, and a line `Test: …` what
//! `cargo test -p holdfast-engine` is to run. The patch is applied to a copy of the tree as it is in git's index, so
//! nothing of it ever gets into a build of the product. A mutation is *caught* if the test builds and fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use holdfast_e2e::{Error, Result, process::Cmd, repository};

const PATCHES: &str = "engine/mutations";
/// Where the copies go, below the repository.
const COPIES: &str = "target/mutations";
const LIMIT: Duration = Duration::from_secs(3600);

/// Which rules to leave out.
#[derive(Args)]
pub struct Options {
    /// Only these mutations; all if none is named
    names: Vec<String>,
    /// Print the mutations and run nothing
    #[arg(long)]
    list: bool,
}

/// A rule left out.
struct Mutation {
    name: String,
    path: PathBuf,
    about: String,
    /// What to tell cargo about the test, and what the test.
    build: Vec<String>,
    run: Vec<String>,
}

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mutations = mutations()?;
    if let Some(unknown) = options.names.iter().find(|name| mutations.iter().all(|m| m.name != **name)) {
        eprintln!("there is no mutation `{unknown}`; `cargo xtask mutate --list` names them");
        return Ok(ExitCode::FAILURE);
    }
    let wanted = mutations.iter().filter(|m| options.names.is_empty() || options.names.contains(&m.name));
    let mut missed = 0;
    for mutation in wanted {
        if options.list {
            println!("{:20} {}", mutation.name, mutation.about);
            continue;
        }
        let caught = is_caught(mutation)?;
        missed += usize::from(!caught);
        println!("{:20} {}", mutation.name, if caught { "caught" } else { "MISSED: the test passes" });
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn mutations() -> Result<Vec<Mutation>> {
    let directory = repository().join(PATCHES);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { action: "read", path, source }
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed(&directory))? {
        let path = entry.map_err(failed(&directory))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".patch")) else {
            continue;
        };
        let text = fs::read_to_string(&path).map_err(failed(&path))?;
        let head = || text.lines().take_while(|line| !line.starts_with("diff "));
        let test = head().find_map(|line| line.strip_prefix("Test: ")).unwrap_or_default();
        let (build, run) = test.split_once(" -- ").unwrap_or((test, ""));
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        found.push(Mutation {
            name: name.to_owned(),
            about: head().next().unwrap_or_default().to_owned(),
            build: words(build),
            run: words(run),
            path: path.clone(),
        });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Whether the mutation's test fails on a tree with the mutation.
fn is_caught(mutation: &Mutation) -> Result<bool> {
    let copies = repository().join(COPIES);
    let copy = copies.join(&mutation.name);
    if copy.exists() {
        fs::remove_dir_all(&copy).map_err(|source| Error::File {
            action: "remove",
            path: copy.clone(),
            source,
        })?;
    }
    let prefix = format!("--prefix={}/", copy.display());
    Cmd::new("git").args(["checkout-index", "--all", "--force", &prefix]).dir(repository()).run()?;
    // Outside of any repository, or git would look for the patched files in ours.
    let apply = Cmd::new("git").args(["apply", "--verbose"]).arg(&mutation.path).dir(&copy);
    apply.env("GIT_CEILING_DIRECTORIES", &copies).run()?;
    // One directory for all copies, so that the dependencies are built once.
    let cargo = |arguments: &[String]| {
        let cargo = Cmd::new("cargo").dir(&copy).limit(LIMIT).env("CARGO_TARGET_DIR", copies.join("target"));
        cargo.args(["test", "--package", "holdfast-engine", "--quiet"]).args(arguments)
    };
    // What does not even build catches nothing.
    cargo(&mutation.build).arg("--no-run").run()?;
    Ok(!cargo(&mutation.build).arg("--").args(&mutation.run).output()?.status.success())
}
