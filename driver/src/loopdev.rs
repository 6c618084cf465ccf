//! Loop devices: a block device over a volume's file.
//!
//! Loop devices belong to the kernel, not to a container: several nodes of a kind cluster, and everything else
//! on a machine, share them. So a device is never known by its number or by the path that it reports, but by
//! the device and inode of the file below it.
//!
//! Every device is made with
//! - direct I/O, so that data is not cached twice and a flush reaches the file; refused where the kernel falls
//!   back to buffered I/O;
//! - sectors of 4096 bytes, the engine's block, so that nothing above issues writes that need a
//!   read-modify-write. ext4 and xfs with blocks of 4 KiB, and databases, which write pages of 4 KiB or more,
//!   lose nothing; a program that does direct I/O in 512-byte units gets EINVAL, as on any 4Kn disk;
//! - no partition scan and no automatic clearing.
//!
//! # Assumptions
//! All functions here may wait for the volume's own I/O, and therefore must not be called by the process that
//! serves it; see [`crate::offload`].

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The logical sector of the devices made here.
pub const SECTOR_BYTES: u32 = 4096;
/// How often another process may take the free device that we were offered.
const MAX_RACES: u32 = 64;
/// The block major of loop devices.
const LOOP_MAJOR: u32 = 7;

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const FLAG_DIRECT_IO: u32 = 16;

/// The file below a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// The device number of the file system that it lies in.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl Backing {
    /// Identifies the file at `path`.
    ///
    /// # Errors
    /// The error of stat(2).
    pub fn of(path: &Path) -> io::Result<Backing> {
        let stat = rustix::fs::stat(path)?;
        Ok(Backing { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// Why an operation on a loop device failed.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The kernel refused.
    #[error("{action} failed: {source}")]
    System {
        /// What was tried, on what.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Others take the free devices faster.
    #[error("no free loop device could be had in {MAX_RACES} attempts")]
    Contended,
    /// The kernel would cache the data a second time.
    #[error("the kernel does not do direct I/O on {}", path.display())]
    NotDirect {
        /// The file.
        path: PathBuf,
    },
    /// A file system is mounted on the device, or a program has claimed it.
    #[error(
        "/dev/loop{number} is in use: a file system is still mounted on it, here or in another container"
    )]
    InUse {
        /// The device.
        number: u32,
    },
}

impl LoopError {
    /// The kernel's errno, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            LoopError::System { source, .. } => source.raw_os_error(),
            LoopError::InUse { .. } => Some(libc::EBUSY),
            LoopError::Contended | LoopError::NotDirect { .. } => None,
        }
    }
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const EMPTY_INFO: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// The path of device `number`.
pub fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// The number of the loop device at `path`, if it is one.
pub fn number_of(path: &Path) -> Option<u32> {
    path.to_str()?.strip_prefix("/dev/loop")?.parse().ok()
}

/// Makes a loop device over the file at `path`, or finds the one that is there; returns its number.
///
/// # Errors
/// [`LoopError`]; no device is left then.
pub fn attach(path: &Path) -> Result<u32, LoopError> {
    let backing =
        Backing::of(path).map_err(|source| failed(format!("stat of {}", path.display()), source))?;
    if let Some(number) = find(backing)? {
        return Ok(number);
    }
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| failed(format!("opening {}", path.display()), source))?;
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(|source| failed("opening /dev/loop-control".into(), source))?;
    for _ in 0..MAX_RACES {
        // SAFETY: the operation takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })
            .map_err(|source| failed("asking for a free loop device".into(), source))?;
        let number = number as u32;
        match configure(number, file.as_raw_fd()) {
            Ok(device) => return direct_or_detached(number, &device, path),
            // Taken (EBUSY) or removed (ENXIO, ENOENT) between the two calls.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENXIO | libc::ENOENT)) => {}
            Err(source) => return Err(failed(format!("configuring /dev/loop{number}"), source)),
        }
    }
    Err(LoopError::Contended)
}

fn configure(number: u32, file: RawFd) -> io::Result<File> {
    let device = open(number, 0)?;
    let config = Config {
        fd: file as u32,
        block_size: SECTOR_BYTES,
        info: Info { flags: FLAG_DIRECT_IO, ..EMPTY_INFO },
        reserved: [0; 8],
    };
    // SAFETY: the operation reads one `loop_config`, which `config` is laid out as.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })?;
    Ok(device)
}

fn direct_or_detached(number: u32, device: &File, path: &Path) -> Result<u32, LoopError> {
    let info = status(device).map_err(|source| failed(format!("the status of /dev/loop{number}"), source))?;
    if info.is_some_and(|info| info.flags & FLAG_DIRECT_IO != 0) {
        return Ok(number);
    }
    clear(device).map_err(|source| failed(format!("detaching /dev/loop{number}"), source))?;
    Err(LoopError::NotDirect { path: path.into() })
}

/// The device over `backing`, if there is one.
///
/// # Errors
/// [`LoopError`] if the devices cannot be listed.
pub fn find(backing: Backing) -> Result<Option<u32>, LoopError> {
    let listing = |source| failed("listing /sys/block".into(), source);
    for entry in std::fs::read_dir("/sys/block").map_err(listing)? {
        let name = entry.map_err(listing)?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else {
            continue;
        };
        if backing_of(number)? == Some(backing) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// The file below device `number`; `None` if it has none.
///
/// # Errors
/// [`LoopError::System`].
pub fn backing_of(number: u32) -> Result<Option<Backing>, LoopError> {
    let status = match open(number, 0) {
        Ok(device) => status(&device),
        // The device was removed, or goes away right now.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => Ok(None),
        Err(error) => Err(error),
    };
    let info = status.map_err(|source| failed(format!("the status of /dev/loop{number}"), source))?;
    Ok(info.map(|info| Backing { device: info.device, inode: info.inode }))
}

/// Makes the device as large as the file at `path`, which must be the one below it.
///
/// # Errors
/// [`LoopError::System`].
pub fn grow(number: u32, path: &Path) -> Result<(), LoopError> {
    let action = || format!("growing /dev/loop{number}");
    // Kernels before 6.17 take the size that the inode had when it was last looked at.
    rustix::fs::statx(
        rustix::fs::CWD,
        path,
        AtFlags::from_bits_retain(libc::AT_STATX_FORCE_SYNC as u32),
        StatxFlags::SIZE,
    )
    .map_err(|errno| failed(action(), errno.into()))?;
    let device = open(number, 0).map_err(|source| failed(action(), source))?;
    // SAFETY: the operation takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) })
        .map_err(|source| failed(action(), source))?;
    Ok(())
}

/// Removes the device over `backing`; nothing to do if there is none.
///
/// # Errors
/// [`LoopError::InUse`] if a file system is mounted on it and `even_if_used` is not set; nothing was changed
/// then. With it, the device goes when its last user does.
pub fn detach(backing: Backing, even_if_used: bool) -> Result<(), LoopError> {
    let Some(number) = find(backing)? else {
        return Ok(());
    };
    let exclusive = if even_if_used { 0 } else { libc::O_EXCL };
    let action = || format!("detaching /dev/loop{number}");
    let device = match open(number, exclusive) {
        Ok(device) => device,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(LoopError::InUse { number }),
        Err(source) => return Err(failed(action(), source)),
    };
    // Somebody else may have reused the number between the search and the opening.
    let info = status(&device).map_err(|source| failed(action(), source))?;
    if !info.is_some_and(|info| Backing { device: info.device, inode: info.inode } == backing) {
        return Ok(());
    }
    clear(&device).map_err(|source| failed(action(), source))
}

fn clear(device: &File) -> io::Result<()> {
    // SAFETY: the operation takes no argument.
    match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) }) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) => Err(error),
    }
}

fn status(device: &File) -> io::Result<Option<Info>> {
    let mut info = EMPTY_INFO;
    // SAFETY: the operation writes one `loop_info64`, which `info` is laid out as.
    match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) }) {
        Ok(_) => Ok(Some(info)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the device; makes its node first where the container's /dev lacks it.
fn open(number: u32, flags: i32) -> io::Result<File> {
    let path = path_of(number);
    let is_ours = |meta: std::fs::Metadata| meta.file_type().is_block_device();
    if !std::fs::symlink_metadata(&path).is_ok_and(is_ours) {
        make_node(number, &path)?;
    }
    File::options().read(true).write(true).custom_flags(flags).open(&path)
}

fn make_node(number: u32, path: &Path) -> io::Result<()> {
    // The minor is not the number when the module reserves minors for partitions.
    let device = std::fs::read_to_string(format!("/sys/block/loop{number}/dev"))?;
    let minor = device.trim().strip_prefix("7:").and_then(|minor| minor.parse().ok());
    let minor = minor.ok_or_else(|| io::Error::other(format!("unexpected device number {device:?}")))?;
    let device = rustix::fs::makedev(LOOP_MAJOR, minor);
    match rustix::fs::mknodat(rustix::fs::CWD, path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn failed(action: String, source: io::Error) -> LoopError {
    LoopError::System { action, source }
}
