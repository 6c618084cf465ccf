//! `cargo xtask mutate`: do the tests notice when a rule that keeps data safe is left out?
//!
//! `engine/mutations/NAME.patch` leaves one rule out. Its first lines say which rule that is, and a line `Test: …` what
//! `cargo test -p holdfast-engine` is to run. The patch is applied to a copy of the tree, so nothing of it ever gets into
//! a build of the product. A mutation is *caught* if the test builds and fails, and passes without the mutation.
//! `cargo xtask test` tries [`SOME`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use holdfast_e2e::{Error, Result, process::Cmd, repository};

use crate::test::Tally;

const PATCHES: &str = "engine/mutations";
/// Where the copy goes, below the repository, and what is built of it.
const COPY: &str = "target/mutations/tree";
const BUILD: &str = "target/mutations/target";
/// What is no part of the tree.
const LEFT_OUT: [&str; 2] = [".git", "target"];
const LIMIT: Duration = Duration::from_secs(3600);
/// Runs of the simulator, for mutations that chance has to find: the first that finds it is the last.
const SIMULATED_SEEDS: &str = "3000";
/// Those of whose loss the simulator knows soon: a flush that lies, an opener without a grant, a collector that does not
/// ask what is needed.
const SOME: [&str; 3] = ["early-answer", "grant", "unpinned"];

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
    let target = repository().join(BUILD);
    let workshop = Workshop { copy: copy_tree()?, target, packages: &["--package", "holdfast-engine"] };
    for test in wanted.iter().map(|mutation| &mutation.test).collect::<BTreeSet<_>>() {
        // A test that fails anyway would seem to catch everything.
        workshop.cargo(test).arg("--").args(&test.run).run()?;
    }
    let Tally { passed, failed } = workshop.try_all(wanted)?;
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Leaves out [`SOME`], whose tests have passed without the mutations in the stage before. What that has built of other
/// people's crates serves here too.
pub fn some() -> Result<Tally> {
    let mutations = mutations()?;
    let some = mutations.iter().filter(|mutation| SOME.contains(&mutation.name.as_str()));
    let workshop =
        Workshop { copy: copy_tree()?, target: repository().join("target"), packages: &["--workspace"] };
    workshop.try_all(some)
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
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { action, path, source }
    };
    let (tree, copy) = (repository(), repository().join(COPY));
    if copy.exists() {
        fs::remove_dir_all(&copy).map_err(failed("remove", &copy))?;
    }
    fs::create_dir_all(&copy).map_err(failed("make", &copy))?;
    for entry in fs::read_dir(&tree).map_err(failed("read", &tree))? {
        let entry = entry.map_err(failed("read", &tree))?;
        if !LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            // With the times of now, or cargo would take what it built of another copy for what is here.
            Cmd::new("cp").arg("--recursive").arg(entry.path()).arg(&copy).run()?;
        }
    }
    Ok(copy)
}

/// Where rules are left out.
struct Workshop {
    /// The copy of the tree.
    copy: PathBuf,
    /// What is built of it.
    target: PathBuf,
    /// Which packages cargo is told to test: it builds other people's crates with the features that these want.
    packages: &'static [&'static str],
}

impl Workshop {
    fn cargo(&self, test: &Test) -> Cmd {
        let cargo = Cmd::new("cargo").dir(&self.copy).limit(LIMIT).env("CARGO_TARGET_DIR", &self.target);
        let cargo = cargo.env("HOLDFAST_SEEDS", SIMULATED_SEEDS).arg("test").args(self.packages);
        cargo.arg("--quiet").args(&test.build)
    }

    /// Leaves out one rule after the other, and says what came of it.
    fn try_all<'a>(&self, mutations: impl IntoIterator<Item = &'a Mutation>) -> Result<Tally> {
        let mut tally = Tally::default();
        for mutation in mutations {
            let outcome = self.outcome(mutation)?;
            tally += Tally::one(outcome == Outcome::Caught);
            let shown = match outcome {
                Outcome::Caught => "caught".into(),
                Outcome::Missed => "MISSED: the test passes".into(),
                Outcome::Unfit(why) => format!("UNFIT: {why}"),
            };
            println!("{:20} {shown}", mutation.name);
        }
        Ok(tally)
    }

    /// What the mutation's test says of the tree with the mutation, which is taken out again.
    fn outcome(&self, mutation: &Mutation) -> Result<Outcome> {
        let apply = |arguments: &[&str]| {
            // Outside of any repository, or git would look for the patched files in ours.
            let git = Cmd::new("git").arg("apply").args(arguments).arg(&mutation.path).dir(&self.copy);
            git.env("GIT_CEILING_DIRECTORIES", self.copy.parent().unwrap_or(&self.copy)).output()
        };
        let applied = apply(&["--verbose"])?;
        if !applied.status.success() {
            return Ok(Outcome::Unfit(format!("it does not apply: {}", applied.stderr.trim())));
        }
        let test = &mutation.test;
        // What does not even build catches nothing.
        let built = self.cargo(test).arg("--no-run").output()?;
        let outcome = if !built.status.success() {
            Outcome::Unfit(format!("it does not build: {}", built.stderr.trim()))
        } else if self.cargo(test).arg("--").args(&test.run).output()?.status.success() {
            Outcome::Missed
        } else {
            Outcome::Caught
        };
        let taken_out = apply(&["--reverse"])?;
        assert!(taken_out.status.success(), "what was applied can be taken out: {}", taken_out.stderr);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who changes a rule changes the mutation that leaves it out.
    #[test]
    fn every_mutation_fits_the_tree_and_names_its_test() {
        let mutations = mutations().expect("they can be read");
        assert!(mutations.len() > 20);
        assert!(SOME.iter().all(|name| mutations.iter().any(|mutation| mutation.name == *name)));
        for Mutation { name, path, test, .. } in &mutations {
            assert!(!test.build.is_empty(), "{name} names no test");
            let git = Cmd::new("git").args(["apply", "--check"]).arg(path).dir(repository());
            let applied = git.output().expect("git runs");
            assert!(applied.status.success(), "{name} does not fit: {}", applied.stderr);
        }
    }
}
