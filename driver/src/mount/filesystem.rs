//! ext4 and xfs: recognising, making, checking, growing.
//!
//! File systems are made with an explicit list of features and not with the defaults of whatever version the
//! image has, so that a volume mounts on every node of a cluster:
//! - ext4 without `orphan_file` (Linux 5.15) and `metadata_csum_seed`, which e2fsprogs 1.47 turns on: mounts
//!   on Linux 4.4 and later, and e2fsck 1.43 checks it;
//! - xfs with `bigtime` (time stamps beyond 2038) and `inobtcount`, which need Linux 5.10, without `rmapbt` and
//!   `nrext64`.
//!
//! The whole device is discarded first, which costs nothing in a log, and reads as zeros then: so ext4's
//! inode tables are not written (`assume_storage_prezeroed`, e2fsprogs 1.47).

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::MountError;
use super::command::run;
use crate::offload::{DeviceProbe, Offload, Operation};

const PROBE_LIMIT: Duration = Duration::from_secs(60);
const FORMAT_LIMIT: Duration = Duration::from_secs(300);
const CHECK_LIMIT: Duration = Duration::from_secs(900);
const GROW_LIMIT: Duration = Duration::from_secs(300);

const EXT4_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// A file system that Holdfast makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsType {
    /// ext4; the default.
    Ext4,
    /// XFS; at least 300 MiB.
    Xfs,
}

impl FsType {
    /// Its name in the mount table and in `fsType`.
    pub fn as_str(self) -> &'static str {
        match self {
            FsType::Ext4 => "ext4",
            FsType::Xfs => "xfs",
        }
    }

    /// Options that every mount gets, before the user's own. Deleted files give their space back to the store
    /// (`discard`; the user's `nodiscard` turns it off).
    pub fn base_options(self, read_only: bool) -> &'static [&'static str] {
        match (self, read_only) {
            (FsType::Ext4, false) => &["rw", "discard"],
            (FsType::Ext4, true) => &["ro", "noload"],
            // A clone has its origin's UUID, and both may be mounted on one node.
            (FsType::Xfs, false) => &["rw", "nouuid", "discard"],
            (FsType::Xfs, true) => &["ro", "norecovery", "nouuid"],
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `fsType` names something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("file system {0:?} is not supported; use ext4 or xfs")]
pub struct UnknownFsType(pub String);

impl FromStr for FsType {
    type Err = UnknownFsType;

    fn from_str(name: &str) -> Result<FsType, UnknownFsType> {
        match name {
            "" | "ext4" => Ok(FsType::Ext4),
            "xfs" => Ok(FsType::Xfs),
            other => Err(UnknownFsType(other.into())),
        }
    }
}

/// What lies on the device: the name that blkid gives it, or `None` if it is empty.
///
/// blkid's exit code 2 also stands for a device that it could not read; so the device is read here first, and
/// an I/O error never looks like an empty volume. An xfs whose making was interrupted says so in its
/// superblock, was never mounted, and counts as empty; an ext4 gets its superblock last.
pub async fn probe(offload: &Offload, device: &Path) -> Result<Option<String>, MountError> {
    let probe = Operation::ProbeDevice { path: device.into() };
    let DeviceProbe { unfinished_xfs } = offload.run(&probe, PROBE_LIMIT).await?;
    if unfinished_xfs {
        return Ok(None);
    }
    let options = ["--probe", "--output", "export", "--match-tag", "TYPE", "--match-tag", "PTTYPE"];
    let output = run("blkid", (&options[..], device), PROBE_LIMIT).await?;
    match output.code {
        Some(0) => Ok(Some(recognised(&output.stdout).ok_or_else(|| output.error())?)),
        Some(2) => Ok(None),
        Some(8) => Err(MountError::Ambiguous { device: device.into(), detail: output.detail() }),
        _ => Err(output.error()),
    }
}

fn recognised(export: &str) -> Option<String> {
    let value = |tag: &str| {
        export.lines().find_map(|line| Some(line.strip_prefix(tag)?.strip_prefix('=')?.to_owned()))
    };
    value("TYPE").or_else(|| Some(format!("a {} partition table", value("PTTYPE")?)))
}

/// Makes a file system on an empty device.
pub async fn format(fs_type: FsType, device: &Path) -> Result<(), MountError> {
    let output = match fs_type {
        FsType::Ext4 => {
            let extended = "discard,assume_storage_prezeroed=1";
            // After an I/O error nothing more is written, rather than on a state that was not read.
            let on_error = "remount-ro";
            let options =
                ["-q", "-F", "-b", "4096", "-m", "0", "-e", on_error, "-O", EXT4_FEATURES, "-E", extended];
            run("mkfs.ext4", (&options[..], device), FORMAT_LIMIT).await?
        }
        FsType::Xfs => {
            let metadata = "crc=1,finobt=1,reflink=1,rmapbt=0,bigtime=1,inobtcount=1";
            let options = ["-q", "-f", "-m", metadata, "-i", "sparse=1,nrext64=0"];
            run("mkfs.xfs", (&options[..], device), FORMAT_LIMIT).await?
        }
    };
    if output.code == Some(0) { Ok(()) } else { Err(output.error()) }
}

/// Repairs what can be repaired without a question. xfs replays its log when it is mounted, and refuses to
/// mount what is damaged.
pub async fn preen(fs_type: FsType, device: &Path) -> Result<(), MountError> {
    match fs_type {
        FsType::Ext4 => check_ext4(&["-p"], device).await,
        FsType::Xfs => Ok(()),
    }
}

async fn check_ext4(options: &[&str], device: &Path) -> Result<(), MountError> {
    let output = run("e2fsck", (options, device), CHECK_LIMIT).await?;
    match output.code {
        // Clean, or corrected.
        Some(0..=2) => Ok(()),
        Some(4) => Err(MountError::Damaged { device: device.into(), detail: output.detail() }),
        _ => Err(output.error()),
    }
}

/// Grows a mounted file system to its device's size, if it is smaller.
pub async fn grow(fs_type: FsType, device: &Path, mount_point: &Path) -> Result<(), MountError> {
    let output = match fs_type {
        FsType::Ext4 => run("resize2fs", (&[][..], device), GROW_LIMIT).await?,
        FsType::Xfs => run("xfs_growfs", (&["-d"][..], mount_point), GROW_LIMIT).await?,
    };
    match output.code {
        Some(0) => Ok(()),
        // resize2fs has one exit code; these are its words for EPERM.
        _ if output.detail().contains("Permission denied to resize") => {
            Err(MountError::GrowNotPermitted { target: mount_point.into() })
        }
        _ => Err(output.error()),
    }
}

/// Grows an ext4 that is not mounted, which the kernel has no say in. Reads all its metadata.
pub async fn grow_unmounted_ext4(device: &Path) -> Result<(), MountError> {
    check_ext4(&["-f", "-p"], device).await?;
    let output = run("resize2fs", (&[][..], device), GROW_LIMIT).await?;
    if output.code == Some(0) { Ok(()) } else { Err(output.error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blkid_output_names_a_file_system_or_a_partition_table() {
        assert_eq!(recognised("DEVNAME=/dev/loop0\nTYPE=xfs\n"), Some("xfs".into()));
        assert_eq!(recognised("PTTYPE=gpt\n"), Some("a gpt partition table".into()));
        assert_eq!(recognised("DEVNAME=/dev/loop0\n"), None);
    }

    #[test]
    fn an_empty_fs_type_means_ext4_and_an_unknown_one_is_refused() {
        assert_eq!("".parse(), Ok(FsType::Ext4));
        assert_eq!("xfs".parse(), Ok(FsType::Xfs));
        assert_eq!("btrfs".parse::<FsType>(), Err(UnknownFsType("btrfs".into())));
    }
}
