//! `cargo xtask mutate`: do the tests notice when a rule that keeps data safe is left out?
//!
//! `engine/mutations/NAME.patch` leaves one rule out. Its first lines say which rule that is, and a line `Test: …` what
//! `cargo test -p holdfast-engine` is to run. The patch is applied to a copy of the tree as it is in git's index, so
//! nothing of it ever gets into a build of the product. A mutation is *caught* if the test builds and fails, and passes
//! without the mutation.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use holdfast_e2e::{Error, Result, process::Cmd, repository};

const PATCHES: &str = "engine/mutations";
/// Where the copy goes, below the repository, and what is built of it.
const COPY: &str = "target/mutations/tree";
const BUILD: &str = "target/mutations/target";
const LIMIT: Duration = Duration::from_secs(3600);
/// Runs of the simulator, for mutations that chance has to find: the first that finds it is the last.
const SIMULATED_SEEDS: &str = "3000";

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
    test: Test,
}

/// What to tell cargo about a test, and what the test.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    build: Vec<String>,
    run: Vec<String>,
}

/// What becomes of a tree with a mutation.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Caught,
    Missed,
    Unfit(String),
}

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mutations = mutations()?;
    if let Some(unknown) = options.names.iter().find(|name| mutations.iter().all(|m| m.name != **name)) {
        eprintln!("there is no mutation `{unknown}`; `cargo xtask mutate --list` names them");
        return Ok(ExitCode::FAILURE);
    }
    let is_wanted = |m: &&Mutation| options.names.is_empty() || options.names.contains(&m.name);
    let wanted: Vec<&Mutation> = mutations.iter().filter(is_wanted).collect();
    if options.list {
        wanted.iter().for_each(|mutation| println!("{:20} {}", mutation.name, mutation.about));
        return Ok(ExitCode::SUCCESS);
    }
    let copy = copy_tree()?;
    for test in wanted.iter().map(|mutation| &mutation.test).collect::<BTreeSet<_>>() {
        // A test that fails anyway would seem to catch everything.
        test.cargo(&copy).arg("--").args(&test.run).run()?;
    }
    let mut failed = 0;
    for mutation in &wanted {
        let outcome = outcome(mutation, &copy)?;
        failed += usize::from(outcome != Outcome::Caught);
        let shown = match outcome {
            Outcome::Caught => "caught".into(),
            Outcome::Missed => "MISSED: the test passes".into(),
            Outcome::Unfit(why) => format!("UNFIT: {why}"),
        };
        println!("{:20} {shown}", mutation.name);
    }
    println!("{} passed, {failed} failed", wanted.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
            test: Test { build: words(build), run: words(run) },
            path: path.clone(),
        });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Copies the tree. One copy serves all mutations, so that only what they change is built again.
fn copy_tree() -> Result<PathBuf> {
    let copy = repository().join(COPY);
    if copy.exists() {
        fs::remove_dir_all(&copy).map_err(|source| Error::File {
            action: "remove",
            path: copy.clone(),
            source,
        })?;
    }
    let prefix = format!("--prefix={}/", copy.display());
    Cmd::new("git").args(["checkout-index", "--all", "--force", &prefix]).dir(repository()).run()?;
    Ok(copy)
}

impl Test {
    fn cargo(&self, copy: &Path) -> Cmd {
        let cargo =
            Cmd::new("cargo").dir(copy).limit(LIMIT).env("CARGO_TARGET_DIR", repository().join(BUILD));
        let cargo = cargo.env("HOLDFAST_SEEDS", SIMULATED_SEEDS);
        cargo.args(["test", "--package", "holdfast-engine", "--quiet"]).args(&self.build)
    }
}

/// What the mutation's test says of the tree with the mutation, which is taken out again.
fn outcome(mutation: &Mutation, copy: &Path) -> Result<Outcome> {
    let apply = |arguments: &[&str]| {
        // Outside of any repository, or git would look for the patched files in ours.
        let git = Cmd::new("git").arg("apply").args(arguments).arg(&mutation.path).dir(copy);
        git.env("GIT_CEILING_DIRECTORIES", copy.parent().unwrap_or(copy)).output()
    };
    let applied = apply(&["--verbose"])?;
    if !applied.status.success() {
        return Ok(Outcome::Unfit(format!("it does not apply: {}", applied.stderr.trim())));
    }
    // What does not even build catches nothing.
    let built = mutation.test.cargo(copy).arg("--no-run").output()?;
    let outcome = if !built.status.success() {
        Outcome::Unfit(format!("it does not build: {}", built.stderr.trim()))
    } else if mutation.test.cargo(copy).arg("--").args(&mutation.test.run).output()?.status.success() {
        Outcome::Missed
    } else {
        Outcome::Caught
    };
    let taken_out = apply(&["--reverse"])?;
    assert!(taken_out.status.success(), "what was applied can be taken out: {}", taken_out.stderr);
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who changes a rule changes the mutation that leaves it out.
    #[test]
    fn every_mutation_fits_the_tree_and_names_its_test() {
        let mutations = mutations().expect("they can be read");
        assert!(mutations.len() > 20);
        for Mutation { name, path, test, .. } in &mutations {
            assert!(!test.build.is_empty(), "{name} names no test");
            let git = Cmd::new("git").args(["apply", "--check"]).arg(path).dir(repository());
            let applied = git.output().expect("git runs");
            assert!(applied.status.success(), "{name} does not fit: {}", applied.stderr);
        }
    }
}
