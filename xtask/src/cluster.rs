//! `cargo xtask cluster`: a kind cluster for a person.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use holdfast_e2e::{Result, kind::Cluster};

/// What to do with a cluster.
#[derive(Subcommand)]
pub enum Command {
    /// Make a cluster and leave it running
    Up(Name),
    /// Delete a cluster and all that it left
    Down(Name),
    /// Open a shell whose kubectl and helm reach the cluster
    Shell(Name),
}

/// Which cluster.
#[derive(Args)]
pub struct Name {
    /// The cluster's name
    #[arg(default_value = "holdfast")]
    name: String,
}

/// Runs the command.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(Name { name }) => {
            let cluster = Cluster::up(&name)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
            cluster.keep();
        }
        Command::Down(Name { name }) => Cluster::down(&name)?,
        Command::Shell(Name { name }) => {
            let status = Cluster::open(&name)?.shell()?;
            return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}
