//! What the engine is given instead of reaching for it: time and randomness. The store is in [`crate::store`].
//!
//! Waiting goes through `tokio::time`, which a simulation runs on virtual time (`start_paused`); the wall clock and
//! random ids come from here, so that a seed replays a run exactly.

use std::fmt::Debug;
use std::sync::Arc;

/// The wall clock. Informational only (the times of snapshots): no decision that keeps data safe depends on it.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;
}

/// A source of random bytes, fit for keys.
pub trait Entropy: Send + Sync + Debug {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// The environment of an engine.
#[derive(Debug, Clone)]
pub struct Env {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Random bytes.
    pub entropy: Arc<dyn Entropy>,
}

impl Env {
    /// The machine's clock and its cryptographic random source.
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemClock), entropy: Arc::new(SystemEntropy) }
    }
}

#[derive(Debug)]
struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        // A clock before 1970 is a broken clock; zero is as informative as it gets.
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }
}

#[derive(Debug)]
struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes)
            .expect("the system's random source does not fail once the kernel has booted");
    }
}
