//! The entries of the map.

use crate::ids::{ObjectId, RecordNumber, VolumeId};

/// Whether a segment is an object of its own or lies in a record of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentKind {
    /// `volumes/VOL/seg/ID`.
    Object,
    /// The record `volumes/VOL/log/BIRTH` carries the data itself.
    Record,
}

/// A segment: where data lies. Enough to read and decrypt it, given the owner's data key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// A run of blocks inside a chunk of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// A run of consecutive blocks with one meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// The part of this extent inside `from..to`, which must overlap it.
    pub fn slice(&self, from: u64, to: u64) -> Self {
        let (lba, end) = (self.lba.max(from), self.end().min(to));
        debug_assert!(lba < end, "slice outside the extent");
        let skip = (lba - self.lba) as u8;
        let location = self.location.map(|l| Location { chunk_offset: l.chunk_offset + skip, ..l });
        Self { lba, blocks: (end - lba) as u32, location }
    }
}
