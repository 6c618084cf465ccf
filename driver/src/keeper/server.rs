//! The keeper's process: a socket, a thread per connection, a thread for the deadlines.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Resource;

use super::guards::Guards;
use super::protocol::{
    self, Answer, Call, MAX_CONNECTIONS, NEWEST_VERSION, OLDEST_VERSION, Refusal, common_version,
};
use super::table::{Entry, Table, malformed};

/// How long a client may take to receive an answer.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Why the keeper cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Connections cannot be accepted any more.
    #[error("cannot accept connections: {0}")]
    Accept(Errno),
    /// Threads cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

#[derive(Default)]
struct State {
    table: Mutex<Table>,
    guards: Guards,
    connections: AtomicUsize,
}

/// Serves the socket at `path` until the process ends; a socket file left by a predecessor is replaced.
///
/// # Errors
/// [`ServeError`]; the process should then end and be started again.
pub fn serve(path: &Path) -> Result<(), ServeError> {
    raise_descriptor_limit();
    let listener = listen(path).map_err(|source| ServeError::Listen { path: path.into(), source })?;
    let state = Arc::new(State::default());
    let guards = state.guards.clone();
    thread::Builder::new()
        .name("deadlines".into())
        .spawn(move || guards.watch())
        .map_err(ServeError::Thread)?;
    tracing::info!(socket = %path.display(), "the keeper is ready");
    loop {
        let socket = match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(errno) => return Err(ServeError::Accept(errno)),
        };
        if state.connections.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            tracing::warn!("a connection is refused: {MAX_CONNECTIONS} are open");
            continue;
        }
        state.connections.fetch_add(1, Ordering::Relaxed);
        let connection = state.clone();
        let started = thread::Builder::new().name("connection".into()).spawn(move || {
            if let Err(error) = connection.serve_connection(socket.as_fd()) {
                tracing::warn!(%error, "a connection ends");
            }
            connection.connections.fetch_sub(1, Ordering::Relaxed);
        });
        started.map_err(ServeError::Thread)?;
    }
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, MAX_CONNECTIONS as i32)?;
    Ok(socket)
}

/// Hundreds of volumes with several descriptors each exceed the usual soft limit of 1024.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(errno) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%errno, "the limit of open files cannot be raised");
    }
}

impl State {
    fn serve_connection(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let peer = rustix::net::sockopt::socket_peercred(socket)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a peer of another user"));
        }
        rustix::net::sockopt::set_socket_timeout(socket, Timeout::Send, Some(SEND_LIMIT))?;
        let mut greeted = false;
        while let Some((call, fds)) = protocol::receive::<Call>(socket)? {
            let (answer, entry) = match (&call, greeted) {
                (Call::Hello { .. }, _) | (_, true) => self.answer(call, fds),
                (_, false) => (refused(malformed("the first call must be hello".into())), None),
            };
            greeted |= matches!(answer, Answer::Hello { .. });
            let fds: Vec<_> = entry.iter().flat_map(|entry| &entry.fds).map(AsFd::as_fd).collect();
            protocol::send(socket, &answer, &fds)?;
        }
        Ok(())
    }

    /// The answer, and the entry whose descriptors go with it.
    fn answer(&self, call: Call, mut fds: Vec<OwnedFd>) -> (Answer, Option<Arc<Entry>>) {
        let answer = match call {
            Call::Hello { oldest, newest } => match common_version(oldest, newest) {
                Some(version) => Answer::Hello { version },
                None => refused(Refusal::Version { oldest: OLDEST_VERSION, newest: NEWEST_VERSION }),
            },
            Call::Put { name, metadata } => done(self.table().put(name, Entry { metadata, fds })),
            Call::Get { name } => match self.table().get(&name) {
                Ok(entry) => return (Answer::Entry { metadata: entry.metadata.clone() }, Some(entry)),
                Err(reason) => refused(reason),
            },
            Call::Drop { name } => {
                self.table().remove(&name);
                Answer::Done
            }
            Call::List { after } => {
                let (names, more) = self.table().list(after.as_ref());
                Answer::Names { names, more }
            }
            Call::Guard { key, deadline_ms } => match (fds.pop(), fds.is_empty()) {
                (Some(directory), true) => {
                    done(self.guards.guard(key, directory, Duration::from_millis(deadline_ms)))
                }
                _ => refused(malformed("a guard needs one descriptor".into())),
            },
            Call::Unguard { key } => Answer::Unguarded { in_time: self.guards.unguard(&key) },
        };
        (answer, None)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is whole between any two statements that touch it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn done(result: Result<(), Refusal>) -> Answer {
    result.map_or_else(refused, |()| Answer::Done)
}

fn refused(reason: Refusal) -> Answer {
    Answer::Refused { reason }
}
