//! [`Mounter`] by the system's programs.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use super::command::run;
use super::filesystem::{self, FsType};
use super::{FsSpec, FsStats, Mount, MountError, MountTable, Mounter};
use crate::offload::{Offload, Operation, Unmount};

const MOUNT_LIMIT: Duration = Duration::from_secs(110);
const STATS_LIMIT: Duration = Duration::from_secs(10);
/// Mounts stacked on one point that are unmounted before giving up.
const MAX_LAYERS: usize = 16;

/// The real [`Mounter`].
#[derive(Clone, Debug)]
pub struct SystemMounter {
    offload: Offload,
}

impl SystemMounter {
    /// A mounter whose blocking calls run in children.
    pub fn new(offload: Offload) -> SystemMounter {
        SystemMounter { offload }
    }

    async fn unmount_layers(&self, target: &Path, how: Unmount) -> Result<(), MountError> {
        for _ in 0..MAX_LAYERS {
            if mount_at(target)?.is_none() {
                return remove_target(target);
            }
            let unmount = Operation::Unmount { path: target.into(), how };
            match self.offload.run::<()>(&unmount, MOUNT_LIMIT).await {
                Err(error) if error.is(libc::EBUSY) => {
                    return Err(MountError::Busy { target: target.into() });
                }
                other => other?,
            }
        }
        Err(MountError::Busy { target: target.into() })
    }
}

#[async_trait]
impl Mounter for SystemMounter {
    async fn mount(&self, device: &Path, target: &Path, spec: &FsSpec) -> Result<(), MountError> {
        let number = device_number(device)?;
        if let Some(mount) = mount_at(target)? {
            return if mount.device == number && mount.fs_type == spec.fs_type.as_str() {
                Ok(())
            } else {
                Err(conflict(target, &mount))
            };
        }
        match filesystem::probe(&self.offload, device).await? {
            Some(found) if found == spec.fs_type.as_str() => {}
            Some(found) => {
                return Err(MountError::OtherFileSystem {
                    device: device.into(),
                    found,
                    wanted: spec.fs_type,
                });
            }
            None if spec.read_only => return Err(MountError::Unformatted { device: device.into() }),
            None => filesystem::format(spec.fs_type, device).await?,
        }
        // A file system that is mounted somewhere else already has been checked, and must not be now.
        if !spec.read_only && table()?.of_device(number).next().is_none() {
            filesystem::preen(spec.fs_type, device).await?;
        }
        make_directory(target)?;
        mount_device(device, target, spec).await?;
        if spec.read_only {
            return Ok(());
        }
        match filesystem::grow(spec.fs_type, device, target).await {
            Err(MountError::GrowNotPermitted { .. }) => {
                self.unmount_layers(target, Unmount::IfUnused).await?;
                filesystem::grow_unmounted_ext4(device).await?;
                make_directory(target)?;
                mount_device(device, target, spec).await
            }
            grown => grown,
        }
    }

    async fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<(), MountError> {
        if let Some(mount) = mount_at(target)? {
            // A mount point's directory can be compared by the file system and the directory in it.
            let origin = mount_at(source)?;
            let same =
                origin.is_some_and(|origin| origin.device == mount.device && origin.root == mount.root);
            if !same {
                return Err(conflict(target, &mount));
            }
            return if read_only && !mount.is_read_only() { make_read_only(target).await } else { Ok(()) };
        }
        make_directory(target)?;
        bind_mount(source, target, read_only).await
    }

    async fn bind_device(&self, device: &Path, target: &Path, read_only: bool) -> Result<(), MountError> {
        let number = device_number(device)?;
        if let Some(mount) = mount_at(target)? {
            // The node's own device number tells which device is shown, whatever /dev it was taken from.
            return if device_number(target).is_ok_and(|shown| shown == number) {
                Ok(())
            } else {
                Err(conflict(target, &mount))
            };
        }
        make_file(target)?;
        bind_mount(device, target, read_only).await
    }

    async fn unmount(&self, target: &Path) -> Result<(), MountError> {
        self.unmount_layers(target, Unmount::IfUnused).await
    }

    async fn detach(&self, target: &Path) -> Result<(), MountError> {
        self.unmount_layers(target, Unmount::Detach).await
    }

    async fn grow(&self, target: &Path) -> Result<(), MountError> {
        let not_mounted = || MountError::NotMounted { target: target.into() };
        let mount = mount_at(target)?.ok_or_else(not_mounted)?;
        let fs_type: FsType = mount.fs_type.parse().map_err(|_| not_mounted())?;
        filesystem::grow(fs_type, Path::new(&mount.source), target).await
    }

    async fn stats(&self, path: &Path) -> Result<FsStats, MountError> {
        Ok(self.offload.run(&Operation::Stats { path: path.into() }, STATS_LIMIT).await?)
    }

    async fn mounted(&self, target: &Path) -> Result<Option<Mount>, MountError> {
        mount_at(target)
    }
}

async fn mount_device(device: &Path, target: &Path, spec: &FsSpec) -> Result<(), MountError> {
    let options = mount_options(spec);
    let arguments = ["-t", spec.fs_type.as_str(), "-o", options.as_str()];
    let output = run("mount", (&arguments[..], device, target), MOUNT_LIMIT).await?;
    if output.code == Some(0) { Ok(()) } else { Err(output.error()) }
}

/// The user's options come last but cannot undo `ro`: the device of a read-only volume refuses writes anyway.
fn mount_options(spec: &FsSpec) -> String {
    let base = spec.fs_type.base_options(spec.read_only).iter().copied();
    base.chain(spec.options.iter().map(String::as_str)).collect::<Vec<_>>().join(",")
}

async fn bind_mount(source: &Path, target: &Path, read_only: bool) -> Result<(), MountError> {
    let output = run("mount", (&["--bind"][..], source, target), MOUNT_LIMIT).await?;
    if output.code != Some(0) {
        return Err(output.error());
    }
    if read_only { make_read_only(target).await } else { Ok(()) }
}

/// The kernel ignores `ro` when a bind mount is made; it is a change to the mount afterwards.
async fn make_read_only(target: &Path) -> Result<(), MountError> {
    let output = run("mount", (&["-o", "remount,bind,ro"][..], target), MOUNT_LIMIT).await?;
    if output.code == Some(0) { Ok(()) } else { Err(output.error()) }
}

fn table() -> Result<MountTable, MountError> {
    MountTable::read().map_err(MountError::Table)
}

fn mount_at(target: &Path) -> Result<Option<Mount>, MountError> {
    Ok(table()?.at(target).cloned())
}

fn conflict(target: &Path, mount: &Mount) -> MountError {
    MountError::Conflict { target: target.into(), found: format!("{} of {}", mount.fs_type, mount.source) }
}

/// The device number of a block device's node. The node lies in devtmpfs, so this waits for nobody.
fn device_number(device: &Path) -> Result<u64, MountError> {
    let meta = std::fs::metadata(device).map_err(|source| path_error("looking at", device, source))?;
    if meta.file_type().is_block_device() {
        Ok(meta.rdev())
    } else {
        Err(MountError::NotADevice { device: device.into() })
    }
}

fn make_directory(target: &Path) -> Result<(), MountError> {
    std::fs::create_dir_all(target).map_err(|source| path_error("making the directory", target, source))
}

fn make_file(target: &Path) -> Result<(), MountError> {
    if let Some(parent) = target.parent() {
        make_directory(parent)?;
    }
    let made = File::options().create(true).append(true).open(target);
    made.map(|_| ()).map_err(|source| path_error("making the file", target, source))
}

fn remove_target(target: &Path) -> Result<(), MountError> {
    let is_dir = match std::fs::symlink_metadata(target) {
        Ok(meta) => meta.is_dir(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(path_error("looking at", target, source)),
    };
    let removed = if is_dir { std::fs::remove_dir(target) } else { std::fs::remove_file(target) };
    removed.map_err(|source| path_error("removing", target, source))
}

fn path_error(action: &str, path: &Path, source: io::Error) -> MountError {
    MountError::Path { action: format!("{action} {}", path.display()), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_xfs_mount_allows_clones_and_read_only_mounts_write_nothing() {
        let spec = |fs_type, read_only| FsSpec { fs_type, options: vec!["noatime".into()], read_only };
        assert_eq!(mount_options(&spec(FsType::Xfs, false)), "rw,nouuid,discard,noatime");
        assert_eq!(mount_options(&spec(FsType::Xfs, true)), "ro,norecovery,nouuid,noatime");
        assert_eq!(mount_options(&spec(FsType::Ext4, true)), "ro,noload,noatime");
    }
}
