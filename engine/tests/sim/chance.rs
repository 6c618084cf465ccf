//! Everything that is random, from one seed; and clocks.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_engine::env::{Clock, Entropy, Env};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

/// A stream of choices. Clones share it.
#[derive(Debug, Clone)]
pub struct Chance {
    rng: Arc<Mutex<ChaCha8Rng>>,
}

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self { rng: Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed))) }
    }

    fn rng(&self) -> MutexGuard<'_, ChaCha8Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of its own.
    pub fn fork(&self) -> Self {
        let seed = self.rng().random();
        Self::new(seed)
    }

    pub fn among(&self, range: Range<u64>) -> u64 {
        self.rng().random_range(range)
    }

    /// True so many times in a thousand.
    pub fn hits(&self, per_mille: u64) -> bool {
        self.among(0..1000) < per_mille
    }

    pub fn fill_bytes(&self, bytes: &mut [u8]) {
        self.rng().fill(bytes);
    }

    /// A time in milliseconds, short ones as likely as long ones: the magnitude is chosen first.
    pub fn delay(&self, millis: Range<u64>) -> Duration {
        let (low, high) = ((millis.start.max(1) as f64).ln(), (millis.end as f64).ln());
        let at = self.rng().random_range(low..high);
        Duration::from_millis(at.exp() as u64)
    }
}

impl Entropy for Chance {
    fn fill(&self, bytes: &mut [u8]) {
        self.fill_bytes(bytes);
    }
}

/// A wall clock that runs with virtual time and is wrong by a constant.
#[derive(Debug)]
pub struct SimClock {
    start: Instant,
    begins_ms: u64,
}

/// Wall-clock time at the beginning of every run.
pub const BEGINS_MS: u64 = 1_800_000_000_000;

impl SimClock {
    pub fn new(start: Instant, wrong_by_ms: u64) -> Self {
        Self { start, begins_ms: BEGINS_MS + wrong_by_ms }
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.begins_ms + self.start.elapsed().as_millis() as u64
    }
}

/// An environment for one process.
pub fn env(chance: &Chance, start: Instant) -> Env {
    let wrong_by_ms = chance.among(0..600_000);
    Env { clock: Arc::new(SimClock::new(start, wrong_by_ms)), entropy: Arc::new(chance.fork()) }
}
