//! `cargo xtask`: everything that is done to this repository besides editing it.

mod cluster;
mod images;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use holdfast_e2e::{Result, interrupt};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and show Holdfast")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make, remove or enter a kind cluster
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Build the container images
    Images(images::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match interrupt::install().and_then(|()| run(arguments.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Cluster(command) => cluster::run(command),
        Command::Images(options) => images::run(&options),
    }
}
