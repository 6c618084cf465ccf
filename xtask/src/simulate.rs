//! `cargo xtask simulate`: the engine in the simulator, for a night: many seeds, and every crash of every story.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use holdfast_e2e::{Result, process::Cmd, repository};

const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The size of the volumes that are overwritten.
const SOAK_MIB: u64 = 64;

/// Which runs.
#[derive(Args)]
pub struct Options {
    /// How many seeds, from 0 on
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// Run this seed alone, and print what happens
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Instead, overwrite larger volumes than the usual tests do with snapshots held, and measure what that takes
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    soak: bool,
}

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    let cargo = Cmd::new("cargo").dir(repository()).limit(LIMIT);
    if options.soak {
        let package = ["test", "--release", "--package", "holdfast-engine", "--test", "soak", "--locked"];
        let cargo = cargo.env("HOLDFAST_SOAK_MIB", SOAK_MIB.to_string());
        cargo.args(package).args(["overwrites", "--", "--nocapture"]).show()?;
        return Ok(ExitCode::SUCCESS);
    }
    let cargo =
        cargo.args(["test", "--profile", "simulate", "--package", "holdfast-engine", "--test", "sim"]);
    let cargo = cargo.args(["--locked", "--quiet"]);
    let cargo = match options.seed {
        Some(seed) => cargo.env("HOLDFAST_SEED", seed.to_string()).args([
            "no_acknowledged_write_is_lost",
            "--",
            "--nocapture",
        ]),
        None => cargo.env("HOLDFAST_SEEDS", options.seeds.to_string()).env("HOLDFAST_CRASHES", "all"),
    };
    cargo.show()?;
    Ok(ExitCode::SUCCESS)
}
