//! `holdfast-driver`: parses its arguments and runs one part.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use holdfast_driver::args::{ControllerArgs, NodeArgs};

/// The Holdfast CSI driver.
#[derive(Parser)]
#[command(name = "holdfast-driver", version)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Serves the CSI controller service.
    Controller(ControllerArgs),
    /// Serves the CSI node service and the volumes of this node.
    Node(NodeArgs),
    /// Holds the descriptors that a node process leaves to its successor.
    Keeper {
        /// The Unix socket to listen on.
        #[arg(long, env = "HOLDFAST_KEEPER_SOCKET")]
        socket: PathBuf,
    },
    /// Carries out one operation for the node process.
    #[command(name = holdfast_driver::offload::SUBCOMMAND, hide = true)]
    Offload {
        /// The operation, in JSON.
        operation: String,
    },
}

fn main() -> ExitCode {
    let result: Result<(), Box<dyn std::error::Error>> = match Arguments::parse().part {
        Part::Controller(args) => serve(holdfast_driver::run::controller(args)),
        Part::Node(args) => {
            // Before there are threads, which inherit it.
            holdfast_driver::frontend::become_io_flusher();
            serve(holdfast_driver::run::node(args))
        }
        Part::Keeper { socket } => {
            log_to_stderr();
            holdfast_driver::keeper::serve(&socket).map_err(Into::into)
        }
        Part::Offload { operation } => holdfast_driver::offload::carry_out(&operation).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-driver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    let levels = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(levels).with_writer(std::io::stderr).init();
}

fn serve(
    role: impl Future<Output = Result<(), holdfast_driver::run::RunError>>,
) -> Result<(), Box<dyn std::error::Error>> {
    log_to_stderr();
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(role);
    // Threads that wait for a store must not keep the process from ending.
    runtime.shutdown_background();
    Ok(result?)
}
