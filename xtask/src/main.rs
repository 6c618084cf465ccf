//! `cargo xtask`: everything that is done to this repository besides editing it.

mod bench;
mod cluster;
mod demo;
mod e2e;
mod generate;
mod images;
mod mutate;
mod sanity;
mod simulate;
mod stores;
mod test;

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
    /// Show the whole product on a real cluster
    Demo(demo::Options),
    /// Run every test, from formatting to the scenarios on a cluster
    Test(test::Options),
    /// Measure, print a table, and write it to docs/performance.md
    Bench(bench::Options),
    /// Run the scenarios on a kind cluster
    E2e(e2e::Options),
    /// Run csi-sanity against the driver
    Sanity(sanity::Options),
    /// Write the files that are derived from others: the CRDs, the chart's documentation
    Generate(generate::Options),
    /// Run the engine in the simulator, for as many seeds as wanted
    Simulate(simulate::Options),
    /// Leave rules out that keep data safe, and see that the tests notice
    Mutate(mutate::Options),
    /// Build the container images
    Images(images::Options),
    /// Make, remove or enter a kind cluster
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Run object stores until interrupted
    #[command(subcommand)]
    Stores(stores::Command),
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
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::E2e(options) => e2e::run(&options),
        Command::Sanity(options) => sanity::run(&options),
        Command::Generate(options) => generate::run(&options),
        Command::Simulate(options) => simulate::run(&options),
        Command::Mutate(options) => mutate::run(&options),
        Command::Images(options) => images::run(&options),
        Command::Cluster(command) => cluster::run(command),
        Command::Stores(command) => stores::run(command),
    }
}
