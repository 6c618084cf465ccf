//! `holdfast-driver`: parses its arguments and runs one part.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The Holdfast CSI driver.
#[derive(Parser)]
#[command(name = "holdfast-driver", version)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
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
        Part::Keeper { socket } => {
            tracing_subscriber::fmt().json().with_writer(std::io::stderr).init();
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
