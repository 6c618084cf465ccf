//! A FUSE connection: mounting, its descriptors, and the few messages that are not replies.

use std::ffi::CString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::Updater;
use rustix::mount::MountFlags;

use super::abi::{self, Agreed, IN_HEADER_BYTES, Request, UNIQUE_INTERRUPT};
use super::slots::{MAX_WRITE_BYTES, SLOT_COUNT};

/// Descriptors of /dev/fuse per volume, each with a thread that reads it. A request must be answered on the
/// descriptor that it was read from.
pub const QUEUE_COUNT: usize = 4;
/// How long the kernel may take to send its first request.
const INIT_LIMIT: Duration = Duration::from_secs(10);
/// Type in the mount table, by which leftovers are recognised.
pub const FILE_SYSTEM: &str = "fuse.holdfast";

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, u32)`.
const DEV_IOC_CLONE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(229, 0);

/// Why the file could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// /dev/fuse is missing or forbidden.
    #[error("cannot open /dev/fuse: {0}; the node needs the fuse kernel module and a privileged container")]
    Open(Errno),
    /// mount(2) failed.
    #[error("cannot mount the volume's file at {}: {source}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// The kernel did not begin, or broke the connection.
    #[error("the FUSE connection of {} did not start: {source}", path.display())]
    Start {
        /// Where.
        path: PathBuf,
        /// What failed.
        source: Errno,
    },
    /// Kernel too old.
    #[error(transparent)]
    Protocol(#[from] abi::UnsupportedProtocol),
    /// The first request was not INIT.
    #[error("the kernel's first request on {} is not INIT", path.display())]
    NoInit {
        /// Where.
        path: PathBuf,
    },
}

/// Mounts a new connection on the directory `path` and agrees with the kernel on the protocol. Returns the
/// descriptors of all queues.
///
/// # Errors
/// [`ConnectionError`]; nothing stays mounted then, because the kernel ends a connection that nobody holds, and
/// the mount is detached.
pub fn mount(path: &Path) -> Result<(Vec<OwnedFd>, Agreed), ConnectionError> {
    let primary = open_device().map_err(ConnectionError::Open)?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", primary.as_raw_fd());
    let options = CString::new(options).expect("digits and letters only, no NUL");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("holdfast", path, FILE_SYSTEM, flags, options.as_c_str())
        .map_err(|source| ConnectionError::Mount { path: path.into(), source })?;
    let started = start(path, &primary).and_then(|agreed| {
        let mut queues = vec![primary];
        while queues.len() < QUEUE_COUNT {
            let clone = clone_queue(queues[0].as_fd())
                .map_err(|source| ConnectionError::Start { path: path.into(), source })?;
            queues.push(clone);
        }
        Ok((queues, agreed))
    });
    if started.is_err() {
        // All descriptors are closed by now, so this waits for nobody; the first error is the one to report.
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    }
    started
}

fn open_device() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

fn clone_queue(primary: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let queue = open_device()?;
    let mut source = primary.as_raw_fd() as u32;
    // SAFETY: the operation reads one u32, a descriptor of the connection to join.
    unsafe { rustix::ioctl::ioctl(&queue, Updater::<DEV_IOC_CLONE, u32>::new(&mut source)) }?;
    Ok(queue)
}

fn start(path: &Path, device: &OwnedFd) -> Result<Agreed, ConnectionError> {
    let failed = |source| ConnectionError::Start { path: path.into(), source };
    let limit = Timespec::try_from(INIT_LIMIT).expect("ten seconds are representable");
    if rustix::event::poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&limit)).map_err(failed)? == 0 {
        return Err(failed(Errno::TIMEDOUT));
    }
    let mut buffer = vec![0; MAX_WRITE_BYTES + 2 * IN_HEADER_BYTES];
    let len = rustix::io::read(device, &mut buffer).map_err(failed)?;
    let Ok((header, Request::Init(init))) = abi::decode(&buffer[..len]) else {
        return Err(ConnectionError::NoInit { path: path.into() });
    };
    let (agreed, body) = abi::accept_init(&init, MAX_WRITE_BYTES as u32, SLOT_COUNT as u16)?;
    reply(device.as_fd(), header.unique, 0, &[body]).map_err(failed)?;
    Ok(agreed)
}

/// Answers the request `unique`, which was read from this `queue`. The pieces of `body` lie one after the other in the
/// answer: a block of the longest read each at least, which are fewer than the kernel takes at once.
///
/// # Errors
/// `ENOENT` if the request does not wait any more (it was answered, or the connection was aborted).
pub fn reply(queue: BorrowedFd<'_>, unique: u64, errno: i32, body: &[Bytes]) -> Result<(), Errno> {
    let body = if errno == 0 { body } else { &[] };
    let header = abi::out_header(unique, errno, body.iter().map(Bytes::len).sum());
    let parts = std::iter::once(&header[..]).chain(body.iter().map(|piece| &piece[..]));
    let parts: Vec<IoSlice<'_>> = parts.filter(|part| !part.is_empty()).map(IoSlice::new).collect();
    rustix::io::writev(queue, &parts).map(|_| ())
}

/// Whether the request `unique`, read from this `queue` at some time, still waits for its reply.
///
/// The kernel is sent a reply to an interrupt of the request, which changes nothing, and which it refuses with
/// `ENOENT` when it knows no such request (fs/fuse/dev.c, `fuse_dev_do_write`).
pub fn is_waiting(queue: BorrowedFd<'_>, unique: u64) -> bool {
    rustix::io::write(queue, &abi::out_header(unique | UNIQUE_INTERRUPT, 0, 0)).is_ok()
}

/// Asks the kernel to send everything again that was taken and not answered, on any queue.
///
/// # Errors
/// `EINVAL` on kernels before 6.9; see [`Agreed::resend`].
pub fn ask_for_resend(queue: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::write(queue, &abi::resend_notification()).map(|_| ())
}
