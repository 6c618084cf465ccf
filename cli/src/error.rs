//! What the command can fail with.

use std::io;
use std::path::PathBuf;

use holdfast_engine::archive::ArchiveError;
use holdfast_engine::codec::CodecError;
use holdfast_engine::control::ControlError;
use holdfast_engine::ids::{Handle, PoolId};
use holdfast_engine::log::LogError;
use holdfast_engine::pool::{PoolError, UnknownPool};
use holdfast_engine::salvage::SalvageError;
use holdfast_engine::store::{ConfigError, StoreError};

use crate::job::JobError;
use crate::kubernetes::ClusterError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No pool file was named.
    #[error("no pools: give --pools-dir or --pool-file (or set HOLDFAST_POOLS_DIR)")]
    NoPools,
    /// A file or directory that was named does not exist.
    #[error("{} does not exist", path.display())]
    NoSuchFile {
        /// Its path.
        path: PathBuf,
    },
    /// Several pools are configured and none was named.
    #[error("several pools are configured: name one with --pool ({})", names.join(", "))]
    WhichPool {
        /// The configured ones.
        names: Vec<String>,
    },
    /// No pool has the name.
    #[error(transparent)]
    UnknownPool(#[from] UnknownPool),
    /// A handle names a pool that is not configured, or cannot be used.
    #[error("pool {pool} is not among the configured pools that can be used")]
    PoolNotLoaded {
        /// Its id.
        pool: PoolId,
    },
    /// Pools that were to be checked cannot be used.
    #[error("{failed} of {checked} pools cannot be used")]
    UnfitPools {
        /// How many.
        failed: usize,
        /// Of how many.
        checked: usize,
    },
    /// There is no such volume.
    #[error("pool {pool} has no volume named {name:?}, and that is no handle either")]
    NoSuchVolume {
        /// The pool.
        pool: String,
        /// What was asked for.
        name: String,
    },
    /// A volume's handle where a snapshot's is needed.
    #[error("{text:?} is no snapshot's handle; `holdfast snapshot list` shows them")]
    NotASnapshot {
        /// What was given.
        text: String,
    },
    /// A snapshot that is an archived point, which runs build on.
    #[error(
        "{handle} is an archived point: `holdfast archive delete` deletes it, unless a run still needs it"
    )]
    ArchivedPoint {
        /// Its handle.
        handle: Handle,
    },
    /// A snapshot that is no archived point.
    #[error("{handle} is no archived point: `holdfast snapshot delete` deletes snapshots")]
    NoArchivedPoint {
        /// Its handle.
        handle: Handle,
    },
    /// Neither a size nor something to take it from.
    #[error("a volume that is no clone needs --size")]
    NoSize,
    /// The object does not exist.
    #[error("pool {pool} has no object {key}")]
    NoSuchObject {
        /// The pool.
        pool: String,
        /// The key.
        key: String,
    },
    /// The key is not one of a pool.
    #[error("{key:?} is not a key that a pool of this version has")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// Something that cannot be undone, without being told so.
    #[error("{what}; add --yes if that is meant")]
    NotConfirmed {
        /// What it would do.
        what: &'static str,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A result cannot be printed.
    #[error("cannot print the result: {0}")]
    Print(String),
    /// A point or a snapshot has blocks that cannot be read.
    #[error("{handle} is damaged in {ranges} places")]
    Damaged {
        /// Its handle.
        handle: Handle,
        /// How many ranges.
        ranges: usize,
    },
    /// A volume is damaged.
    #[error("{handle} is damaged: {objects} objects or parts of them; see docs/operations.md")]
    VolumeDamaged {
        /// Its handle.
        handle: Handle,
        /// How many.
        objects: usize,
    },
    /// Not everything could be brought into a rebuilt volume.
    #[error("{handle} is made, and not whole: {ranges} ranges are lost, {objects} objects could not be read")]
    NotWhole {
        /// The new volume's handle.
        handle: Handle,
        /// How many ranges.
        ranges: usize,
        /// How many objects.
        objects: usize,
    },
    /// A volume could not be looked at or rebuilt.
    #[error(transparent)]
    Salvage(#[from] SalvageError),
    /// A cluster failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// An archive failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A Job failed.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A key cannot be read.
    #[error(transparent)]
    Key(#[from] ConfigError),
    /// A pool failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Acting on a volume failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An object cannot be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Fails unless the user has said that it is meant.
pub fn confirmed(yes: bool, what: &'static str) -> Result<(), CliError> {
    if yes { Ok(()) } else { Err(CliError::NotConfirmed { what }) }
}
