//! Serving the file: requests in, device operations, replies out.
//!
//! The loop is our own and not a FUSE library's, because the takeover needs what those hide: a request must be
//! read into memory that survives us before anything is done about it ([`super::slots`]), must be answered on
//! the descriptor that it came from, and a successor must start in the middle, without INIT. Fifteen kinds of
//! requests are all that one file receives.
//!
//! # Expected flow
//! Each queue has a thread that takes a free slot, waits for a request, and polls its service once. Most end
//! there (a cached read, a write into the dirty buffer); the rest waits ([`super::parked`]) and the thread goes on.
//! At most [`SLOT_COUNT`](super::slots::SLOT_COUNT) requests are served at once.
//!
//! # Guarantees
//! - Every request is answered exactly once, by this process or by a successor; repeated service of a request
//!   can only happen before its first answer, when no later request can depend on it.
//! - A panic in the device becomes EIO for that request.
//!
//! # Assumptions
//! The predecessor is dead before [`Session::adopt`] is called (see [`super::incarnation`]).
//!
//! # Crash behaviour
//! There is no orderly end other than unmounting: a process that exits leaves its requests in the slots, just
//! as one that is killed. The keeper's descriptors keep the connection alive; requests wait in the kernel.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::abi::{self, Agreed, DISK_NAME, DISK_NODE, Header, ROOT_NODE, Request};
use super::connection;
use super::device::{BlockDevice, DeviceError};
use super::parked;
use super::slots::{Slot, Slots};

/// An idle volume gives its slots' memory back after one to two of these.
const TRIM_INTERVAL: Duration = Duration::from_secs(30);

/// A connection being served. Dropping it does not end the service; unmounting or aborting does.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    device: Arc<dyn BlockDevice>,
    slots: Arc<Slots>,
    queues: Vec<OwnedFd>,
    /// Counts the queue threads; closed from the start, so that waiting ends with the last of them.
    threads: TaskTracker,
    failure_logged: AtomicBool,
    requests: AtomicU64,
    adopted: AtomicU64,
    resent: AtomicU64,
}

/// What a session has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests taken from the kernel.
    pub requests: u64,
    /// Requests of the predecessor that were served from their slots.
    pub adopted: u64,
    /// Requests that the kernel sent again.
    pub resent: u64,
}

impl Session {
    /// Begins to serve a connection that [`connection::mount`] has just made.
    ///
    /// # Errors
    /// The system's error when threads cannot be started.
    pub fn start(
        name: &str,
        queues: Vec<OwnedFd>,
        slots: Arc<Slots>,
        device: Arc<dyn BlockDevice>,
    ) -> io::Result<Session> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            device,
            slots,
            queues,
            threads: TaskTracker::new(),
            failure_logged: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            adopted: AtomicU64::new(0),
            resent: AtomicU64::new(0),
        });
        let tokens: Vec<_> = shared.queues.iter().map(|_| shared.threads.token()).collect();
        shared.threads.close();
        for (queue, token) in tokens.into_iter().enumerate() {
            let (shared, runtime) = (shared.clone(), Handle::current());
            thread::Builder::new().name(format!("fuse-queue-{queue}")).spawn(move || {
                shared.serve_queue(queue, &runtime);
                drop(token);
            })?;
        }
        tokio::spawn(trim_when_idle(shared.clone()));
        Ok(Session { shared })
    }

    /// Goes on where a predecessor died: serves the requests that it left in `left`, then has the kernel send
    /// again what it took otherwise. New requests are served from the beginning.
    ///
    /// The order matters: were the kernel asked first, a request could be served twice at the same time, and
    /// the slower of the two could undo a write that came after the answer of the faster.
    ///
    /// # Errors
    /// The system's error when threads cannot be started.
    pub async fn adopt(
        name: &str,
        queues: Vec<OwnedFd>,
        slots: Arc<Slots>,
        left: Vec<Slot>,
        agreed: Agreed,
        device: Arc<dyn BlockDevice>,
    ) -> io::Result<Session> {
        let session = Session::start(name, queues, slots, device)?;
        let shared = &session.shared;
        let served = left.into_iter().filter_map(|slot| shared.clone().serve_left(slot));
        futures::future::join_all(served.map(tokio::spawn)).await;
        if agreed.resend
            && let Err(errno) = connection::ask_for_resend(shared.queues[0].as_fd())
        {
            tracing::warn!(volume = name, %errno, "the kernel refused to send unanswered requests again");
        }
        Ok(session)
    }

    /// Counters since the session began.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        Counts { requests: of(&shared.requests), adopted: of(&shared.adopted), resent: of(&shared.resent) }
    }

    /// Waits until the connection has ended and no queue is read any more.
    pub async fn ended(&self) {
        self.shared.threads.wait().await;
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.threads.is_empty()
    }

    /// The device being served.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.shared.device
    }

    /// The connection's descriptors, for the keeper.
    pub fn queues(&self) -> &[OwnedFd] {
        &self.shared.queues
    }

    /// The slots, for the keeper.
    pub fn slots(&self) -> &Slots {
        &self.shared.slots
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

async fn trim_when_idle(shared: Arc<Shared>) {
    let mut seen = shared.requests.load(Ordering::Relaxed);
    while tokio::time::timeout(TRIM_INTERVAL, shared.threads.wait()).await.is_err() {
        let now = shared.requests.load(Ordering::Relaxed);
        if now == seen {
            shared.slots.trim();
        }
        seen = now;
    }
}

impl Shared {
    fn serve_queue(self: &Arc<Shared>, queue: usize, runtime: &Handle) {
        become_io_flusher();
        let _entered = runtime.enter();
        while let Some(mut slot) = self.slots.acquire() {
            match slot.read_request(self.queues[queue].as_fd(), queue) {
                Ok(()) => {}
                Err(error) => match error.raw_os_error() {
                    // Interrupted, or the request was withdrawn while it was being read.
                    Some(libc::EINTR | libc::ENOENT | libc::EAGAIN) => {
                        slot.release();
                        continue;
                    }
                    Some(libc::ENODEV) => return self.slots.close(),
                    _ => {
                        tracing::error!(volume = self.name, queue, %error, "reading /dev/fuse failed");
                        return;
                    }
                },
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            parked::begin(Box::pin(self.clone().serve(slot, queue)), runtime);
        }
    }

    /// The service of a request that a predecessor left; `None` if it was answered.
    fn serve_left(self: Arc<Shared>, slot: Slot) -> Option<impl Future<Output = ()> + Send> {
        let queue = slot.queue();
        let waiting = match (abi::decode(slot.buffer()), self.queues.get(queue)) {
            (Ok((header, _)), Some(fd)) => connection::is_waiting(fd.as_fd(), header.unique),
            _ => false,
        };
        if !waiting {
            slot.release();
            return None;
        }
        self.adopted.fetch_add(1, Ordering::Relaxed);
        Some(self.serve(slot, queue))
    }

    async fn serve(self: Arc<Shared>, slot: Slot, queue: usize) {
        match abi::decode(slot.buffer()) {
            Ok((_, Request::Silent)) => {}
            Ok((header, request)) => {
                if header.is_resent() {
                    self.resent.fetch_add(1, Ordering::Relaxed);
                }
                let answer = AssertUnwindSafe(self.answer(&header, request)).catch_unwind().await;
                let answer = answer.unwrap_or_else(|_| {
                    tracing::error!(volume = self.name, ?header, "serving a request panicked");
                    Err(libc::EIO)
                });
                self.reply(queue, &header, answer);
            }
            Err(error) => tracing::error!(volume = self.name, %error, "the kernel sent a malformed request"),
        }
        slot.release();
    }

    fn reply(&self, queue: usize, header: &Header, answer: Result<Vec<Bytes>, i32>) {
        let (errno, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (errno, Vec::new()),
        };
        match connection::reply(self.queues[queue].as_fd(), header.unique, errno, &body) {
            // Gone: the request was answered, or the connection ended.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN) => {}
            Err(error) => tracing::error!(volume = self.name, ?header, %error, "writing a reply failed"),
        }
    }

    async fn answer(&self, header: &Header, request: Request<'_>) -> Result<Vec<Bytes>, i32> {
        let size = self.device.size_bytes();
        let answer = match request {
            Request::Read { offset, len } => return self.read(offset, len, size).await,
            Request::Lookup(name) if header.node == ROOT_NODE && name == DISK_NAME.as_bytes() => {
                Ok(abi::entry_out(size))
            }
            Request::Lookup(_) => Err(libc::ENOENT),
            Request::GetAttr => Ok(abi::attr_out(header.node, size)),
            // Only the volume's own resize changes its size.
            Request::SetAttr { valid } if valid & abi::SETATTR_SIZE != 0 => Err(libc::EPERM),
            Request::SetAttr { .. } => Ok(abi::attr_out(header.node, size)),
            Request::Open => Ok(abi::open_out()),
            Request::OpenDir => Ok(abi::opendir_out()),
            Request::ReadDir { offset } => Ok(abi::readdir_out(offset)),
            Request::StatFs => Ok(abi::statfs_out(size)),
            Request::Write { offset, data } => self.write(offset, data, size).await,
            Request::Flush | Request::Fsync if header.node == DISK_NODE => self.flush().await,
            Request::Fallocate { offset, len, mode } => self.allocate(offset, len, mode, size).await,
            Request::Flush | Request::Fsync | Request::Release | Request::Destroy => Ok(Bytes::new()),
            Request::Init(_) | Request::Silent | Request::Other => Err(libc::ENOSYS),
        };
        answer.map(|body| vec![body])
    }

    async fn read(&self, offset: u64, len: u32, size: u64) -> Result<Vec<Bytes>, i32> {
        let len = u64::from(len).min(size.saturating_sub(offset)) as u32;
        if len == 0 {
            return Ok(Vec::new());
        }
        let data: Vec<Bytes> = self.device.read(offset, len).await.map_err(|error| self.errno_of(&error))?;
        // A short reply would be taken for the end of the file and read as zeros.
        if data.iter().map(Bytes::len).sum::<usize>() == len as usize { Ok(data) } else { Err(libc::EIO) }
    }

    async fn write(&self, offset: u64, data: &[u8], size: u64) -> Result<Bytes, i32> {
        if !fits(offset, data.len() as u64, size) {
            return Err(libc::EFBIG);
        }
        self.device.write(offset, data).await.map_err(|error| self.errno_of(&error))?;
        Ok(abi::write_out(data.len() as u32))
    }

    async fn flush(&self) -> Result<Bytes, i32> {
        self.device.flush().await.map_err(|error| self.errno_of(&error))?;
        Ok(Bytes::new())
    }

    async fn allocate(&self, offset: u64, len: u64, mode: u32, size: u64) -> Result<Bytes, i32> {
        if !fits(offset, len, size) {
            return Err(libc::EFBIG);
        }
        match mode & !abi::FALLOC_KEEP_SIZE {
            // Space is not reserved in a log; the range can be written either way.
            0 => {}
            abi::FALLOC_PUNCH_HOLE | abi::FALLOC_ZERO_RANGE => {
                self.device.discard(offset, len).await.map_err(|error| self.errno_of(&error))?;
            }
            _ => return Err(libc::EOPNOTSUPP),
        }
        Ok(Bytes::new())
    }

    /// The errno of a failed operation. The first failure of a session is logged, not each of thousands.
    fn errno_of(&self, error: &DeviceError) -> i32 {
        if !self.failure_logged.swap(true, Ordering::Relaxed) {
            tracing::error!(volume = self.name, %error, "an I/O request failed; further ones are not logged");
        }
        error.errno()
    }
}

/// Marks this thread, and those that it starts, as needed for writing memory out. Otherwise memory reclaim
/// could wait for writes that only this thread can carry out. The node process calls it before it starts its
/// runtime. It needs CAP_SYS_RESOURCE; without it the node works, with that risk under memory pressure.
pub fn become_io_flusher() {
    if let Err(errno) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%errno, "the system does not permit the I/O flusher state");
    }
}

fn fits(offset: u64, len: u64, size: u64) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= size)
}
