//! Garbage collection: what no head, root, snapshot or pin needs is deleted, and what is mostly overwritten is
//! rewritten, also under snapshots that are held.
//!
//! # Expected flow
//! [`maintain`] runs next to an open volume. When enough has been written it makes a *round*: it finds out what is
//! needed ([`mark`]), deletes what two rounds have found unneeded ([`sweep`]), and rewrites segments that are mostly
//! overwritten ([`relocate`]): those that are worth it ([`choose`]), as far as the head or a snapshot needs them
//! ([`gather`]). Snapshots then get new maps ([`generations`]). A round that leaves garbage is followed by another after
//! the grace time, and so is the deletion of some part of the snapshots; then an idle volume makes no requests.
//! [`collect_detached`] does the same for a volume that is attached nowhere, and [`reclaim`] removes a deleted one.
//!
//! # Guarantees
//! Nothing is deleted that the head, the two newest roots, a snapshot or a pinned snapshot reaches, or that any session
//! or run may still make visible; see [`sweep`] for the rule.
//!
//! # Assumptions
//! Objects of ancestors are protected by the pins on them, in their own volumes.
//!
//! # Crash behaviour
//! Every step can be repeated. A crash leaves garbage, for the next session's rounds.

mod choose;
mod detached;
mod differences;
mod error;
mod gather;
mod generations;
mod history;
mod host;
mod mark;
mod pins;
mod reclaim;
mod relocate;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use detached::{Detached, collect_detached};
pub use error::GcError;
pub use reclaim::reclaim;

use crate::ids::{ObjectId, RecordNumber};
use crate::volume::{Volume, VolumeError, Work};
use differences::Differences;
use relocate::Known;
use sweep::Sweeper;

/// When a round is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// After so many bytes of data written; after more if the volume is large, since a round reads its map.
    pub bytes: u64,
    /// After so many records.
    pub records: u64,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { bytes: 256 << 20, records: 4096 }
    }
}

/// A round is due when this part of the live data has been written; or more than this part of the snapshots deleted, and
/// the grace time has passed.
const PROPORTION: u64 = 32;

/// What a round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// Objects deleted.
    pub deleted: u64,
    /// Objects with data or pages that wait for the grace time, or for the end of who wrote them.
    pub left: u64,
    /// Bytes of blocks rewritten.
    pub moved_bytes: u64,
    /// Stored bytes of the data that the head names, and snapshots without a pin.
    pub live_bytes: u64,
    /// Those snapshots.
    pub snapshots: u64,
}

/// Collects the garbage of one session's volume.
#[derive(Debug)]
pub struct Collector {
    volume: Volume,
    sweeper: Sweeper,
    differences: Differences,
    /// Segments that could not be moved since they are damaged. They stay where they are.
    damaged: BTreeSet<ObjectId>,
    /// What the session had written when the last round ended.
    seen: Work,
    /// Up to here maps of snapshots may have been switched; none until the first round.
    switched: Option<RecordNumber>,
}

impl Collector {
    /// A collector for an open volume. One session has one.
    pub fn new(volume: Volume) -> Self {
        let (sweeper, differences) = (Sweeper::new(volume.clone()), Differences::default());
        let (damaged, seen) = (BTreeSet::new(), Work::default());
        Self { volume, sweeper, differences, damaged, seen, switched: None }
    }

    /// One round.
    pub async fn round(&mut self) -> Result<Round, GcError> {
        let begun = self.volume.work();
        let written_bytes = begun.bytes.saturating_sub(self.seen.bytes);
        let mut swept = self.sweeper.sweep(&mut self.differences).await?;
        // What other sessions switched lies before the newest root.
        let switched = *self.switched.get_or_insert(swept.newest);
        let newest = swept.cut.control.snapshots.keys().next_back();
        let held = newest.map_or(RecordNumber(0), |newest| switched.max(RecordNumber(newest.0)));
        let known = Known { differences: &mut self.differences, damaged: &mut self.damaged };
        let relocated = relocate::relocate(&self.volume, &mut swept, known, held, written_bytes).await?;
        self.switched = self.switched.max(relocated.switched);
        // What the round itself has written calls for no other; snapshots deleted meanwhile do.
        self.seen = Work { deletions: begun.deletions, ..self.volume.work() };
        let live_bytes = swept.needed.used.values().map(|usage| usage.live_bytes).sum();
        let (deleted, left) = (swept.deleted, swept.left);
        let snapshots = swept.needed.snapshots.len() as u64;
        Ok(Round { deleted, left, moved_bytes: relocated.bytes, live_bytes, snapshots })
    }
}

/// When garbage found now may be deleted, with room for clocks that run apart.
fn after_grace(grace: Duration) -> Instant {
    Instant::now() + grace + grace / 16
}

/// Collects an open volume's garbage until its session is over; the answer says why it is. Each round waits for a permit of
/// `turns`: what rounds have in memory is bounded by how many of a process's volumes make one at once.
pub async fn maintain(volume: Volume, rhythm: Rhythm, turns: Arc<Semaphore>) -> VolumeError {
    let mut collector = Collector::new(volume.clone());
    let mut again: Option<Instant> = None;
    let mut bytes = rhythm.bytes;
    let mut deletions = 0;
    loop {
        let seen = collector.seen;
        let enough =
            |work: Work| work.bytes - seen.bytes >= bytes || work.records - seen.records >= rhythm.records;
        let deleted = |work: Work| again.is_none() && work.deletions - seen.deletions > deletions;
        let due = tokio::select! {
            biased;
            outcome = volume.worked(|work| enough(work) || deleted(work)) => {
                outcome.map(|()| enough(volume.work()))
            }
            () = sleep_until(again) => Ok(true),
        };
        match due {
            Ok(true) => again = None,
            Ok(false) => {
                again = Some(after_grace(volume.limits().grace));
                continue;
            }
            Err(over) => return over,
        }
        let turn = turns.acquire().await;
        let round = collector.round().await;
        drop(turn);
        match round {
            Ok(round) => {
                tracing::debug!(volume = %volume.id(), ?round, "collected garbage");
                bytes = rhythm.bytes.max(round.live_bytes / PROPORTION);
                deletions = round.snapshots / PROPORTION;
                if round.left > 0 || round.moved_bytes > 0 {
                    again = Some(after_grace(volume.limits().grace));
                }
            }
            Err(error) => {
                if let Err(over) = volume.check() {
                    return over;
                }
                tracing::warn!(volume = %volume.id(), %error, "collecting garbage waits");
                collector.seen = volume.work();
                again = Some(after_grace(volume.limits().grace));
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
