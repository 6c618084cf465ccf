//! `cargo xtask stores`: object stores for a person to try a pool on.

use std::{process::ExitCode, time::Duration};

use clap::{Subcommand, ValueEnum};
use holdfast_e2e::{
    Error, Result, interrupt, report,
    stores::{Azurite, Ceph, Gcs, Moto, Store},
};

/// What to do with stores.
#[derive(Subcommand)]
pub enum Command {
    /// Start stores, print their pool files, and end them on Ctrl-C
    Up {
        /// Which; all if none is named
        #[arg(value_enum)]
        only: Vec<Kind>,
    },
}

/// A store that can be started.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// S3, in one process
    Moto,
    /// Azure Blob, in one process
    Azurite,
    /// The interface of Google Cloud Storage, in this process
    Gcs,
    /// S3 from a real distributed store
    Ceph,
}

impl Kind {
    /// Starts it.
    pub fn start(self) -> Result<Box<dyn Store>> {
        let name = self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        report::step(&format!("start {name}"), || {
            let store: Box<dyn Store> = match self {
                Kind::Moto => Box::new(Moto::start()?),
                Kind::Azurite => Box::new(Azurite::start()?),
                Kind::Gcs => Box::new(Gcs::start()?),
                Kind::Ceph => Box::new(Ceph::start()?),
            };
            Ok(store)
        })
    }
}

/// Runs the command.
pub fn run(command: Command) -> Result<ExitCode> {
    let Command::Up { only } = command;
    let kinds = if only.is_empty() { Kind::value_variants() } else { &only };
    let stores = kinds.iter().map(|kind| kind.start()).collect::<Result<Vec<_>>>()?;
    for store in &stores {
        println!("# {}\n{}", store.name(), store.location("pool").pool_file()?);
    }
    println!("# Ctrl-C ends them");
    loop {
        match interrupt::pause(Duration::from_secs(3600)) {
            Ok(()) => {}
            Err(Error::Interrupted) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error),
        }
    }
}
