//! Frozen file systems and their deadlines.
//!
//! The node process freezes a file system for the moment of a snapshot. Should it die in between, the file
//! system's users would hang for ever; so the keeper holds an open directory of it and thaws it at a deadline.
//!
//! # Guarantees
//! A file system that is frozen at its guard's deadline, or becomes so within a minute after it (the freeze
//! may have been under way), is thawed.
//!
//! # Assumptions
//! Thawing writes to the file system, and so may wait until a new node process serves its volume. Each guard
//! past its deadline therefore has a thread of its own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::ioctl::Updater;

use super::protocol::{MAX_GUARDS, Refusal};
use super::table::{check_name, malformed};

/// `FIFREEZE`: `_IOWR('X', 119, int)`.
const FIFREEZE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<i32>(b'X', 119);
/// `FITHAW`: `_IOWR('X', 120, int)`.
const FITHAW: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<i32>(b'X', 120);

/// Longest time that a file system may be kept frozen.
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// How long after the deadline a freeze that completes late is still thawed.
const LATE_FREEZE_LIMIT: Duration = Duration::from_secs(60);
/// How often that is looked for, and a failure is repeated.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// All guards. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    guards: Mutex<BTreeMap<String, Guard>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Guard {
    directory: Arc<OwnedFd>,
    deadline: Instant,
    expired: bool,
}

impl Guards {
    /// Guards `directory`'s file system under `key`; replaces a guard under that key.
    ///
    /// # Errors
    /// [`Refusal`] for a bad key, a deadline beyond [`MAX_DEADLINE`], or too many guards.
    pub fn guard(&self, key: String, directory: OwnedFd, deadline: Duration) -> Result<(), Refusal> {
        check_name(&key)?;
        if deadline > MAX_DEADLINE {
            return Err(malformed(format!("a file system is kept frozen at most {MAX_DEADLINE:?}")));
        }
        let mut guards = self.lock();
        if guards.len() >= MAX_GUARDS && !guards.contains_key(&key) {
            return Err(Refusal::Full { what: "guards".into(), bound: MAX_GUARDS });
        }
        let deadline = Instant::now() + deadline;
        guards.insert(key, Guard { directory: Arc::new(directory), deadline, expired: false });
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Ends a guard. True if its deadline had not passed, and so the file system was not thawed by us.
    pub fn unguard(&self, key: &str) -> bool {
        self.lock().remove(key).is_some_and(|guard| !guard.expired)
    }

    /// Watches the deadlines; never returns.
    pub fn watch(&self) -> ! {
        let mut guards = self.lock();
        loop {
            let now = Instant::now();
            for (key, guard) in guards.iter_mut() {
                if guard.expired || guard.deadline > now {
                    continue;
                }
                match self.start_thaw(key.clone(), guard.directory.clone()) {
                    Ok(()) => guard.expired = true,
                    Err(error) => {
                        tracing::error!(key, %error, "no thread can be started to thaw a file system");
                        guard.deadline = now + RETRY_INTERVAL;
                    }
                }
            }
            let next = guards.values().filter(|guard| !guard.expired).map(|guard| guard.deadline).min();
            guards = match next {
                None => self.shared.changed.wait(guards).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let wait = deadline.saturating_duration_since(now);
                    let woken = self.shared.changed.wait_timeout(guards, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn start_thaw(&self, key: String, directory: Arc<OwnedFd>) -> io::Result<()> {
        let guards = self.clone();
        let thread = thread::Builder::new().name("thaw".into());
        thread.spawn(move || guards.thaw_until_done(&key, &directory)).map(|_| ())
    }

    /// Thaws until it was thawed once, or until no late freeze can be expected. The guard of this very
    /// directory then ends; a newer one under the same key stays.
    fn thaw_until_done(&self, key: &str, directory: &Arc<OwnedFd>) {
        tracing::warn!(key, "a file system was frozen beyond its deadline; thawing it");
        let give_up = Instant::now() + LATE_FREEZE_LIMIT;
        while Instant::now() < give_up {
            match thaw(directory.as_fd()) {
                Ok(true) => break,
                Ok(false) => {}
                Err(errno) => tracing::error!(key, %errno, "thawing failed; trying again"),
            }
            let mut guards = self.lock();
            // Whoever ended the guard thaws by itself and has no freeze under way.
            if !guards.get(key).is_some_and(|guard| Arc::ptr_eq(&guard.directory, directory)) {
                return;
            }
            let waited = self.shared.changed.wait_timeout(guards, RETRY_INTERVAL);
            guards = waited.unwrap_or_else(PoisonError::into_inner).0;
            drop(guards);
        }
        let mut guards = self.lock();
        if guards.get(key).is_some_and(|guard| Arc::ptr_eq(&guard.directory, directory)) {
            guards.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Guard>> {
        // The map is whole between any two statements that touch it.
        self.shared.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Freezes the file system of `directory`: its data is written out and changes wait until it is thawed.
/// False if it was frozen already.
///
/// # Errors
/// The kernel's errno.
pub fn freeze(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut unused = 0;
    // SAFETY: the operation ignores its argument.
    match unsafe { rustix::ioctl::ioctl(directory, Updater::<FIFREEZE, i32>::new(&mut unused)) } {
        Ok(()) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Thaws the file system of `directory`; false if it was not frozen.
///
/// # Errors
/// The kernel's errno.
pub fn thaw(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut unused = 0;
    // SAFETY: the operation ignores its argument.
    match unsafe { rustix::ioctl::ioctl(directory, Updater::<FITHAW, i32>::new(&mut unused)) } {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}
