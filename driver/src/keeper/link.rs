//! The node process's side: a connection that heals, and a memory of what the keeper should hold.
//!
//! # Guarantees
//! - A call that returned Ok took effect in the keeper that runs now, and is repeated in every keeper that runs
//!   later, until it is taken back.
//! - Every call ends within a few seconds, also when the keeper hangs.
//!
//! # Crash behaviour
//! When the keeper ends, a thread notices at once, connects again as soon as it can, and puts everything again.
//! Until then calls fail with [`LinkError::Unreachable`], and volumes already served go on.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::protocol::{self, Answer, Call, NEWEST_VERSION, Name, OLDEST_VERSION, Refusal};

/// How long the keeper may take to answer.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// How often a keeper that is away is looked for.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// Why a call failed. Nothing was changed unless the keeper dies right after it answered.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The keeper cannot be reached now.
    #[error("the keeper at {} cannot be reached: {source}; see the pods of its DaemonSet", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The keeper refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The keeper's answer does not fit the call.
    #[error("the keeper gave an answer that does not fit the call")]
    Unexpected,
    /// A descriptor cannot be duplicated.
    #[error("a descriptor cannot be duplicated for the keeper: {0}")]
    Duplicate(io::Error),
}

/// A connection to the keeper. All clones of its `Arc` share one socket; the last one to go closes it.
#[derive(Debug)]
pub struct Link {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    socket: Option<Arc<OwnedFd>>,
    entries: BTreeMap<Name, Kept>,
    guards: BTreeMap<String, (OwnedFd, Instant)>,
}

#[derive(Debug)]
struct Kept {
    metadata: String,
    fds: Vec<OwnedFd>,
}

/// An entry that a predecessor had put.
#[derive(Debug)]
pub struct Entry {
    /// The text put with it.
    pub metadata: String,
    /// The descriptors, in their order.
    pub fds: Vec<OwnedFd>,
}

impl Link {
    /// Connects to the keeper's socket at `path`; waits for the keeper at most `limit`.
    ///
    /// # Errors
    /// [`LinkError::Unreachable`] after `limit`; [`Refusal::Version`] when no version is common. The caller
    /// must not go on without: it would take volumes that are being served for volumes that are not.
    pub fn connect(path: &Path, limit: Duration) -> Result<Arc<Link>, LinkError> {
        let link = Arc::new(Link { path: path.into(), state: Mutex::default() });
        let started = Instant::now();
        loop {
            match link.reconnect(&mut link.lock()) {
                Ok(()) => break,
                Err(LinkError::Unreachable { .. }) if started.elapsed() < limit => {
                    thread::sleep(RECONNECT_INTERVAL);
                }
                Err(error) => return Err(error),
            }
        }
        let watched = Arc::downgrade(&link);
        thread::Builder::new()
            .name("keeper-link".into())
            .spawn(move || watch(&watched))
            .map_err(|source| link.unreachable(source))?;
        Ok(link)
    }

    /// Has the keeper hold duplicates of `fds` under `name`, instead of what it held there.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn put(&self, name: Name, metadata: String, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let duplicates: io::Result<Vec<_>> = fds.iter().map(BorrowedFd::try_clone_to_owned).collect();
        let kept = Kept { metadata, fds: duplicates.map_err(LinkError::Duplicate)? };
        let mut state = self.lock();
        self.put_kept(&mut state, &name, &kept)?;
        state.entries.insert(name, kept);
        Ok(())
    }

    /// The entry under `name`, if there is one. It is also remembered, to be put again when the keeper
    /// restarts.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn get(&self, name: &Name) -> Result<Option<Entry>, LinkError> {
        let mut state = self.lock();
        let (metadata, fds) = match self.call(&mut state, &Call::Get { name: name.clone() }, &[]) {
            Ok((Answer::Entry { metadata }, fds)) => (metadata, fds),
            Ok(_) => return Err(LinkError::Unexpected),
            Err(LinkError::Refused(Refusal::NotFound)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let duplicates: io::Result<Vec<_>> = fds.iter().map(OwnedFd::try_clone).collect();
        let kept = Kept { metadata: metadata.clone(), fds: duplicates.map_err(LinkError::Duplicate)? };
        state.entries.insert(name.clone(), kept);
        Ok(Some(Entry { metadata, fds }))
    }

    /// Has the keeper forget `name`. When the keeper is away, its successor will not learn of the entry.
    ///
    /// # Errors
    /// [`LinkError`]; the entry may still be held then.
    pub fn drop_entry(&self, name: &Name) -> Result<(), LinkError> {
        let mut state = self.lock();
        state.entries.remove(name);
        self.call_done(&mut state, &Call::Drop { name: name.clone() }, &[])
    }

    /// The names of everything that the keeper holds.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn list(&self) -> Result<Vec<Name>, LinkError> {
        let mut state = self.lock();
        let mut all: Vec<Name> = Vec::new();
        loop {
            let call = Call::List { after: all.last().cloned() };
            let (Answer::Names { names, more }, _) = self.call(&mut state, &call, &[])? else {
                return Err(LinkError::Unexpected);
            };
            let ends = !more || names.is_empty();
            all.extend(names);
            if ends {
                return Ok(all);
            }
        }
    }

    /// Has the keeper thaw `directory`'s file system unless [`Link::unguard`] is called within `limit`.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn guard(&self, key: &str, directory: BorrowedFd<'_>, limit: Duration) -> Result<(), LinkError> {
        let duplicate = directory.try_clone_to_owned().map_err(LinkError::Duplicate)?;
        let mut state = self.lock();
        let deadline = Instant::now() + limit;
        self.put_guard(&mut state, key, directory, limit)?;
        state.guards.insert(key.into(), (duplicate, deadline));
        Ok(())
    }

    /// Ends a guard. True if its deadline had not passed.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn unguard(&self, key: &str) -> Result<bool, LinkError> {
        let mut state = self.lock();
        state.guards.remove(key);
        match self.call(&mut state, &Call::Unguard { key: key.into() }, &[])? {
            (Answer::Unguarded { in_time }, _) => Ok(in_time),
            _ => Err(LinkError::Unexpected),
        }
    }

    fn put_kept(&self, state: &mut State, name: &Name, kept: &Kept) -> Result<(), LinkError> {
        let fds: Vec<_> = kept.fds.iter().map(AsFd::as_fd).collect();
        self.call_done(state, &Call::Put { name: name.clone(), metadata: kept.metadata.clone() }, &fds)
    }

    fn put_guard(
        &self,
        state: &mut State,
        key: &str,
        directory: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<(), LinkError> {
        let deadline_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.call_done(state, &Call::Guard { key: key.into(), deadline_ms }, &[directory])
    }

    fn call_done(&self, state: &mut State, call: &Call, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        match self.call(state, call, fds)? {
            (Answer::Done, _) => Ok(()),
            _ => Err(LinkError::Unexpected),
        }
    }

    /// One call and its answer. After a failure of the socket nothing can be said about what is in it, so it
    /// is given up; the watching thread makes another.
    fn call(
        &self,
        state: &mut State,
        call: &Call,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), LinkError> {
        let Some(socket) = &state.socket else {
            return Err(self.unreachable(io::ErrorKind::NotConnected.into()));
        };
        let answered = protocol::send(socket.as_fd(), call, fds).and_then(|()| {
            protocol::receive::<Answer>(socket)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        });
        match answered {
            Ok((Answer::Refused { reason }, _)) => Err(reason.into()),
            Ok(answer) => Ok(answer),
            Err(source) => {
                state.socket = None;
                Err(self.unreachable(source))
            }
        }
    }

    /// Makes a new connection and puts everything again.
    fn reconnect(&self, state: &mut State) -> Result<(), LinkError> {
        let socket = open(&self.path).map_err(|source| self.unreachable(source))?;
        state.socket = Some(Arc::new(socket));
        let hello = Call::Hello { oldest: OLDEST_VERSION, newest: NEWEST_VERSION };
        let entries = std::mem::take(&mut state.entries);
        let guards = std::mem::take(&mut state.guards);
        let put_all = |state: &mut State| {
            self.call(state, &hello, &[])?;
            for (name, kept) in &entries {
                self.put_kept(state, name, kept)?;
            }
            for (key, (directory, deadline)) in &guards {
                let left = deadline.saturating_duration_since(Instant::now());
                self.put_guard(state, key, directory.as_fd(), left)?;
            }
            Ok(())
        };
        let result = put_all(state);
        (state.entries, state.guards) = (entries, guards);
        if result.is_err() {
            state.socket = None;
        }
        result
    }

    fn unreachable(&self, source: io::Error) -> LinkError {
        LinkError::Unreachable { socket: self.path.clone(), source }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in between can only lose the socket's state, and then the next call fails and heals it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects again whenever the keeper has gone, as long as somebody holds the link.
fn watch(watched: &Weak<Link>) {
    while let Some(link) = watched.upgrade() {
        let socket = link.lock().socket.clone();
        let Some(socket) = socket else {
            let result = link.reconnect(&mut link.lock());
            drop(link);
            match result {
                Ok(()) => tracing::info!("the keeper is back and holds everything again"),
                Err(error) => {
                    tracing::debug!(%error, "the keeper is away");
                    thread::sleep(RECONNECT_INTERVAL);
                }
            }
            continue;
        };
        drop(link);
        if has_hung_up(&socket)
            && let Some(link) = watched.upgrade()
        {
            let mut state = link.lock();
            if state.socket.as_ref().is_some_and(|current| Arc::ptr_eq(current, &socket)) {
                tracing::warn!("the keeper has gone; looking for its successor");
                state.socket = None;
            }
        }
    }
}

/// Waits a second for the peer to close.
fn has_hung_up(socket: &OwnedFd) -> bool {
    let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    matches!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1..))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(CALL_LIMIT))?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(CALL_LIMIT))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}
