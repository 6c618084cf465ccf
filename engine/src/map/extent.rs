//! The entries of the map.

use crate::ids::{BLOCK_BYTES, CHUNK_BLOCKS_MAX, ObjectId, RecordNumber, VolumeId};
use crate::pool::layout;

/// Whether a segment is an object of its own or lies in a record of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SegmentKind {
    /// `volumes/VOL/seg/ID`.
    Object,
    /// The record `volumes/VOL/log/BIRTH` carries the data itself.
    Record,
}

/// A segment: where data lies. Enough to read and decrypt it, given the owner's data key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentRef {
    /// The volume that owns it: this one, or an ancestor of a clone.
    pub volume: VolumeId,
    /// The number of the record, in the owner's log, that made it visible.
    pub birth: RecordNumber,
    /// Its id (for [`SegmentKind::Record`]: the record's id).
    pub id: ObjectId,
    /// Which kind of object it is.
    pub kind: SegmentKind,
}

impl SegmentRef {
    /// The key of the object that holds it.
    pub fn key(&self) -> String {
        match self.kind {
            SegmentKind::Object => layout::segment(self.volume, self.id),
            SegmentKind::Record => layout::record(self.volume, self.birth),
        }
    }
}

/// A run of blocks inside a chunk of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// The segment.
    pub segment: SegmentRef,
    /// Where the stored chunk begins in the object, in bytes.
    pub stored_offset: u32,
    /// Bytes of the stored chunk, with its trailer.
    pub stored_len: u32,
    /// How the chunk is compressed.
    pub codec: crate::codec::Codec,
    /// Blocks of the whole chunk, 1 to 16.
    pub chunk_blocks: u8,
    /// The first of our blocks in it.
    pub chunk_offset: u8,
}

impl Location {
    /// The location of the block `blocks` further on in the same chunk.
    pub fn skip(&self, blocks: u8) -> Self {
        Self { chunk_offset: self.chunk_offset + blocks, ..*self }
    }

    /// Whether both name the same block of the same chunk. How the chunk is stored follows from its place.
    pub fn same_place(&self, other: &Self) -> bool {
        (self.segment.id, self.stored_offset, self.chunk_offset)
            == (other.segment.id, other.stored_offset, other.chunk_offset)
    }
}

/// The block after the last one that a volume can have: byte offsets stay below 2⁶³.
pub const LBA_MAX: u64 = 1 << 51;

/// The stored bytes of the longest chunk stay below this: 64 KiB and a trailer, with room to spare.
pub(super) const STORED_LEN_MAX: u32 = 1 << 18;

/// A run of consecutive blocks with one meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Extent {
    /// The first block.
    pub lba: u64,
    /// How many; at most 16 with a location (an extent never spans chunks), any number without.
    pub blocks: u32,
    /// Where the data lies; `None` is a hole: it reads as zeros and hides what older layers say.
    pub location: Option<Location>,
}

impl Extent {
    /// The block after the last.
    pub fn end(&self) -> u64 {
        self.lba + u64::from(self.blocks)
    }

    /// Bytes of its blocks.
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES
    }

    /// Says what is wrong with an extent that no map may hold.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.blocks == 0 {
            return Err("an extent of no blocks");
        }
        if self.lba >= LBA_MAX || self.end() > LBA_MAX {
            return Err("an extent beyond the largest volume");
        }
        let Some(location) = self.location else { return Ok(()) };
        if !(1..=CHUNK_BLOCKS_MAX).contains(&u32::from(location.chunk_blocks)) {
            return Err("a chunk of no blocks or too many");
        }
        if self.blocks > u32::from(location.chunk_blocks)
            || u32::from(location.chunk_offset) > u32::from(location.chunk_blocks) - self.blocks
        {
            return Err("an extent that spans chunks");
        }
        if location.stored_len == 0 || location.stored_len >= STORED_LEN_MAX {
            return Err("a chunk of no bytes or too many");
        }
        Ok(())
    }

    /// Whether `next` goes on where this extent ends, so that one extent can say what both say.
    pub fn joins(&self, next: &Self) -> bool {
        if self.end() != next.lba || self.blocks.checked_add(next.blocks).is_none() {
            return false;
        }
        match (&self.location, &next.location) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => {
                // In range: an extent never spans chunks.
                u32::from(ours.chunk_offset) + self.blocks == u32::from(theirs.chunk_offset)
                    && Location { chunk_offset: theirs.chunk_offset, ..*ours } == *theirs
            }
            _ => false,
        }
    }

    /// The part of this extent inside `from..to`, which must overlap it.
    pub fn slice(&self, from: u64, to: u64) -> Self {
        let (lba, end) = (self.lba.max(from), self.end().min(to));
        debug_assert!(lba < end, "slice outside the extent");
        let location = self.location.map(|location| location.skip((lba - self.lba) as u8));
        Self { lba, blocks: (end - lba) as u32, location }
    }
}
