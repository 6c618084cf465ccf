//! How often the store fails, and how.

use std::time::Duration;

use crate::chance::Chance;

/// Failures of each kind, in thousandths of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Done, but the reply is lost.
    pub lost: u64,
    /// Never arrives.
    pub dropped: u64,
    /// Times out and is done much later.
    pub late: u64,
    /// Done twice, the second time much later.
    pub duplicate: u64,
    /// Refused by the store: for want of rights or of space, or for no good reason.
    pub refused: u64,
    /// Takes seconds.
    pub slow: u64,
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Done,
    Lost,
    Dropped,
    /// Done after so long.
    Late(Duration),
    /// Done, and again after so long.
    Duplicate(Duration),
    Denied,
    Full,
    Refused,
}

/// How long a request is waited for.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);
/// When late requests arrive, in milliseconds.
const LATE_MS: std::ops::Range<u64> = 1_000..3 * 3600 * 1000;

impl Faults {
    pub const CALM: Self = Self { lost: 0, dropped: 0, late: 0, duplicate: 0, refused: 0, slow: 0 };

    /// The weather of a run.
    pub fn choose(chance: &Chance) -> Self {
        match chance.among(0..8) {
            0 => Self::CALM,
            1..4 => Self { lost: 10, dropped: 10, late: 10, duplicate: 10, refused: 0, slow: 20 },
            4..7 => Self { lost: 60, dropped: 40, late: 60, duplicate: 40, refused: 0, slow: 100 },
            _ => Self { lost: 30, dropped: 30, late: 30, duplicate: 20, refused: 30, slow: 50 },
        }
    }

    pub fn fate(&self, chance: &Chance) -> Fate {
        let at = chance.among(0..1000);
        let mut below = 0;
        let mut falls = |share: u64| {
            below += share;
            at < below
        };
        if falls(self.lost) {
            Fate::Lost
        } else if falls(self.dropped) {
            Fate::Dropped
        } else if falls(self.late) {
            Fate::Late(chance.delay(LATE_MS))
        } else if falls(self.duplicate) {
            Fate::Duplicate(chance.delay(LATE_MS))
        } else if falls(self.refused) {
            [Fate::Denied, Fate::Full, Fate::Refused][chance.among(0..3) as usize]
        } else {
            Fate::Done
        }
    }

    /// How long a request or a reply is on its way.
    pub fn way(&self, chance: &Chance) -> Duration {
        if chance.hits(self.slow) { chance.delay(100..4_000) } else { chance.delay(1..60) }
    }
}
