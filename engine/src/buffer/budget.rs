//! Memory that the dirty buffers of a process share, so that many volumes do not take each as much as one may.
//!
//! # Guarantees
//! - A buffer may hold [`OWN_BYTES`], or one entry, whatever the others hold. So a write that finds no room waits for
//!   the log to take entries of its own volume, never for another volume.
//! - What buffers hold beyond that is within the budget, all together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What each buffer may hold at any time.
const OWN_BYTES: u64 = 2 << 20;

/// Bytes for the entries of all dirty buffers of a process.
#[derive(Debug)]
pub struct Budget {
    bytes: u64,
    /// What entries take.
    used: AtomicU64,
    /// What the system has given: entries, and what freed ones have left behind.
    touched: AtomicU64,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, used: AtomicU64::new(0), touched: AtomicU64::new(0) })
    }

    /// No bound but that of each buffer.
    pub fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX)
    }
}

/// What one buffer has of a budget. It goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    used: u64,
    touched: u64,
}

impl Share {
    /// The share of a buffer that is there already, with entries of `used` bytes, in memory of `touched` bytes.
    pub(super) fn of(budget: Arc<Budget>, used: u64, touched: u64) -> Self {
        budget.used.fetch_add(used, Ordering::Relaxed);
        budget.touched.fetch_add(touched, Ordering::Relaxed);
        Self { budget, used, touched }
    }

    /// Takes room for an entry, if there is room.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        let used = &self.budget.used;
        if self.used == 0 || self.used + bytes <= OWN_BYTES {
            used.fetch_add(bytes, Ordering::Relaxed);
        } else {
            let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.budget.bytes);
            if used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
                return false;
            }
        }
        self.used += bytes;
        true
    }

    /// Gives back what freed entries took.
    pub(super) fn give(&mut self, bytes: u64) {
        self.used -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes how much memory the buffer has now.
    pub(super) fn touch(&mut self, bytes: u64) {
        match bytes.checked_sub(self.touched) {
            Some(more) => self.budget.touched.fetch_add(more, Ordering::Relaxed),
            None => self.budget.touched.fetch_sub(self.touched - bytes, Ordering::Relaxed),
        };
        self.touched = bytes;
    }

    /// Whether all buffers together have more memory than the budget has for their entries.
    pub(super) fn is_tight(&self) -> bool {
        self.budget.touched.load(Ordering::Relaxed) > self.budget.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.used, Ordering::Relaxed);
        self.budget.touched.fetch_sub(self.touched, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn each_buffer_has_its_own_and_all_together_the_budget() {
        let budget = Budget::new(6 * MIB);
        let mut shares: Vec<Share> = (0..4).map(|_| Share::of(Arc::clone(&budget), 0, 0)).collect();
        assert!(shares[0].take(2 * MIB) && shares[0].take(4 * MIB), "one may have all of it");
        assert!(!shares[0].take(1));
        assert!(shares[1].take(MIB) && shares[1].take(MIB), "another has its own all the same");
        assert!(!shares[1].take(1));
        assert!(shares[2].take(3 * MIB), "one entry always fits");
        assert!(!shares[2].take(1));
        shares[0].give(5 * MIB);
        drop(shares.remove(2));
        assert!(shares[1].take(3 * MIB), "what was given back and dropped is there for others");
        assert!(!shares[1].take(MIB + 1));
    }

    #[test]
    fn memory_is_tight_when_all_have_touched_more_than_the_budget() {
        let budget = Budget::new(6 * MIB);
        let mut first = Share::of(Arc::clone(&budget), MIB, 4 * MIB);
        let mut second = Share::of(Arc::clone(&budget), 0, 0);
        second.touch(3 * MIB);
        assert!(first.is_tight() && second.is_tight());
        first.touch(3 * MIB);
        assert!(!first.is_tight());
        first.touch(9 * MIB);
        drop(first);
        assert!(!second.is_tight());
    }
}
