//! Operations that may wait for a volume's own I/O, carried out in a child process.
//!
//! A thread that waits in the kernel for a volume's I/O cannot be killed. If it belonged to the process that
//! serves the volume and that process were killed, it would wait for its successor, and the successor for its
//! death. So the serving process makes no such call: not stat(2) of the volume's file, not freezing, not the
//! ioctls of loop devices. It starts itself again with one operation as its argument, and may die in peace
//! while the child waits.
//!
//! # Assumptions
//! The death of a container must not wait for such children: the node's pod shares the host's PID namespace
//! (`hostPID`), for the kernel ends a PID namespace of its own only when all its processes are gone.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::keeper::guards;
use crate::loopdev::{self, Backing, LoopError};

/// The hidden subcommand that carries one operation out.
pub const SUBCOMMAND: &str = "offload";

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Operation {
    /// Finds or makes the loop device over a file; answers its number.
    AttachLoop {
        /// The file.
        path: PathBuf,
    },
    /// Makes a loop device as large as the file below it.
    GrowLoop {
        /// The device.
        number: u32,
        /// The file.
        path: PathBuf,
    },
    /// Removes the loop device over a file.
    DetachLoop {
        /// The file.
        backing: Backing,
        /// Also if a file system is mounted on it.
        even_if_used: bool,
    },
    /// Unmounts; what is not mounted is no error.
    Unmount {
        /// Where.
        path: PathBuf,
        /// What of those who use it.
        how: Unmount,
    },
    /// Freezes the file system mounted at a path, if it lies on the given device; answers whether it was not
    /// frozen before.
    Freeze {
        /// Where it is mounted.
        path: PathBuf,
        /// The block device's number.
        device: u64,
    },
    /// Writes a file system's data out.
    Sync {
        /// Where it is mounted.
        path: PathBuf,
        /// The block device's number.
        device: u64,
    },
    /// Thaws it; answers whether it was frozen.
    Thaw {
        /// Where it is mounted.
        path: PathBuf,
        /// The block device's number.
        device: u64,
    },
    /// Space and inodes of the file system at a path; answers [`FsStats`].
    Stats {
        /// Any path in it.
        path: PathBuf,
    },
    /// Reads the beginning and the end of a block device; answers a [`DeviceProbe`].
    ProbeDevice {
        /// The device.
        path: PathBuf,
    },
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmount {
    /// Fails with `EBUSY` while the file system is used.
    IfUnused,
    /// Takes the mount out of sight; the file system goes with its last user.
    Detach,
    /// Ends a FUSE connection, so that its users get errors; takes the mount out of sight.
    Abort,
}

/// Space and inodes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStats {
    /// Size.
    pub total_bytes: u64,
    /// What unprivileged users can still write.
    pub available_bytes: u64,
    /// What is taken.
    pub used_bytes: u64,
    /// Inodes in all.
    pub total_inodes: u64,
    /// Inodes that are free.
    pub free_inodes: u64,
}

/// What the first look at a block device shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProbe {
    /// It holds an xfs whose making was interrupted.
    pub unfinished_xfs: bool,
}

/// Why an offloaded operation has no result.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// The operation failed.
    #[error("{message}")]
    Failed {
        /// What was tried and what the kernel answered.
        message: String,
        /// The kernel's errno, where there is one.
        errno: Option<i32>,
    },
    /// It has not ended. It may still take effect; repeating it is safe.
    #[error("{operation} did not end within {limit:?}: the volume's I/O is stalled")]
    TimedOut {
        /// What was tried.
        operation: String,
        /// How long.
        limit: Duration,
    },
    /// The child could not be started or understood.
    #[error("cannot run {}: {source}", program.display())]
    Child {
        /// The program.
        program: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

impl OffloadError {
    /// Whether the kernel's answer was `errno`.
    pub fn is(&self, wanted: i32) -> bool {
        matches!(self, OffloadError::Failed { errno: Some(errno), .. } if *errno == wanted)
    }
}

#[derive(Serialize, Deserialize)]
struct Failure {
    message: String,
    errno: Option<i32>,
}

/// Starts children of one program.
#[derive(Clone, Debug)]
pub struct Offload {
    program: PathBuf,
}

impl Offload {
    /// With the program that runs now.
    ///
    /// # Errors
    /// If the system does not tell which it is.
    pub fn with_this_program() -> io::Result<Offload> {
        Ok(Offload { program: std::env::current_exe()? })
    }

    /// With `program`, which has the subcommand [`SUBCOMMAND`].
    pub fn with_program(program: impl Into<PathBuf>) -> Offload {
        Offload { program: program.into() }
    }

    /// Carries `operation` out and waits for it at most `limit`.
    ///
    /// # Errors
    /// [`OffloadError`].
    pub async fn run<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        limit: Duration,
    ) -> Result<T, OffloadError> {
        let failed = |source| OffloadError::Child { program: self.program.clone(), source };
        let argument = serde_json::to_string(operation).map_err(|error| failed(error.into()))?;
        let output = tokio::process::Command::new(&self.program)
            .args([SUBCOMMAND, &argument])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout(limit, output).await {
            Ok(output) => output.map_err(failed)?,
            Err(_) => return Err(OffloadError::TimedOut { operation: argument, limit }),
        };
        let result: Result<T, Failure> = serde_json::from_slice(&output.stdout).map_err(|error| {
            failed(io::Error::other(format!("it ended with {} and no result ({error})", output.status)))
        })?;
        result.map_err(|Failure { message, errno }| OffloadError::Failed { message, errno })
    }
}

/// The child's whole work: carries the operation in `argument` out and prints its result.
///
/// # Errors
/// If the argument is no operation, or the result cannot be printed.
pub fn carry_out(argument: &str) -> io::Result<()> {
    let operation: Operation = serde_json::from_str(argument)?;
    let result =
        match &operation {
            Operation::AttachLoop { path } => loop_json(loopdev::attach(path)),
            Operation::GrowLoop { number, path } => loop_json(loopdev::grow(*number, path)),
            Operation::DetachLoop { backing, even_if_used } => {
                loop_json(loopdev::detach(*backing, *even_if_used))
            }
            Operation::Unmount { path, how } => {
                json(unmount(path, *how), || format!("unmounting {}", path.display()))
            }
            Operation::Freeze { path, device } => json(
                on_device(path, *device).and_then(|directory| Ok(guards::freeze(directory.as_fd())?)),
                || format!("freezing {}", path.display()),
            ),
            Operation::Sync { path, device } => json(
                on_device(path, *device).and_then(|directory| Ok(rustix::fs::syncfs(directory)?)),
                || format!("writing out {}", path.display()),
            ),
            Operation::Thaw { path, device } => json(
                on_device(path, *device).and_then(|directory| Ok(guards::thaw(directory.as_fd())?)),
                || format!("thawing {}", path.display()),
            ),
            Operation::Stats { path } => json(stats(path), || format!("statistics of {}", path.display())),
            Operation::ProbeDevice { path } => json(probe(path), || format!("reading {}", path.display())),
        };
    serde_json::to_writer(io::stdout(), &result)?;
    Ok(())
}

fn json<T: Serialize>(
    result: io::Result<T>,
    action: impl FnOnce() -> String,
) -> Result<serde_json::Value, Failure> {
    let fail = |error: io::Error| Failure {
        message: format!("{} failed: {error}", action()),
        errno: error.raw_os_error(),
    };
    match result.and_then(|value| Ok(serde_json::to_value(value)?)) {
        Ok(value) => Ok(value),
        Err(error) => Err(fail(error)),
    }
}

fn loop_json<T: Serialize>(result: Result<T, LoopError>) -> Result<serde_json::Value, Failure> {
    let value = result.map_err(|error| Failure { message: error.to_string(), errno: error.errno() })?;
    json(serde_json::to_value(value).map_err(Into::into), || "writing the result".into())
}

fn unmount(path: &Path, how: Unmount) -> io::Result<()> {
    let flags = match how {
        Unmount::IfUnused => UnmountFlags::empty(),
        Unmount::Detach => UnmountFlags::DETACH,
        Unmount::Abort => UnmountFlags::FORCE | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        // Not a mount point, or not there at all.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens the directory `path` if it lies on the block device `device`. Otherwise the file system that would be
/// frozen could be the host's own: a mount point is an ordinary directory once nothing is mounted there.
pub fn on_device(path: &Path, device: u64) -> io::Result<std::os::fd::OwnedFd> {
    let directory =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstat(&directory)?.st_dev != device {
        return Err(io::Error::other("the volume's file system is not mounted there"));
    }
    Ok(directory)
}

fn stats(path: &Path) -> io::Result<FsStats> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(FsStats {
        total_bytes: stat.f_blocks * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
        used_bytes: (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        total_inodes: stat.f_files,
        free_inodes: stat.f_ffree,
    })
}

fn probe(path: &Path) -> io::Result<DeviceProbe> {
    use std::io::{Read, Seek, SeekFrom};
    const PROBE_BYTES: u64 = 1 << 20;
    let mut device = std::fs::File::open(path)?;
    let size = device.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0; PROBE_BYTES.min(size) as usize];
    device.seek(SeekFrom::Start(size.saturating_sub(PROBE_BYTES)))?;
    device.read_exact(&mut buffer)?;
    device.rewind()?;
    device.read_exact(&mut buffer)?;
    Ok(DeviceProbe { unfinished_xfs: is_unfinished_xfs(&buffer) })
}

/// `sb_magicnum` and `sb_inprogress` of the xfs superblock (xfs_format.h, `struct xfs_dsb`).
fn is_unfinished_xfs(start: &[u8]) -> bool {
    const IN_PROGRESS: usize = 126;
    start.starts_with(b"XFSB") && start.get(IN_PROGRESS).is_some_and(|&flag| flag != 0)
}
