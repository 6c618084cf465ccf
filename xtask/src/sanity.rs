//! `cargo xtask sanity`: the conformance suite of CSI against the driver.

use std::process::ExitCode;

use clap::Args;
use holdfast_e2e::{
    Result,
    images::{self, Profile},
    report,
    sanity::{self, Outcome},
};

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Only cases whose name matches this regular expression
    #[arg(long)]
    focus: Option<String>,
}

/// Runs the suite and prints what failed and what was skipped.
pub fn run(options: &Options) -> Result<ExitCode> {
    let outcome = conformance(options.focus.as_deref())?;
    println!("{} passed, {} failed, {} skipped", outcome.passed, outcome.failed.len(), outcome.skipped.len());
    Ok(if outcome.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the suite.
pub fn conformance(focus: Option<&str>) -> Result<Outcome> {
    let driver = images::build_programs(Profile::Dev)?.join("holdfast-driver");
    let outcome = sanity::run(&driver, focus)?;
    for case in &outcome.skipped {
        report::note(&format!("skipped: {}: {}", case.name, case.reason));
    }
    for case in &outcome.failed {
        report::note(&format!("FAILED: {}: {}", case.name, case.reason));
    }
    Ok(outcome)
}
