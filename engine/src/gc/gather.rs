//! Which blocks of some segments are needed: of the head's map and the snapshots', in order of the blocks, a bounded
//! number at a time.

use std::collections::BTreeMap;

use super::mark::{Usage, own};
use crate::ids::{CHUNK_BLOCKS_MAX, ObjectId, VolumeId};
use crate::map::{Diff, Extent, Location, MapError, MapView, Walk};

/// Chunks in hand at most.
const PIECES_MAX: usize = 1 << 17;

/// The needed blocks of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// The chunk, from its first block on.
    pub chunk: Location,
    /// Where that block belongs.
    pub lba: u64,
    /// Which blocks are needed, the first one the lowest bit; and which of them by the head.
    needed: u16,
    in_head: u16,
}

impl Piece {
    /// The needed blocks as extents, those that the head needs apart from those that only snapshots need.
    pub fn extents(&self) -> Vec<(Extent, bool)> {
        let mut extents: Vec<(Extent, bool)> = Vec::new();
        for at in (0..self.chunk.chunk_blocks).filter(|at| self.needed & mask(*at, 1) != 0) {
            let in_head = self.in_head & mask(at, 1) != 0;
            let lba = self.lba + u64::from(at);
            match extents.last_mut() {
                Some((last, class)) if *class == in_head && last.end() == lba => last.blocks += 1,
                _ => extents.push((Extent { lba, blocks: 1, location: Some(self.chunk.skip(at)) }, in_head)),
            }
        }
        extents
    }
}

fn mask(first: u8, blocks: u8) -> u16 {
    ((1u32 << blocks) - 1).wrapping_shl(u32::from(first)) as u16
}

/// Finds the needed blocks of some segments.
#[derive(Debug)]
pub(super) struct Gather<'a> {
    volume: VolumeId,
    head: MapView,
    /// Newest first.
    snapshots: Vec<MapView>,
    segments: &'a BTreeMap<ObjectId, Usage>,
    /// Up to here all were found.
    lba: u64,
    /// Where the head, and then each snapshot, next says anything of interest.
    next: Vec<u64>,
}

/// What was found of a range of blocks.
struct Found {
    end: u64,
    pieces: BTreeMap<(u64, ObjectId, u32), Piece>,
}

impl<'a> Gather<'a> {
    /// Of these segments, as the head and the snapshots (newest first) name them.
    pub fn new(
        volume: VolumeId,
        head: MapView,
        snapshots: Vec<MapView>,
        segments: &'a BTreeMap<ObjectId, Usage>,
    ) -> Self {
        let next = vec![0; snapshots.len() + 1];
        Self { volume, head, snapshots, segments, lba: 0, next }
    }

    /// The chunks of the next blocks; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Piece>>, MapError> {
        if self.lba == u64::MAX {
            return Ok(None);
        }
        let mut found = Found { end: u64::MAX, pieces: BTreeMap::new() };
        let mut ends = Vec::new();
        for at in 0..self.next.len() {
            ends.push(found.end);
            if self.next[at] < found.end {
                self.next[at] = self.look(at, &mut found).await?;
            }
        }
        // Who looked beyond where the range came to end has to look there again.
        for (next, end) in self.next.iter_mut().zip(ends) {
            if found.end < end {
                *next = found.end.min(*next);
            }
        }
        self.lba = found.end;
        Ok(Some(found.pieces.into_values().collect()))
    }

    /// Looks into the head's map, or into a snapshot's: what it names and the next newer one does not. Answers where it
    /// says more.
    async fn look(&self, at: usize, found: &mut Found) -> Result<u64, MapError> {
        let begin = self.next[at].max(self.lba);
        let Some(snapshot) = at.checked_sub(1).map(|older| &self.snapshots[older]) else {
            let mut walk = Walk::from(&self.head, begin);
            while let Some(extents) = walk.next().await? {
                for extent in extents {
                    if extent.lba >= found.end {
                        return Ok(extent.lba);
                    }
                    self.note(&extent, true, found);
                }
            }
            return Ok(u64::MAX);
        };
        let newer = at.checked_sub(2).map_or(&self.head, |newer| &self.snapshots[newer]);
        let mut diff = Diff::new(newer, snapshot, begin);
        while let Some(extent) = diff.next().await? {
            if extent.lba >= found.end {
                return Ok(extent.lba);
            }
            self.note(&extent, false, found);
        }
        Ok(u64::MAX)
    }

    fn note(&self, extent: &Extent, in_head: bool, found: &mut Found) {
        let Some(location) = own(self.volume, extent).filter(|l| self.segments.contains_key(&l.segment.id))
        else {
            return;
        };
        let lba = extent.lba - u64::from(location.chunk_offset);
        let chunk = Location { chunk_offset: 0, ..location };
        let key = (lba, location.segment.id, location.stored_offset);
        let piece = found.pieces.entry(key).or_insert(Piece { chunk, lba, needed: 0, in_head: 0 });
        let blocks = mask(location.chunk_offset, extent.blocks as u8);
        piece.needed |= blocks;
        piece.in_head |= if in_head { blocks } else { 0 };
        // Chunks end at multiples of their greatest length, so that an end there parts none.
        let end = extent.lba - extent.lba % u64::from(CHUNK_BLOCKS_MAX);
        if found.pieces.len() > PIECES_MAX && end > self.lba {
            found.end = end;
            found.pieces.split_off(&(end, ObjectId::NONE, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::ids::RecordNumber;
    use crate::map::{SegmentKind, SegmentRef};

    #[test]
    fn what_the_head_needs_of_a_chunk_is_told_apart_from_what_only_snapshots_need() {
        let segment = SegmentRef {
            volume: VolumeId::NONE,
            birth: RecordNumber(1),
            id: ObjectId([1; 16]),
            kind: SegmentKind::Object,
        };
        let (codec, chunk_blocks, chunk_offset) = (Codec::Raw, 16, 0);
        let chunk =
            Location { segment, stored_offset: 72, stored_len: 65_552, codec, chunk_blocks, chunk_offset };
        let piece = Piece { chunk, lba: 32, needed: 0b1110_0000_0011_1101, in_head: 0b0110_0000_0000_1100 };
        let extents = piece.extents();
        let found: Vec<_> =
            extents.iter().map(|(extent, in_head)| (extent.lba, extent.blocks, *in_head)).collect();
        assert_eq!(found, [(32, 1, false), (34, 2, true), (36, 2, false), (45, 2, true), (47, 1, false)]);
        assert!(extents.iter().all(|(extent, _)| {
            extent.location.is_some_and(|place| u64::from(place.chunk_offset) == extent.lba - 32)
        }));
    }
}
