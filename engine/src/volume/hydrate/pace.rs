//! What the hydrations of a process share.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, Instant};

/// Steps of all volumes that are under way together: bounds memory, to some 16 MiB for each and what the allocator keeps
/// of that (`driver/tests/crashes/crowd.rs`).
pub(super) const STEPS: usize = 8;

/// How fast the volumes of a process are hydrated together.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    steps: Arc<Semaphore>,
    /// When what was charged so far will have been due.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most `bytes_per_second`, averaged over some steps; 0 for no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, steps: Arc::new(Semaphore::new(STEPS)), paid: Mutex::default() }
    }

    /// Waits until a step may begin. It goes on as long as it keeps what this returns; none if it must not.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let turn = Arc::clone(&self.steps).acquire_owned().await.ok()?;
        loop {
            let paid = *self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            match paid {
                Some(paid) if paid > Instant::now() => tokio::time::sleep_until(paid).await,
                Some(_) | None => return Some(turn),
            }
        }
    }

    /// Notes that a step of so many bytes begins.
    pub(super) fn charge(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let due = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *paid = Some(paid.map_or(now, |paid| paid.max(now)) + due);
    }
}
