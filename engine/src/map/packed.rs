//! An extent in 12 bytes, its first block and its segment's name kept elsewhere.

use super::extent::STORED_LEN_MAX;
use super::{Extent, Location, SegmentRef};
use crate::codec::Codec;

/// What an extent says, without where it begins. [`Extent::check`] must have passed.
///
/// `bits`, from the lowest: stored length 18, blocks - 1 4, blocks of the chunk - 1 4, offset in the chunk 4, codec 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    /// Where the stored chunk begins; of a hole: how many blocks.
    at: u32,
    bits: u32,
    /// The segment's place in a table that the owner keeps; [`HOLE`] for none.
    segment: u32,
}

const HOLE: u32 = u32::MAX;
const BLOCKS: u32 = STORED_LEN_MAX.trailing_zeros();
const CHUNK_BLOCKS: u32 = BLOCKS + 4;
const CHUNK_OFFSET: u32 = CHUNK_BLOCKS + 4;
const CODEC: u32 = CHUNK_OFFSET + 4;

impl Packed {
    /// Packs `extent`; `number` gives its segment a place in the owner's table.
    pub(super) fn new(extent: &Extent, number: impl FnOnce(&SegmentRef) -> u32) -> Self {
        debug_assert_eq!(extent.check(), Ok(()));
        match &extent.location {
            None => Self { at: extent.blocks, bits: 0, segment: HOLE },
            Some(location) => Self {
                at: location.stored_offset,
                bits: location.stored_len
                    | (extent.blocks - 1) << BLOCKS
                    | (u32::from(location.chunk_blocks) - 1) << CHUNK_BLOCKS
                    | u32::from(location.chunk_offset) << CHUNK_OFFSET
                    | (location.codec as u32) << CODEC,
                segment: number(&location.segment),
            },
        }
    }

    pub(super) fn is_hole(self) -> bool {
        self.segment == HOLE
    }

    pub(super) fn blocks(self) -> u32 {
        if self.is_hole() { self.at } else { (self.bits >> BLOCKS & 0xf) + 1 }
    }

    /// The same with the first `skip` blocks left out, and `blocks` of the rest.
    pub(super) fn slice(self, skip: u32, blocks: u32) -> Self {
        debug_assert!(blocks > 0 && skip + blocks <= self.blocks(), "slice outside the extent");
        if self.is_hole() {
            return Self { at: blocks, ..self };
        }
        let kept = self.bits & !(0xf << BLOCKS);
        Self { bits: (kept | (blocks - 1) << BLOCKS) + (skip << CHUNK_OFFSET), ..self }
    }

    /// The extent that begins at `lba`; `segment` looks a place in the owner's table up.
    pub(super) fn extent(self, lba: u64, segment: impl FnOnce(u32) -> SegmentRef) -> Extent {
        let location = (!self.is_hole()).then(|| Location {
            segment: segment(self.segment),
            stored_offset: self.at,
            stored_len: self.bits & (STORED_LEN_MAX - 1),
            codec: match self.bits >> CODEC {
                0 => Codec::Raw,
                1 => Codec::Lz4,
                _ => Codec::Zstd,
            },
            chunk_blocks: (self.bits >> CHUNK_BLOCKS & 0xf) as u8 + 1,
            chunk_offset: (self.bits >> CHUNK_OFFSET & 0xf) as u8,
        });
        Extent { lba, blocks: self.blocks(), location }
    }
}
