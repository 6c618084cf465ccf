//! Ctrl-C as an error.
//!
//! [`install`] turns SIGINT, SIGTERM and SIGHUP into one byte in a socket that nobody reads. Every wait of this
//! crate polls that socket too, so an interrupt makes each of them return [`Error::Interrupted`] at once; the
//! error travels up as any other does, and the drop of each value on the way ends what it had started. A second
//! signal ends the process the hard way.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::{Error, Result};

static REQUEST: OnceLock<UnixStream> = OnceLock::new();

/// Catches SIGINT, SIGTERM and SIGHUP from now on. To be called once, first thing in `main`.
pub fn install() -> Result<()> {
    let system = |source| Error::System { what: "catching signals", source };
    let (read, write) = UnixStream::pair().map_err(system)?;
    let second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The order matters: on the first signal the flag is still false when this action looks at it.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&second)).map_err(system)?;
        signal_hook::flag::register(signal, Arc::clone(&second)).map_err(system)?;
        signal_hook::low_level::pipe::register(signal, write.try_clone().map_err(system)?).map_err(system)?;
    }
    REQUEST.get_or_init(|| read);
    Ok(())
}

/// Whether the user has asked to stop.
pub fn requested() -> bool {
    matches!(wait(None, Some(Duration::ZERO), true), Ok(Woken::Interrupted))
}

/// Returns [`Error::Interrupted`] once the user has asked to stop.
pub fn check() -> Result<()> {
    if requested() { Err(Error::Interrupted) } else { Ok(()) }
}

/// Why a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The descriptor became readable.
    Ready,
    /// The time was over.
    TimedOut,
    /// The user asked to stop.
    Interrupted,
}

/// Waits until `fd` is readable, the time is over (never, for `None`), or, if `interruptible`, a signal came.
pub(crate) fn wait(
    fd: Option<BorrowedFd<'_>>,
    limit: Option<Duration>,
    interruptible: bool,
) -> io::Result<Woken> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let request = REQUEST.get().filter(|_| interruptible);
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(2);
        fds.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        fds.extend(request.map(|r| PollFd::from_borrowed_fd(r.as_fd(), PollFlags::IN)));
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(Woken::TimedOut),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let is_ready = fds.iter().map(|f| !f.revents().is_empty()).collect::<Vec<_>>();
        if request.is_some() && is_ready.last() == Some(&true) {
            return Ok(Woken::Interrupted);
        }
        return Ok(Woken::Ready);
    }
}

/// Lets `pause` pass, or returns [`Error::Interrupted`].
pub fn pause(pause: Duration) -> Result<()> {
    match wait(None, Some(pause), true) {
        Ok(Woken::Interrupted) => Err(Error::Interrupted),
        Ok(Woken::TimedOut | Woken::Ready) => Ok(()),
        Err(source) => Err(Error::System { what: "waiting", source }),
    }
}

/// What a condition that is awaited looked like.
#[derive(Debug)]
pub enum Seen<T> {
    /// It holds.
    Reached(T),
    /// It does not hold yet; what was seen instead, for the error.
    NotYet(String),
}

/// Looks every `interval` until the condition holds, for at most `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    interval: Duration,
    mut look: impl FnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look()? {
            Seen::Reached(value) => return Ok(value),
            Seen::NotYet(last) if Instant::now() >= deadline => {
                return Err(Error::NotReached { what: what.into(), limit, last });
            }
            Seen::NotYet(_) => pause(interval)?,
        }
    }
}
