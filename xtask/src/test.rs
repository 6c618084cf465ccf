//! `cargo xtask test`: every test, stage by stage.
//!
//! A stage tells what it does, what went wrong, and its time; the last line of all is `N passed, N failed`. A stage
//! that fails does not stop the next one. Nothing is left running.

mod chart;
mod code;
mod licences;
mod real_stores;
mod store_faults;

use std::{process::ExitCode, time::Instant};

use clap::Args;
use holdfast_e2e::{Error, Result};

/// Which stages to run.
#[derive(Args)]
pub struct Options {
    /// Run only these stages
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    only: Vec<String>,
    /// Leave these stages out
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    skip: Vec<String>,
    /// Print the stages and run nothing
    #[arg(long)]
    list: bool,
}

struct Stage {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Tally>,
}

const STAGES: &[Stage] = &[
    Stage { name: "format", about: "the code is formatted", run: code::format },
    Stage { name: "lints", about: "clippy has nothing to say", run: code::lints },
    Stage { name: "generated", about: "derived files are up to date", run: code::generated },
    Stage { name: "licences", about: "dependencies: licences, sources, bans", run: licences::check },
    Stage { name: "chart", about: "chart and examples against Kubernetes' schemas", run: chart::check },
    Stage { name: "unit", about: "unit, property and simulation tests", run: code::unit },
    Stage { name: "mutations", about: "rules left out: do the tests notice?", run: crate::mutate::some },
    Stage { name: "sanity", about: "the conformance suite of CSI", run: conformance },
    Stage { name: "stores", about: "engine and volumes on real object stores", run: real_stores::check },
    Stage { name: "scenarios", about: "what users do, on a kind cluster", run: crate::e2e::all },
];

/// How many checks passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Those that hold.
    pub passed: usize,
    /// Those that do not.
    pub failed: usize,
}

impl Tally {
    /// One check.
    pub fn one(holds: bool) -> Self {
        Tally { passed: usize::from(holds), failed: usize::from(!holds) }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs the stages that are asked for.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        for stage in STAGES {
            println!("{:10} {}", stage.name, stage.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) =
        options.only.iter().chain(&options.skip).find(|name| STAGES.iter().all(|stage| stage.name != **name))
    {
        eprintln!("there is no stage `{unknown}`; `cargo xtask test --list` names them");
        return Ok(ExitCode::FAILURE);
    }
    let is_wanted = |stage: &&Stage| {
        let name = stage.name.to_owned();
        (options.only.contains(&name) || options.only.is_empty()) && !options.skip.contains(&name)
    };
    let mut total = Tally::default();
    for stage in STAGES.iter().filter(is_wanted) {
        total += run_stage(stage)?;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_stage(stage: &Stage) -> Result<Tally> {
    println!("== {}: {}", stage.name, stage.about);
    let start = Instant::now();
    let tally = match (stage.run)() {
        Ok(tally) => tally,
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => {
            println!("{error}");
            Tally::one(false)
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    println!("== {}: {} passed, {} failed ({seconds:.1} s)", stage.name, tally.passed, tally.failed);
    Ok(tally)
}

fn conformance() -> Result<Tally> {
    let outcome = crate::sanity::conformance(None)?;
    Ok(Tally { passed: outcome.passed, failed: outcome.failed.len() })
}
