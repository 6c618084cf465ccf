//! `cargo xtask e2e`: the scenarios on a kind cluster.

use std::process::ExitCode;

use clap::Args;
use holdfast_e2e::{
    Error, Result,
    deployment::{self, Pool},
    images::{self, Profile},
    kind::Cluster,
    scenarios::{SCENARIOS, Scenario},
};

use crate::test::Tally;

const CLUSTER: &str = "holdfast-e2e";

/// Which scenarios.
#[derive(Args)]
pub struct Options {
    /// Only these; all if none is named
    only: Vec<String>,
    /// Use the cluster of this name, with what is installed there, and leave it running
    #[arg(long)]
    cluster: Option<String>,
    /// Build unoptimised programs
    #[arg(long)]
    dev: bool,
}

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    if let Some(unknown) = options.only.iter().find(|name| SCENARIOS.iter().all(|s| s.name != **name)) {
        let known: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        eprintln!("there is no scenario `{unknown}`: {}", known.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    let wanted: Vec<&Scenario> = SCENARIOS
        .iter()
        .filter(|scenario| options.only.is_empty() || options.only.iter().any(|name| name == scenario.name))
        .collect();
    let tally = match &options.cluster {
        Some(name) => run_on(&Cluster::open(name)?, &wanted)?,
        None => {
            let profile = if options.dev { Profile::Dev } else { Profile::Release };
            run_on(&prepared(profile)?, &wanted)?
        }
    };
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All scenarios, for `cargo xtask test`.
pub fn all() -> Result<Tally> {
    run_on(&prepared(Profile::Dev)?, &SCENARIOS.iter().collect::<Vec<_>>())
}

/// A new cluster with Holdfast and what the scenarios run.
fn prepared(profile: Profile) -> Result<Cluster> {
    let cluster = Cluster::up(CLUSTER)?;
    cluster.load(&[&images::postgres(cluster.engine())?])?;
    deployment::install(&cluster, profile, &Pool::Directory)
        .inspect_err(|_| println!("{}", cluster.diagnosis()))?;
    Ok(cluster)
}

fn run_on(cluster: &Cluster, scenarios: &[&Scenario]) -> Result<Tally> {
    let mut tally = Tally::default();
    for scenario in scenarios {
        match scenario.run(cluster) {
            Ok(()) => tally += Tally::one(true),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                println!("{}: {error}", scenario.name);
                tally += Tally::one(false);
            }
        }
    }
    Ok(tally)
}
