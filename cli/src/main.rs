//! The `holdfast` command: what a person runs on pools, and what the operator's Jobs run.

mod archive;
mod args;
mod error;
mod inspect;
mod job;
mod kubernetes;
mod output;
mod pool;
mod reach;
mod salvage;
mod snapshot;
mod volume;

use std::process::ExitCode;

fn main() -> ExitCode {
    match args::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
