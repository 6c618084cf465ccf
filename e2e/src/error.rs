//! What can go wrong around a test, told so that a person knows what to do.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the surroundings: never of the product under test.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be executed at all.
    #[error("{program} cannot be started: {source}")]
    Start {
        /// Its name, as it was looked up.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The program ended with something else than success.
    #[error("{command}: {status}\n{output}")]
    Failed {
        /// Program and arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// The program did not end within its limit and was killed.
    #[error("{command}: not done after {limit:?}, killed\n{output}")]
    TimedOut {
        /// Program and arguments.
        command: String,
        /// The limit that it had.
        limit: Duration,
        /// The end of what it wrote.
        output: String,
    },
    /// A condition was awaited and did not come true.
    #[error("{what}: not so after {limit:?}; last seen: {last}")]
    NotReached {
        /// The condition.
        what: String,
        /// How long it was awaited.
        limit: Duration,
        /// What was seen instead.
        last: String,
    },
    /// A background process ended although it was still needed.
    #[error("{name} ended by itself ({status}); its log: {log}\n{output}")]
    DaemonEnded {
        /// Which one.
        name: String,
        /// How it ended.
        status: String,
        /// Where its log is.
        log: PathBuf,
        /// The end of its log.
        output: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A file or directory could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The operating system refused a request that concerns no particular file.
    #[error("{what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Debian packages are needed and cannot be installed by this user or on this system.
    #[error("{purpose} needs {packages}: install them as root with `apt-get install {packages}`")]
    MissingPackages {
        /// What they are for.
        purpose: String,
        /// Their names, separated by spaces.
        packages: String,
    },
    /// A program is needed that no Debian package of ours provides.
    #[error("{purpose} needs `{program}` in the PATH: {hint}")]
    MissingProgram {
        /// What it is for.
        purpose: String,
        /// Its name.
        program: &'static str,
        /// Where to get it.
        hint: &'static str,
    },
    /// The machine lacks something that cannot be installed.
    #[error("{0}")]
    Machine(String),
    /// A cluster was not deleted, or not whole.
    #[error("{reason}\ncluster {name} has left {left}; `cargo xtask cluster down {name}` tries again")]
    ClusterStays {
        /// Its name.
        name: String,
        /// What is still there.
        left: String,
        /// Why.
        reason: Box<Error>,
    },
    /// Some program answered in a form that is not understood.
    #[error("{from} answered something unexpected: {answer}")]
    Answer {
        /// Who.
        from: String,
        /// What.
        answer: String,
    },
}

/// Attaches the file that an [`io::Error`] is about.
pub trait Named<T> {
    /// Turns an I/O result into ours.
    fn named(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File { action, path: path.into(), source })
    }
}
