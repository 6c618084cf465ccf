//! The dirty buffer: writes that were answered and are not yet in the log.
//!
//! # Guarantees
//! An entry lies in the buffer before its write is answered, and stays until the log has it, so a successor of a
//! killed process can commit what its predecessor answered. Entries are numbered in write order, without gaps, from 1
//! under each grant; they are freed in order. Records carry the number up to which they complete
//! ([`crate::log::Record::buffer_complete`]); a successor skips to it, so that nothing is replayed over newer data.
//!
//! # Assumptions
//! One process at a time uses a buffer: a successor waits for the old process's death.

mod budget;
mod memory;
mod region;
mod ring;

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

pub use budget::Budget;
pub use memory::MemoryBuffer;
pub use region::{MemoryRegion, Region};
pub use ring::Ring;

use crate::ids::GrantId;

/// A write or a discard, as it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Bytes written at a byte offset; both multiples of the block size.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// A range that reads as zeros from now on; both multiples of the block size.
    Discard {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// Why a buffer could not take or give back an entry.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BufferError {
    /// No room until older entries are freed: wait for the log, then try again.
    #[error("the dirty buffer is full")]
    Full,
    /// The entry is larger than the whole buffer.
    #[error("a write of {len} bytes does not fit a dirty buffer of {capacity} bytes")]
    TooLarge {
        /// Bytes of the entry.
        len: usize,
        /// Bytes of the buffer.
        capacity: usize,
    },
    /// The memory given to the buffer cannot hold even one block.
    #[error("a dirty buffer of {len} bytes is too small; it needs {min} bytes at least")]
    TooSmall {
        /// Bytes of the memory.
        len: usize,
        /// Bytes that it needs.
        min: usize,
    },
    /// A journal belongs to another grant than the buffer is bound to.
    #[error("the journal belongs to grant {found}, not to {grant}")]
    OtherGrant {
        /// The grant that the buffer is bound to.
        grant: GrantId,
        /// The journal's.
        found: GrantId,
    },
    /// Entries are neither in the log, nor in the buffer, nor in the journal.
    #[error(
        "the journal is damaged: it goes on with entry {found} where {first} should follow; moving it away gives up \
         what was flushed to it and is not in the store"
    )]
    Missing {
        /// The first that is missing.
        first: u64,
        /// The one that is there.
        found: u64,
    },
    /// The journal was written with a larger dirty buffer.
    #[error(
        "the journal from entry {number} on does not fit the dirty buffer: give the buffer its earlier size"
    )]
    Outgrown {
        /// The first that does not fit.
        number: u64,
    },
    /// What lies in the buffer is not what was put there.
    #[error("the dirty buffer is damaged at byte {at}: {reason}")]
    Damaged {
        /// Where.
        at: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Where answered writes wait for the log. Implementations copy; none of them blocks, and only [`Self::persist`] waits.
#[async_trait]
pub trait DirtyBuffer: Send + Sync + Debug {
    /// Says which grant the entries belong to. Entries of another grant are dropped (they must never be replayed over
    /// newer data); the return value is how many that were. Numbering goes on after `complete`.
    fn bind(&self, grant: GrantId, complete: u64) -> Result<usize, BufferError>;

    /// What is in the buffer for the bound grant, oldest first, with its numbers.
    fn recover(&self) -> Result<Vec<(u64, Mutation)>, BufferError>;

    /// Adds an entry under the next number and returns that number.
    fn append(&self, mutation: &Mutation) -> Result<u64, BufferError>;

    /// Frees all entries up to and including `sequence`.
    fn free(&self, sequence: u64);

    /// Bytes that entries have room for, with what each takes besides its data.
    fn capacity_bytes(&self) -> u64;

    /// Makes all entries up to `sequence` survive a loss of power of this machine. False if this buffer cannot do that,
    /// or not now: then only the log does.
    async fn persist(&self, _sequence: u64) -> bool {
        false
    }
}
