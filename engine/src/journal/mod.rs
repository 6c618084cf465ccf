//! The journal: the unflushed end of a volume on a disk of its node, for flushes that do not wait for the store.
//!
//! A journal is a durable tail of a grant's dirty buffer: the same entries under the same numbers, in *frames*. A flush
//! writes what is neither in the log nor in the journal yet, and syncs once; flushes that come meanwhile share the next
//! frame. The log follows behind, and frees entries here as it does in the dirty buffer. [`JournaledBuffer`] joins the
//! two, so that the volume above knows one buffer.
//!
//! # Guarantees
//! - [`Journal::persist`] is true only if every entry up to the asked number is in the log, or in the journal and synced.
//! - What is found again is a gapless run of entries that begins right after what the log has, in the order and with the
//!   bytes in which they were answered. It holds every entry that `persist` was ever true for and the log has not.
//! - Entries of one grant are never handed to another: [`JournalError::OtherGrant`].
//! - Bounded: the disk never changes its size; a flush whose entries find no room, or that comes while the oldest frame
//!   has waited too long for the log, is told to wait for the log instead. A disk that fails, or does not answer in
//!   time, is not used again until the volume is opened again; `persist` is false from then on.
//! - With a data key frames are encrypted as all objects are: under a key of their own, from an id used once.
//!
//! # Assumptions
//! [`JournalDisk`] keeps its promises. One process at a time has a journal open. The log frees entries in order, and only
//! what it has durably.
//!
//! # Crash behaviour
//! Frames lie in a ring behind two header slots and begin at whole blocks, so that writing one never touches another. A
//! header names the place of the oldest frame that is still needed; each frame names the frame before it by its random
//! id. The first thing that is no intact frame with the right predecessor and place is the end: a torn frame, one
//! that was written behind a torn one, and a leftover of an earlier lap are never taken for one. What is found is made
//! durable again before anything is built on it, since it may so far be in the system's memory only; no header is
//! written before the one in the other slot is durable. Frames are overwritten only after a header that no longer needs
//! them is durable.

mod buffer;
mod directory;
mod disk;
mod files;
mod header;
mod leftover;
mod open;
mod writer;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub use buffer::JournaledBuffer;
pub use directory::{Ended, JournalName, Journals, JournalsError};
pub use disk::{JournalDisk, JournalFile};
pub use files::JournalDir;
use header::{Header, Place};
pub use leftover::{SettleError, Settled};

use crate::buffer::Mutation;
use crate::codec::{CodecError, DataKey};
use crate::env::Env;
use crate::ids::{BLOCK_BYTES, GrantId, VolumeId};
use crate::log::Log;

/// Bytes of the smallest disk: the headers, and room for a few frames.
pub const JOURNAL_BYTES_MIN: u64 = 64 << 10;

/// Bytes of entries after which a frame ends: a small part of the ring, and bounded.
fn frame_bytes(capacity: u64) -> usize {
    (capacity / 16).min(1 << 20) as usize
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk failed.
    #[error("the journal of volume {volume} cannot be read or written: {source}")]
    Disk {
        /// The volume.
        volume: VolumeId,
        /// Why.
        source: std::io::Error,
    },
    /// It was made for another volume or grant, and must not be replayed here.
    #[error("the journal of volume {volume} belongs to grant {found} of volume {owner}")]
    OtherGrant {
        /// The volume.
        volume: VolumeId,
        /// Whose it is.
        owner: VolumeId,
        /// Under which grant.
        found: GrantId,
    },
    /// Neither header is whole: what the journal held cannot be found.
    #[error("the journal of volume {volume} is damaged: neither of its headers matches its checksum")]
    Damaged {
        /// The volume.
        volume: VolumeId,
    },
    /// A later version wrote it.
    #[error("the journal of volume {volume} was written by a newer Holdfast: upgrade this one")]
    Newer {
        /// The volume.
        volume: VolumeId,
    },
    /// A frame says what this version does not know, or belongs to a pool that is encrypted otherwise.
    #[error(transparent)]
    Frame(#[from] CodecError),
    /// The disk is too small.
    #[error("a journal of {len_bytes} bytes is too small; it needs {} bytes at least", JOURNAL_BYTES_MIN)]
    TooSmall {
        /// Its size.
        len_bytes: u64,
    },
}

/// Whose a journal is.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The volume.
    pub volume: VolumeId,
    /// The grant.
    pub grant: GrantId,
    /// The volume's data key.
    pub key: Option<DataKey>,
    /// Randomness.
    pub env: Env,
}

impl Owner {
    /// Whoever has the volume of `log` under `grant`.
    pub fn of(log: &Log, grant: GrantId) -> Self {
        Self { volume: log.volume, grant, key: log.key.clone(), env: log.env.clone() }
    }
}

/// The rhythm of a journal.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long the oldest frame may wait for the log until flushes wait for it too.
    pub log: Duration,
    /// How long a write to the disk, or a read of it, may take until the journal is given up.
    pub disk: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { log: Duration::from_secs(10), disk: Duration::from_secs(10) }
    }
}

/// What a journal holds that the log has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    /// Entries.
    pub entries: u64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// How long the oldest has been here. What was found at opening counts from then.
    pub age: Duration,
}

/// A frame on the disk.
#[derive(Debug, Clone, Copy)]
struct Laid {
    first: u64,
    last: u64,
    /// Where it begins.
    begin: Place,
    /// Where the next one begins.
    end: Place,
    since: Instant,
}

#[derive(Debug)]
struct State {
    /// The header in force on the disk.
    header: Header,
    /// Where the next frame goes.
    head: Place,
    /// Frames that hold entries which the log has not, oldest first.
    frames: VecDeque<Laid>,
    /// Entries that are neither in a frame nor in the log, oldest first.
    pending: VecDeque<(u64, Mutation)>,
    /// Entries that were found at opening.
    found: Vec<(u64, Mutation)>,
    /// Entries up to this number are in the log.
    freed: u64,
    /// The highest number that a flush waits for.
    wanted: u64,
    /// Whether flushes are to end here. Else the journal only holds what it has, until the log has it.
    persisting: bool,
}

impl State {
    /// The place up to which frames are no longer needed.
    fn tail(&self) -> Place {
        self.frames.front().map_or(self.head, |frame| frame.begin)
    }

    /// The number of the newest entry in a frame.
    fn last_laid(&self) -> u64 {
        self.frames.back().map_or(0, |frame| frame.last)
    }

    fn free(&mut self, number: u64) {
        self.freed = self.freed.max(number);
        while self.frames.front().is_some_and(|frame| frame.last <= self.freed) {
            self.frames.pop_front();
        }
        while self.pending.front().is_some_and(|(number, _)| *number <= self.freed) {
            self.pending.pop_front();
        }
    }
}

/// How far the journal has come.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Entries up to this number are in the log, or here and synced.
    durable: u64,
    /// How often flushes were told to wait for the log, for want of room.
    refusals: u64,
    /// Whether the disk has failed.
    failed: bool,
}

#[derive(Debug)]
struct Shared {
    owner: Owner,
    disk: Arc<dyn JournalDisk>,
    patience: Patience,
    /// Bytes for frames.
    capacity: u64,
    state: Mutex<State>,
    /// Rings when a flush waits.
    bell: Notify,
    progress: watch::Sender<Progress>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    _writer: AbortOnDropHandle<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the disk up; flushes that wait, and all later ones, are told.
    fn fail(&self, reason: &str) {
        if !self.progress.borrow().failed {
            tracing::warn!(
                volume = %self.owner.volume, reason,
                "the journal is given up: flushes wait for the store until the volume is opened again"
            );
        }
        self.state().pending.clear();
        self.progress.send_modify(|progress| progress.failed = true);
    }
}

impl Journal {
    /// The grant whose entries it holds.
    pub fn grant(&self) -> GrantId {
        self.shared.owner.grant
    }

    /// What was found at opening, oldest first; gives it once. Entries that the log had by then may be among it.
    fn take_found(&self) -> Vec<(u64, Mutation)> {
        std::mem::take(&mut self.shared.state().found)
    }

    /// Says what the buffer holds, when it is bound or when flushes begin to end here, and that the log has everything
    /// up to `complete`.
    fn begin(&self, complete: u64, entries: Vec<(u64, Mutation)>) {
        let mut state = self.shared.state();
        state.free(complete);
        let after = state.last_laid().max(complete);
        state.pending = entries.into_iter().filter(|(number, _)| *number > after).collect();
        self.shared.progress.send_modify(|progress| progress.durable = progress.durable.max(after));
    }

    /// Takes an entry that the buffer has taken under `number`.
    fn append(&self, number: u64, mutation: &Mutation) {
        let mut state = self.shared.state();
        if state.persisting && !self.shared.progress.borrow().failed {
            state.pending.push_back((number, mutation.clone()));
        }
    }

    /// Lets go of all entries up to `number`: the log has them.
    fn free(&self, number: u64) {
        self.shared.state().free(number);
        self.shared.progress.send_modify(|progress| progress.durable = progress.durable.max(number));
    }

    /// Makes all entries up to `number` survive a loss of power. False if only the log can do that now: the journal is
    /// full, its oldest frame waits too long, or its disk has failed.
    pub async fn persist(&self, number: u64) -> bool {
        let mut board = self.shared.progress.subscribe();
        let Progress { durable, refusals, .. } = *board.borrow_and_update();
        if durable >= number {
            return true;
        }
        {
            let mut state = self.shared.state();
            let late = |frame: &Laid| frame.since.elapsed() > self.shared.patience.log;
            if !state.persisting || state.frames.front().is_some_and(late) {
                return false;
            }
            state.wanted = state.wanted.max(number);
        }
        self.shared.bell.notify_one();
        let done = |now: &Progress| now.durable >= number || now.failed || now.refusals > refusals;
        // The sender lives as long as `self`.
        board.wait_for(done).await.is_ok_and(|now| now.durable >= number)
    }

    /// Flushes wait for the log from now on; what lies here stays until the log has it.
    fn retire(&self) {
        let mut state = self.shared.state();
        state.persisting = false;
        state.pending.clear();
        drop(state);
        self.shared.progress.send_modify(|progress| progress.refusals += 1);
    }

    /// Flushes end here again.
    fn resume(&self) {
        self.shared.state().persisting = true;
    }

    /// What it holds that the log has not.
    pub fn waiting(&self) -> Waiting {
        let state = self.shared.state();
        let Some(oldest) = state.frames.front() else { return Waiting::default() };
        Waiting {
            entries: state.last_laid() + 1 - oldest.first.max(state.freed + 1),
            bytes: state.head.position - state.tail().position,
            age: oldest.since.elapsed(),
        }
    }

    /// Whether flushes end here.
    fn works(&self) -> bool {
        self.shared.state().persisting && !self.shared.progress.borrow().failed
    }
}

/// Bytes that a frame takes on the disk.
fn laid_bytes(frame_bytes: u64) -> u64 {
    frame_bytes.next_multiple_of(BLOCK_BYTES)
}

#[cfg(test)]
pub(crate) mod tests;
