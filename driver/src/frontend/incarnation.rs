//! One process at a time serves a node's volumes.
//!
//! A successor must not begin before its predecessor is dead to the last thread, or two would answer the same
//! requests. The two may live in containers with PID namespaces of their own, where neither can name the other
//! and a pidfd cannot be opened. A lock on a file in the directory that both see says the same thing: the
//! kernel drops it exactly when the last thread has left the descriptor table.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a waiting successor looks. Locks have no event that can be awaited with a time limit.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The right to serve this node's volumes, held until the process ends.
#[derive(Debug)]
pub struct Incarnation {
    _lock: File,
}

/// Why this process may not begin.
#[derive(Debug, thiserror::Error)]
pub enum IncarnationError {
    /// The predecessor lives on.
    #[error("another process still serves this node's volumes after {waited:?} (lock {})", path.display())]
    StillServed {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Incarnation {
    /// Waits at most `limit` for the predecessor's death.
    ///
    /// # Errors
    /// [`IncarnationError::StillServed`] after `limit`: exit and let the container be started again.
    pub async fn begin(run_dir: &Path, limit: Duration) -> Result<Incarnation, IncarnationError> {
        let path = run_dir.join("node.lock");
        let failed = |source| IncarnationError::Lock { path: path.clone(), source };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Incarnation { _lock: file }),
                Err(std::fs::TryLockError::WouldBlock) if started.elapsed() < limit => {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    return Err(IncarnationError::StillServed { path, waited: limit });
                }
                Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_process_waits_for_the_first_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let first = Incarnation::begin(dir.path(), Duration::ZERO).await.unwrap();
        let refused = Incarnation::begin(dir.path(), Duration::from_millis(30)).await;
        assert!(matches!(refused, Err(IncarnationError::StillServed { .. })));
        let (second, ()) =
            tokio::join!(Incarnation::begin(dir.path(), Duration::from_secs(10)), async { drop(first) });
        second.unwrap();
    }
}
