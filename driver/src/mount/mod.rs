//! File systems on volumes: formatting, checking, mounting, growing, freezing.
//!
//! The CSI services use [`Mounter`]; [`SystemMounter`] is the real one. Everything here runs the distribution's
//! programs (util-linux, e2fsprogs, xfsprogs) or children of our own ([`crate::offload`]), never a call that
//! waits for a volume's I/O in this process.

mod command;
mod filesystem;
pub mod freeze;
mod system;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

pub use crate::offload::FsStats;
pub use filesystem::FsType;
pub use freeze::{Freeze, FreezeError};
pub use system::SystemMounter;
pub use table::{Mount, MountTable};

use crate::offload::OffloadError;

/// How a volume's file system is to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsSpec {
    /// Which file system an empty volume gets, and any other must have.
    pub fs_type: FsType,
    /// Mount options asked for by the user, such as `noatime`.
    pub options: Vec<String>,
    /// The volume is not written to at all, not even to replay a journal.
    pub read_only: bool,
}

/// What the node service does with block devices and directories. All methods may be repeated: what is already
/// as asked is a success.
#[async_trait]
pub trait Mounter: Send + Sync + 'static {
    /// Formats the device if it is empty, checks its file system, mounts it at `target`, which is made, and
    /// grows it if the device has become larger (a volume made from a smaller snapshot).
    ///
    /// # Errors
    /// [`MountError::Unformatted`] for an empty device when `read_only`; [`MountError::OtherFileSystem`];
    /// [`MountError::Damaged`]; [`MountError::Conflict`] when something else is mounted there.
    async fn mount(&self, device: &Path, target: &Path, spec: &FsSpec) -> Result<(), MountError>;

    /// Shows the directory `source` at `target` as well, which is made.
    ///
    /// # Errors
    /// [`MountError::Conflict`] when something else is mounted there.
    async fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<(), MountError>;

    /// Shows the block device at the file `target`, which is made.
    ///
    /// # Errors
    /// [`MountError::Conflict`] when something else is mounted there.
    async fn bind_device(&self, device: &Path, target: &Path, read_only: bool) -> Result<(), MountError>;

    /// Unmounts `target`, all layers of it, and removes the empty directory or file.
    ///
    /// # Errors
    /// [`MountError::Busy`] while it is in use.
    async fn unmount(&self, target: &Path) -> Result<(), MountError>;

    /// Takes all mounts at `target` out of sight, whoever uses them, and removes it: for a volume whose I/O
    /// fails for good.
    ///
    /// # Errors
    /// [`MountError::Offload`].
    async fn detach(&self, target: &Path) -> Result<(), MountError>;

    /// Makes the file system mounted at `target` as large as its device.
    ///
    /// # Errors
    /// [`MountError::NotMounted`]; [`MountError::GrowNotPermitted`]; [`MountError::Tool`].
    async fn grow(&self, target: &Path) -> Result<(), MountError>;

    /// Space and inodes of the file system at `path`.
    ///
    /// # Errors
    /// [`MountError::Offload`].
    async fn stats(&self, path: &Path) -> Result<FsStats, MountError>;

    /// What is mounted at `target`, the uppermost layer.
    ///
    /// # Errors
    /// [`MountError::Table`].
    async fn mounted(&self, target: &Path) -> Result<Option<Mount>, MountError>;
}

/// Why a mount operation failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A read-only publication of a volume that was never written.
    #[error("{} holds no file system, and it must not be formatted read-only", device.display())]
    Unformatted {
        /// The device.
        device: PathBuf,
    },
    /// The volume has a file system of another type.
    #[error("{} holds {found}, not {wanted}; set fsType to {found} or use a new volume", device.display())]
    OtherFileSystem {
        /// The device.
        device: PathBuf,
        /// What is there.
        found: String,
        /// What was asked for.
        wanted: FsType,
    },
    /// blkid sees signs of several things.
    #[error("{} holds data whose nature is ambiguous; it is not formatted: {detail}", device.display())]
    Ambiguous {
        /// The device.
        device: PathBuf,
        /// What blkid says.
        detail: String,
    },
    /// The file system needs a person.
    #[error("the file system on {} is damaged and is not mounted: {detail}", device.display())]
    Damaged {
        /// The device.
        device: PathBuf,
        /// What the checker says.
        detail: String,
    },
    /// Something else is mounted there.
    #[error("{} is already a mount of something else ({found})", target.display())]
    Conflict {
        /// Where.
        target: PathBuf,
        /// What is there.
        found: String,
    },
    /// The mount is in use.
    #[error("{} is in use", target.display())]
    Busy {
        /// Where.
        target: PathBuf,
    },
    /// Nothing is mounted there.
    #[error("no file system of a volume is mounted at {}", target.display())]
    NotMounted {
        /// Where.
        target: PathBuf,
    },
    /// ext4 cannot be grown while it is mounted.
    #[error(
        "growing the mounted ext4 at {} needs CAP_SYS_RESOURCE, which this node does not have; it grows when \
         the volume is staged again (delete its pod)",
        target.display()
    )]
    GrowNotPermitted {
        /// Where it is mounted.
        target: PathBuf,
    },
    /// The path is no block device.
    #[error("{} is no block device", device.display())]
    NotADevice {
        /// The path.
        device: PathBuf,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {detail}")]
    Tool {
        /// Which one.
        program: String,
        /// How it ended.
        status: String,
        /// What it said.
        detail: String,
    },
    /// A program did not end.
    #[error("{program} did not end within {limit:?}; the volume's I/O is stalled or slow")]
    ToolTimedOut {
        /// Which one.
        program: String,
        /// How long.
        limit: Duration,
    },
    /// A program could not be started.
    #[error("cannot run {program}: {source}; the image must contain it")]
    ToolMissing {
        /// Which one.
        program: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A directory or file could not be made or removed.
    #[error("{action} failed: {source}")]
    Path {
        /// What was tried.
        action: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The mount table could not be read.
    #[error("reading the mount table failed: {0}")]
    Table(std::io::Error),
    /// An operation in a child process failed.
    #[error(transparent)]
    Offload(#[from] OffloadError),
}
