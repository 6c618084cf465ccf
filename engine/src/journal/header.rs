//! What a journal says of itself: whose it is, and where its oldest frame lies.

use bytes::{Buf, BufMut, Bytes};

use crate::ids::{BLOCK_BYTES, GrantId, ObjectId, VolumeId};

const MAGIC: [u8; 8] = *b"HOLDJHDR";
const VERSION: u32 = 1;
/// Bytes of a header before its checksum.
const CHECKED_BYTES: usize = 88;
/// Header slots: each a block of its own, so that writing one cannot harm the other.
const SLOTS: u64 = 2;

/// Where the frames begin.
pub(super) const FRAMES_START: u64 = SLOTS * BLOCK_BYTES;
/// What [`Header::decode`] looks at: the slots, and where the very first frame begins.
pub(super) const START_BYTES: u64 = FRAMES_START + BLOCK_BYTES;

/// A place between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// How many bytes of frames come before it, since the journal was made.
    pub position: u64,
    /// The id of the frame before it; none at the beginning.
    pub prev: ObjectId,
}

/// The header of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub volume: VolumeId,
    pub grant: GrantId,
    /// Grows with each header written; the higher one is in force.
    pub generation: u64,
    /// Frames before this are no longer needed.
    pub tail: Place,
    /// Entries up to this number are in the log.
    pub freed: u64,
}

/// What lies in the header slots.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing was ever written.
    Empty,
    Header(Header),
    /// Neither slot is whole.
    Damaged,
    /// A later version wrote it.
    Newer,
}

impl Header {
    /// The header as it is written, and where.
    pub fn encode(&self) -> (u64, Bytes) {
        let mut block = Vec::with_capacity(BLOCK_BYTES as usize);
        block.put_slice(&MAGIC);
        block.put_u32_le(VERSION);
        block.put_u32_le(0);
        block.put_slice(&self.volume.0);
        block.put_slice(&self.grant.0);
        block.put_u64_le(self.generation);
        block.put_u64_le(self.tail.position);
        block.put_slice(&self.tail.prev.0);
        block.put_u64_le(self.freed);
        let crc = crc_fast::crc32_iscsi(&block);
        block.put_u32_le(crc);
        block.resize(BLOCK_BYTES as usize, 0);
        (self.generation % SLOTS * BLOCK_BYTES, block.into())
    }

    /// Reads both slots: `first` are the first [`START_BYTES`].
    pub fn decode(mut first: Bytes) -> Found {
        let frame = first.split_off(FRAMES_START as usize);
        let second = first.split_off(BLOCK_BYTES as usize);
        // The very first header goes to the second slot. Were it torn, no frame was ever written.
        let was_new = first.iter().chain(&frame).all(|byte| *byte == 0);
        let newest =
            [first, second].into_iter().filter_map(decode).max_by_key(|(header, _)| header.generation);
        match newest {
            Some((header, VERSION)) => Found::Header(header),
            Some(_) => Found::Newer,
            None if was_new => Found::Empty,
            None => Found::Damaged,
        }
    }
}

fn decode(mut slot: Bytes) -> Option<(Header, u32)> {
    let crc = crc_fast::crc32_iscsi(&slot[..CHECKED_BYTES]);
    if slot.split_to(8) != MAGIC.as_slice() {
        return None;
    }
    let version = slot.get_u32_le();
    slot.advance(4);
    let mut id = || {
        let mut id = [0; 16];
        slot.copy_to_slice(&mut id);
        id
    };
    let (volume, grant) = (VolumeId(id()), ObjectId(id()));
    let (generation, position) = (slot.get_u64_le(), slot.get_u64_le());
    let mut prev = [0; 16];
    slot.copy_to_slice(&mut prev);
    let freed = slot.get_u64_le();
    let tail = Place { position, prev: ObjectId(prev) };
    (slot.get_u32_le() == crc).then_some((Header { volume, grant, generation, tail, freed }, version))
}
