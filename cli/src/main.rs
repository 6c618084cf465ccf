//! `holdfast`: what a person runs, and what the Jobs run.

mod job;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Persistent volumes out of an object store, protected by policy.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What the operator's Jobs run.
    #[command(subcommand)]
    Job(job::JobCommand),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let outcome = match Arguments::parse().command {
        Command::Job(command) => job::run(command).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
