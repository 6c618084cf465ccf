//! The command line.

use clap::{Args, Parser, Subcommand};

use crate::error::CliError;
use crate::kubernetes::{browse, restore, status};
use crate::output::Format;
use crate::reach::Reach;
use crate::{archive, inspect, job, pool, snapshot, volume};

/// Volumes in object stores, and their protection.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pools: places in an object store that hold volumes
    Pool(OnPools<Sub<pool::Command>>),
    /// Volumes
    Volume(OnPools<Sub<volume::Command>>),
    /// Snapshots of volumes
    Snapshot(OnPools<Sub<snapshot::Command>>),
    /// Archived points
    Archive(OnPools<Sub<archive::Command>>),
    /// Decode an object of a pool: a segment, a record, a root, a part of a map, a description
    Inspect(OnPools<inspect::Args>),
    /// Show how well the claims of a cluster are protected
    Status(status::Args),
    /// Restore a claim of a cluster from an archived point
    Restore(restore::Args),
    /// Look into an archived point or a snapshot, and take single files out of it
    Browse(browse::Args),
    /// What the operator's Jobs run
    #[command(subcommand)]
    Job(job::JobCommand),
}

/// What a person runs: on which pools, and how the result is printed.
#[derive(Debug, Args)]
struct OnPools<T: Args> {
    #[command(flatten)]
    reach: Reach,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    what: T,
}

#[derive(Debug, Args)]
struct Sub<C: Subcommand> {
    #[command(subcommand)]
    command: C,
}

/// Parses the arguments and does what they say.
pub fn run() -> Result<(), CliError> {
    let Cli { command } = Cli::parse();
    // A Job's log is all there is to see of it; a person sees the result. RUST_LOG says otherwise.
    let level = match command {
        Command::Job(_) => tracing::Level::INFO,
        Command::Pool(_)
        | Command::Volume(_)
        | Command::Snapshot(_)
        | Command::Archive(_)
        | Command::Inspect(_)
        | Command::Status(_)
        | Command::Restore(_)
        | Command::Browse(_) => tracing::Level::ERROR,
    };
    let filter =
        tracing_subscriber::EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::System { what: "start its threads", source })?;
    runtime.block_on(async {
        match command {
            Command::Pool(on) => pool::run(&on.reach, on.output, on.what.command).await,
            Command::Volume(on) => volume::run(&on.reach, on.output, on.what.command).await,
            Command::Snapshot(on) => snapshot::run(&on.reach, on.output, on.what.command).await,
            Command::Archive(on) => archive::run(&on.reach, on.output, on.what.command).await,
            Command::Inspect(on) => inspect::run(&on.reach, on.output, on.what).await,
            Command::Status(args) => status::run(args).await,
            Command::Restore(args) => restore::run(args).await,
            Command::Browse(args) => browse::run(args).await,
            Command::Job(command) => Ok(job::run(command).await?),
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
