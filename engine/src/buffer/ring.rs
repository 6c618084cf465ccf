//! A dirty buffer in a [`Region`]: entries one after the other, in a ring.
//!
//! # Layout
//! All numbers are little-endian. Two header slots of 64 bytes, written in turn: magic `HOLDRING`, generation u64,
//! grant 16 bytes, epoch u64, freed u64 (the number up to which entries are freed), tail u64 (the *position* of the
//! entry after that), CRC-32C u32 of all that, zeros. The rest is the ring. A position counts all bytes ever appended;
//! it lies in the ring at position modulo the ring's size. An entry: epoch u64, number u64, position u64, kind u32
//! (1 write, 2 discard), CRC-32C u32 of the data, offset u64, len u64, CRC-32C u32 of all that, u32 zero; then the data
//! of a write, filled up to 8 bytes.
//!
//! # Guarantees
//! - An entry is in the ring before [`DirtyBuffer::append`] returns its number, and stays until it is freed.
//! - [`DirtyBuffer::recover`] yields consecutive numbers; what it yields is byte for byte what was appended.
//! - All rings of a [`Budget`] together hold what it allows. What freed entries leave behind goes back to the system
//!   when the ring is empty, or memory is tight.
//!
//! # Assumptions
//! One process at a time uses the region, through one [`Ring`]. The region behaves as [`Region`] says.
//!
//! # Crash behaviour
//! A crash at any byte of any write leaves every entry whole or absent: an entry counts only if it has the number,
//! position and epoch that the one before it asks for and both checksums match, so neither a torn one nor a leftover
//! of an earlier lap is taken for one. The header is written to the slot that is not in force, so a torn header leaves
//! the one before it: a free or a bind has happened or has not. An entry may be found whose append had not returned:
//! a write under way at a crash may happen or not.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::budget::Share;
use super::{Budget, BufferError, DirtyBuffer, Mutation, Region};
use crate::ids::GrantId;

const MAGIC: [u8; 8] = *b"HOLDRING";
const SLOT_BYTES: usize = 64;
const RING_START: usize = 2 * SLOT_BYTES;
const ENTRY_BYTES: usize = 56;
/// Entries begin at multiples of this.
const ALIGN: usize = 8;
/// Freed memory is given back when it is this part of the ring: that is a call to the system, and its pages are made anew.
const RELEASED_PARTS: u64 = 64;
/// No number or position in a header is larger: a buffer does not live that long, and sums stay within 64 bits.
const NUMBER_MAX: u64 = 1 << 62;

const KIND_WRITE: u32 = 1;
const KIND_DISCARD: u32 = 2;

/// A dirty buffer in a region of memory.
#[derive(Debug)]
pub struct Ring {
    region: Arc<dyn Region>,
    state: Mutex<State>,
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Header {
    generation: u64,
    grant: GrantId,
    /// Grows with each bind to another grant, so that entries of different grants differ.
    epoch: u64,
    freed: u64,
    tail: u64,
}

#[derive(Debug)]
struct State {
    header: Header,
    /// The end of each entry that is not freed, by position, oldest first.
    ends: VecDeque<u64>,
    /// The memory before this position was given back.
    released: u64,
    share: Share,
}

impl State {
    /// Where the next entry goes.
    fn head(&self) -> u64 {
        self.ends.back().copied().unwrap_or(self.header.tail)
    }

    fn next_number(&self) -> u64 {
        self.header.freed + self.ends.len() as u64 + 1
    }
}

/// An entry without its data.
#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: u32,
    data_crc: u32,
    offset: u64,
    len: u64,
}

impl Entry {
    fn data_len(&self) -> u64 {
        if self.kind == KIND_WRITE { self.len } else { 0 }
    }

    /// Bytes that it takes in the ring; none if no ring is so large.
    fn bytes(&self) -> Option<u64> {
        self.data_len().checked_next_multiple_of(ALIGN as u64)?.checked_add(ENTRY_BYTES as u64)
    }
}

impl Ring {
    /// Bytes of the smallest region: the headers, and one entry of one block.
    pub const REGION_BYTES_MIN: usize = RING_START + ENTRY_BYTES + crate::ids::BLOCK_BYTES as usize;

    /// Takes over what lies in `region`; one that is all zero is an empty buffer. Its entries count against `budget`.
    pub fn open(region: Arc<dyn Region>, budget: &Arc<Budget>) -> Result<Self, BufferError> {
        if region.len() < Self::REGION_BYTES_MIN {
            return Err(BufferError::TooSmall { len: region.len(), min: Self::REGION_BYTES_MIN });
        }
        let header = read_header(&*region)?;
        let share = Share::of(Arc::clone(budget), 0, 0);
        let state = State { header, ends: VecDeque::new(), released: 0, share };
        let ring = Self { region, state: Mutex::new(state) };
        {
            let mut state = ring.state();
            while let Some((_, end, _)) = ring.entry(&state.header, state.next_number(), state.head()) {
                state.ends.push_back(end);
            }
            // What a predecessor has given back is not known.
            state.released = state.head().saturating_sub(ring.capacity());
            let (used, touched) = (state.head() - state.header.tail, ring.touched(&state));
            state.share = Share::of(Arc::clone(budget), used, touched);
        }
        Ok(ring)
    }

    /// Bytes of memory that the ring has.
    fn touched(&self, state: &State) -> u64 {
        (state.head() - state.released).min(self.capacity())
    }

    /// Gives back the memory of freed entries, if it is worth it, and nothing is left or all rings have too much.
    fn release(&self, state: &mut State) {
        let from = state.released.max(state.head().saturating_sub(self.capacity()));
        let bytes = state.header.tail - from;
        if bytes < self.capacity() / RELEASED_PARTS || !(state.ends.is_empty() || state.share.is_tight()) {
            return;
        }
        let (at, first) = self.split(from, bytes as usize);
        self.region.release(at, first);
        if first < bytes as usize {
            self.region.release(RING_START, bytes as usize - first);
        }
        state.released = state.header.tail;
        let touched = self.touched(state);
        state.share.touch(touched);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn capacity(&self) -> u64 {
        // Whole steps of the alignment only, so that no entry begins at an odd place.
        ((self.region.len() - RING_START) / ALIGN * ALIGN) as u64
    }

    /// Copies out of the ring at `position`, around its end.
    fn read(&self, position: u64, bytes: &mut [u8]) {
        let (at, first) = self.split(position, bytes.len());
        let (before, after) = bytes.split_at_mut(first);
        self.region.read_at(at, before);
        if !after.is_empty() {
            self.region.read_at(RING_START, after);
        }
    }

    /// Copies into the ring at `position`, around its end.
    fn write(&self, position: u64, bytes: &[u8]) {
        let (at, first) = self.split(position, bytes.len());
        let (before, after) = bytes.split_at(first);
        self.region.write_at(at, before);
        if !after.is_empty() {
            self.region.write_at(RING_START, after);
        }
    }

    /// Where `position` lies in the region, and how many of `len` bytes fit before the ring's end.
    fn split(&self, position: u64, len: usize) -> (usize, usize) {
        let at = (position % self.capacity()) as usize;
        (RING_START + at, len.min(self.capacity() as usize - at))
    }

    /// The entry `number` at `position`, where it ends, and its data, if a whole one lies there.
    fn entry(&self, header: &Header, number: u64, position: u64) -> Option<(Entry, u64, Bytes)> {
        let mut raw = [0; ENTRY_BYTES];
        self.read(position, &mut raw);
        let entry = Entry {
            kind: u32_at(&raw, 24),
            data_crc: u32_at(&raw, 28),
            offset: u64_at(&raw, 32),
            len: u64_at(&raw, 40),
        };
        let is_next =
            u64_at(&raw, 0) == header.epoch && u64_at(&raw, 8) == number && u64_at(&raw, 16) == position;
        let is_whole = u32_at(&raw, 48) == crc_fast::crc32_iscsi(&raw[..48]);
        // After the checksum, so that a length is believed only if it was written as such.
        if !is_next || !is_whole {
            return None;
        }
        let end = position.checked_add(entry.bytes()?).filter(|end| *end <= header.tail + self.capacity())?;
        let mut data = vec![0; entry.data_len() as usize];
        self.read(position + ENTRY_BYTES as u64, &mut data);
        (crc_fast::crc32_iscsi(&data) == entry.data_crc).then(|| (entry, end, data.into()))
    }

    /// Puts a header with the next generation in force.
    fn put_header(&self, state: &mut State, header: Header) {
        let header = Header { generation: state.header.generation + 1, ..header };
        let mut raw = [0; SLOT_BYTES];
        raw[..8].copy_from_slice(&MAGIC);
        raw[8..16].copy_from_slice(&header.generation.to_le_bytes());
        raw[16..32].copy_from_slice(&header.grant.0);
        raw[32..40].copy_from_slice(&header.epoch.to_le_bytes());
        raw[40..48].copy_from_slice(&header.freed.to_le_bytes());
        raw[48..56].copy_from_slice(&header.tail.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&raw[..56]);
        raw[56..60].copy_from_slice(&crc.to_le_bytes());
        self.region.write_at((header.generation % 2) as usize * SLOT_BYTES, &raw);
        state.header = header;
    }

    /// Frees entries up to `number`, which may be ahead of all that was appended.
    fn free_to(&self, state: &mut State, number: u64) {
        if number <= state.header.freed {
            return;
        }
        let freed = ((number - state.header.freed) as usize).min(state.ends.len());
        let tail = state.ends.drain(..freed).next_back().unwrap_or(state.header.tail);
        state.share.give(tail - state.header.tail);
        // The header first: were it torn, the entries are still there.
        self.put_header(state, Header { freed: number, tail, ..state.header });
    }
}

impl DirtyBuffer for Ring {
    fn bind(&self, grant: GrantId, complete: u64) -> Result<usize, BufferError> {
        if complete > NUMBER_MAX {
            return Err(BufferError::Damaged { at: 0, reason: "the log has more entries than there can be" });
        }
        let mut state = self.state();
        if state.header.grant != grant {
            let dropped = state.ends.len();
            let (epoch, tail) = (state.header.epoch + 1, state.head());
            state.ends.clear();
            let dropped_bytes = tail - state.header.tail;
            state.share.give(dropped_bytes);
            self.put_header(&mut state, Header { grant, epoch, freed: complete, tail, generation: 0 });
            return Ok(dropped);
        }
        if complete < state.header.freed {
            return Err(BufferError::Damaged {
                at: 0,
                reason: "entries were freed that the log does not have",
            });
        }
        self.free_to(&mut state, complete);
        Ok(0)
    }

    fn recover(&self) -> Result<Vec<(u64, Mutation)>, BufferError> {
        let state = self.state();
        let starts = std::iter::once(state.header.tail).chain(state.ends.iter().copied());
        let numbers = state.header.freed + 1..state.next_number();
        numbers
            .zip(starts)
            .map(|(number, position)| {
                let at = self.split(position, 0).0 as u64;
                let damaged = |reason| BufferError::Damaged { at, reason };
                let found = self.entry(&state.header, number, position);
                let (entry, _, data) =
                    found.ok_or_else(|| damaged("an entry does not match its checksum"))?;
                match entry.kind {
                    KIND_WRITE => Ok((number, Mutation::Write { offset: entry.offset, data })),
                    KIND_DISCARD => Ok((number, Mutation::Discard { offset: entry.offset, len: entry.len })),
                    _ => Err(damaged("an entry of a kind that only a newer Holdfast knows")),
                }
            })
            .collect()
    }

    fn append(&self, mutation: &Mutation) -> Result<u64, BufferError> {
        let (kind, offset, len, data) = match mutation {
            Mutation::Write { offset, data } => (KIND_WRITE, *offset, data.len() as u64, data.as_ref()),
            Mutation::Discard { offset, len } => (KIND_DISCARD, *offset, *len, [].as_slice()),
        };
        let entry = Entry { kind, data_crc: crc_fast::crc32_iscsi(data), offset, len };
        let capacity = self.capacity();
        let too_large = BufferError::TooLarge { len: data.len(), capacity: capacity as usize };
        let bytes = entry.bytes().filter(|bytes| *bytes <= capacity).ok_or(too_large)?;
        let mut state = self.state();
        let (number, position) = (state.next_number(), state.head());
        let end = position + bytes;
        if end > state.header.tail + capacity {
            return Err(BufferError::Full);
        }
        if !state.share.take(bytes) {
            return Err(BufferError::Full);
        }
        let mut raw = [0; ENTRY_BYTES];
        raw[..8].copy_from_slice(&state.header.epoch.to_le_bytes());
        raw[8..16].copy_from_slice(&number.to_le_bytes());
        raw[16..24].copy_from_slice(&position.to_le_bytes());
        raw[24..28].copy_from_slice(&entry.kind.to_le_bytes());
        raw[28..32].copy_from_slice(&entry.data_crc.to_le_bytes());
        raw[32..40].copy_from_slice(&entry.offset.to_le_bytes());
        raw[40..48].copy_from_slice(&entry.len.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&raw[..48]);
        raw[48..52].copy_from_slice(&crc.to_le_bytes());
        self.write(position + ENTRY_BYTES as u64, data);
        self.write(position, &raw);
        state.ends.push_back(end);
        let touched = self.touched(&state);
        state.share.touch(touched);
        Ok(number)
    }

    fn free(&self, sequence: u64) {
        let mut state = self.state();
        self.free_to(&mut state, sequence);
        self.release(&mut state);
    }

    fn capacity_bytes(&self) -> u64 {
        self.capacity()
    }
}

/// The header in force.
fn read_header(region: &dyn Region) -> Result<Header, BufferError> {
    let mut slots = [[0; SLOT_BYTES]; 2];
    region.read_at(0, &mut slots[0]);
    region.read_at(SLOT_BYTES, &mut slots[1]);
    match slots.iter().filter_map(decode_header).max_by_key(|header| header.generation) {
        Some(header) => Ok(header),
        // The very first header goes to the second slot. Were it torn, nothing was ever bound or appended.
        None if slots[0] == [0; SLOT_BYTES] => Ok(Header::default()),
        None => Err(BufferError::Damaged { at: 0, reason: "neither header matches its checksum" }),
    }
}

fn decode_header(raw: &[u8; SLOT_BYTES]) -> Option<Header> {
    if raw[..8] != MAGIC || u32_at(raw, 56) != crc_fast::crc32_iscsi(&raw[..56]) {
        return None;
    }
    let mut grant = GrantId::NONE;
    grant.0.copy_from_slice(&raw[16..32]);
    let [generation, epoch, freed, tail] = [8, 32, 40, 48].map(|at| u64_at(raw, at));
    let plausible = [generation, epoch, freed, tail].iter().all(|number| *number <= NUMBER_MAX);
    plausible.then_some(Header { generation, grant, epoch, freed, tail })
}

fn u32_at(raw: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&raw[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(raw: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&raw[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
