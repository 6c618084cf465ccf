//! Why a Job failed.

use std::path::PathBuf;

use holdfast_engine::archive::ArchiveError;
use holdfast_engine::ids::Handle;
use holdfast_engine::pool::PoolError;
use holdfast_engine::store::ConfigError;

/// Why a Job failed. The message is what a person reads in the Job's log.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A file could not be read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// A pool's file is not usable.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: ConfigError,
    },
    /// None of the pools has the source.
    #[error("no pool in {directory} holds {handle}{reasons}")]
    NoPool {
        /// The directory.
        directory: PathBuf,
        /// The source.
        handle: Handle,
        /// Why pools that are there could not be opened.
        reasons: String,
    },
    /// The target could not be opened.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The action failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The progress could not be served.
    #[error("the progress cannot be served at {address}: {reason}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        reason: std::io::Error,
    },
    /// The API server did not answer.
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    /// Volumes are in use.
    #[error("volumes are still attached: {volumes}; delete the pods that use them first")]
    Attached {
        /// Which, and where.
        volumes: String,
    },
    /// Points have blocks that cannot be read.
    #[error("{points} points are damaged")]
    Damaged {
        /// How many.
        points: usize,
    },
}
