//! Freezing a file system for the moment of a snapshot.
//!
//! # Expected flow
//! [`freeze`]; [`Freeze::holds`] just before the cut; the cut; [`Freeze::thaw`], whose answer says whether the
//! file system was frozen all the time. When the process starts: [`thaw_leftovers`].
//!
//! # Guarantees
//! - What is frozen is the file system on the volume's loop device, never another that happens to be visible
//!   at the mount point.
//! - No file system stays frozen longer than [`DEADLINE`]: the keeper thaws it ([`crate::keeper::guards`]).
//!
//! # Crash behaviour
//! A process that dies with file systems frozen leaves them to the keeper and to its successor.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::MountTable;
use crate::keeper::{Link, LinkError};
use crate::offload::{Offload, OffloadError, Operation, on_device};

/// How long a file system stays frozen at most.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to write out what is dirty before the freeze.
const SYNC_LIMIT: Duration = Duration::from_secs(60);

/// A frozen file system.
#[derive(Debug)]
pub struct Freeze {
    key: String,
    path: PathBuf,
    device: u64,
    keeper: Arc<Link>,
    offload: Offload,
    frozen_at: std::time::Instant,
}

/// Why a file system could not be frozen, or did not stay so.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Nothing of the volume is mounted.
    #[error("{} is not mounted anywhere on this node", device.display())]
    NotMounted {
        /// The loop device.
        device: PathBuf,
    },
    /// It was frozen before; somebody else will thaw it.
    #[error("the file system at {} is frozen by somebody else", path.display())]
    FrozenAlready {
        /// Where it is mounted.
        path: PathBuf,
    },
    /// The deadline passed; the file system was thawed before the end.
    #[error("the file system at {} was thawed at its deadline of {DEADLINE:?}; take the snapshot again", path.display())]
    Expired {
        /// Where it is mounted.
        path: PathBuf,
    },
    /// The device, the mount point or the mount table cannot be looked at.
    #[error("looking at {} failed: {source}", path.display())]
    Look {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The keeper.
    #[error(transparent)]
    Keeper(#[from] LinkError),
    /// The freezing itself.
    #[error(transparent)]
    Offload(#[from] OffloadError),
}

/// Writes out and freezes the file system on the loop device `device`, wherever it is mounted. `key` names the
/// freeze in the keeper: one per volume.
///
/// # Errors
/// [`FreezeError`]; the file system is not frozen then, or will be thawed by the keeper.
pub async fn freeze(
    key: &str,
    device: &Path,
    keeper: Arc<Link>,
    offload: Offload,
) -> Result<Freeze, FreezeError> {
    let look = |path: &Path, source| FreezeError::Look { path: path.into(), source };
    let number = std::fs::metadata(device).map_err(|source| look(device, source))?.rdev();
    let table = MountTable::read().map_err(|source| look(Path::new("/proc/self/mountinfo"), source))?;
    let mount = table.of_device(number).find(|mount| mount.root == Path::new("/"));
    let path = mount.ok_or_else(|| FreezeError::NotMounted { device: device.into() })?.mount_point.clone();

    // Most of the work is done while the file system can still be used, and no deadline runs.
    offload.run::<()>(&Operation::Sync { path: path.clone(), device: number }, SYNC_LIMIT).await?;
    let directory = on_device(&path, number).map_err(|source| look(&path, source))?;
    let frozen_at = std::time::Instant::now();
    keeper.guard(key, directory.as_fd(), DEADLINE)?;
    drop(directory);
    let operation = Operation::Freeze { path: path.clone(), device: number };
    let frozen = offload.run::<bool>(&operation, DEADLINE).await;
    let freeze = Freeze { key: key.into(), path, device: number, keeper, offload, frozen_at };
    match frozen {
        Ok(true) => Ok(freeze),
        Ok(false) => {
            freeze.keeper.unguard(key)?;
            Err(FreezeError::FrozenAlready { path: freeze.path })
        }
        // It may still come to pass; the guard stays and thaws it.
        Err(error @ OffloadError::TimedOut { .. }) => Err(error.into()),
        Err(error) => {
            freeze.keeper.unguard(key)?;
            Err(error.into())
        }
    }
}

impl Freeze {
    /// Whether the deadline is still ahead.
    pub fn holds(&self) -> bool {
        self.frozen_at.elapsed() < DEADLINE
    }

    /// Thaws the file system. Ok means that it was frozen until now.
    ///
    /// # Errors
    /// [`FreezeError::Expired`] if it was thawed before; what was cut is not consistent then. With other errors
    /// the keeper thaws it.
    pub async fn thaw(self) -> Result<(), FreezeError> {
        let operation = Operation::Thaw { path: self.path.clone(), device: self.device };
        let was_frozen = self.offload.run::<bool>(&operation, DEADLINE).await?;
        let in_time = self.keeper.unguard(&self.key)?;
        if was_frozen && in_time { Ok(()) } else { Err(FreezeError::Expired { path: self.path }) }
    }
}

/// Thaws what a predecessor left frozen on the given loop devices. Call it when all volumes are served again.
///
/// # Errors
/// The first [`FreezeError`]; the other devices are thawed all the same.
pub async fn thaw_leftovers(devices: &[PathBuf], offload: &Offload) -> Result<(), FreezeError> {
    let mut result = Ok(());
    for device in devices {
        let thawed = thaw_device(device, offload).await;
        if let Err(error) = thawed {
            tracing::error!(device = %device.display(), %error, "a file system may still be frozen");
            result = result.and(Err(error));
        }
    }
    result
}

async fn thaw_device(device: &Path, offload: &Offload) -> Result<(), FreezeError> {
    let look = |source| FreezeError::Look { path: device.into(), source };
    let number = std::fs::metadata(device).map_err(look)?.rdev();
    let table = MountTable::read().map_err(look)?;
    let Some(mount) = table.of_device(number).find(|mount| mount.root == Path::new("/")) else {
        return Ok(());
    };
    let operation = Operation::Thaw { path: mount.mount_point.clone(), device: number };
    if offload.run::<bool>(&operation, DEADLINE).await? {
        tracing::warn!(device = %device.display(), "thawed a file system that a predecessor had frozen");
    }
    Ok(())
}
