//! Which blocks of some segments are needed: of the head's map and the snapshots', in order of the blocks, a bounded
//! number at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::mark::{Usage, own};
use crate::ids::{CHUNK_BLOCKS_MAX, ObjectId, VolumeId};
use crate::map::{Diff, Extent, Extents, Location, MapError, MapView, Walk};

/// Chunks in hand at most.
const PIECES_MAX: usize = 1 << 17;

/// The needed blocks of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// The chunk, from its first block on.
    pub chunk: Location,
    /// Where that block belongs.
    pub lba: u64,
    /// For each block who needs it.
    needed: [Option<Newest>; CHUNK_BLOCKS_MAX as usize],
}

/// The newest that names a block: the head is 0, and the snapshots follow, from the newest on. All snapshots that share
/// it, from that one to the oldest that names the block, go before the block is garbage.
pub(super) type Newest = u16;

/// The head.
pub(super) const HEAD: Newest = 0;

impl Piece {
    /// The needed blocks as extents, by the newest that names them.
    pub fn extents(&self) -> Vec<(Newest, Extent)> {
        let mut extents: Vec<(Newest, Extent)> = Vec::new();
        for (at, needed) in (0..self.chunk.chunk_blocks).zip(self.needed) {
            let Some(newest) = needed else { continue };
            let lba = self.lba + u64::from(at);
            match extents.last_mut() {
                Some((class, last)) if *class == newest && last.end() == lba => last.blocks += 1,
                _ => extents.push((newest, Extent { lba, blocks: 1, location: Some(self.chunk.skip(at)) })),
            }
        }
        extents
    }
}

/// Finds the needed blocks of some segments.
#[derive(Debug)]
pub(super) struct Gather<'a> {
    volume: VolumeId,
    /// The head's, then the snapshots', newest first.
    names: Vec<Names>,
    segments: &'a BTreeMap<ObjectId, Usage>,
    /// Up to here all were found.
    lba: u64,
    /// Where each of them next says anything of interest.
    next: Vec<u64>,
}

/// What a map names: the head's; or a snapshot's, and the next newer one does not.
#[derive(Debug)]
pub(super) enum Names {
    Head(MapView),
    Known(Arc<Extents>),
    Compared { newer: MapView, older: MapView },
}

impl Names {
    /// What it names from block `begin` on, in order, and holes.
    fn from(&self, begin: u64) -> BoxStream<'_, Result<Extent, MapError>> {
        match self {
            Self::Head(head) => stream::try_unfold(Walk::from(head, begin), |mut walk| async move {
                let found = walk.next().await?;
                Ok::<_, MapError>(found.map(|found| (stream::iter(found.into_iter().map(Ok)), walk)))
            })
            .try_flatten()
            .boxed(),
            Self::Known(extents) => stream::iter(extents.from(begin).map(Ok)).boxed(),
            Self::Compared { newer, older } => {
                stream::try_unfold(Diff::new(newer, older, begin), |mut diff| async move {
                    Ok(diff.next().await?.map(|extent| (extent, diff)))
                })
                .boxed()
            }
        }
    }
}

/// What was found of a range of blocks.
struct Found {
    end: u64,
    pieces: BTreeMap<(u64, ObjectId, u32), Piece>,
}

impl<'a> Gather<'a> {
    /// Of these segments, as the head and then the snapshots (newest first) name them.
    pub fn new(volume: VolumeId, names: Vec<Names>, segments: &'a BTreeMap<ObjectId, Usage>) -> Self {
        let next = vec![0; names.len()];
        Self { volume, names, segments, lba: 0, next }
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

    /// Looks at what one of the maps names. Answers where it says more.
    async fn look(&self, at: usize, found: &mut Found) -> Result<u64, MapError> {
        let mut named = self.names[at].from(self.next[at].max(self.lba));
        while let Some(extent) = named.try_next().await? {
            if extent.lba >= found.end {
                return Ok(extent.lba);
            }
            self.note(&extent, at, found);
        }
        Ok(u64::MAX)
    }

    fn note(&self, extent: &Extent, at: usize, found: &mut Found) {
        let Some(location) = own(self.volume, extent).filter(|l| self.segments.contains_key(&l.segment.id))
        else {
            return;
        };
        let lba = extent.lba - u64::from(location.chunk_offset);
        let chunk = Location { chunk_offset: 0, ..location };
        let key = (lba, location.segment.id, location.stored_offset);
        let nobody = Piece { chunk, lba, needed: [None; CHUNK_BLOCKS_MAX as usize] };
        let piece = found.pieces.entry(key).or_insert(nobody);
        let blocks = piece.needed.iter_mut().skip(location.chunk_offset.into()).take(extent.blocks as usize);
        // Of very many snapshots the oldest count as one.
        let newest = Newest::try_from(at).unwrap_or(Newest::MAX);
        blocks.for_each(|needed| *needed = Some(needed.map_or(newest, |known| known.min(newest))));
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
    fn the_blocks_of_a_chunk_are_told_apart_by_the_newest_that_names_them() {
        let segment = SegmentRef {
            volume: VolumeId::NONE,
            birth: RecordNumber(1),
            id: ObjectId([1; 16]),
            kind: SegmentKind::Object,
        };
        let (codec, chunk_blocks, chunk_offset) = (Codec::Raw, 16, 0);
        let chunk =
            Location { segment, stored_offset: 72, stored_len: 65_552, codec, chunk_blocks, chunk_offset };
        let mut needed = [None; 16];
        for (at, newest) in [(0, 2), (2, 0), (3, 0), (4, 2), (5, 2), (13, 0), (14, 0), (15, 1)] {
            needed[at] = Some(newest);
        }
        let piece = Piece { chunk, lba: 32, needed };
        let extents = piece.extents();
        let found: Vec<_> =
            extents.iter().map(|(newest, extent)| (*newest, extent.lba, extent.blocks)).collect();
        assert_eq!(found, [(2, 32, 1), (HEAD, 34, 2), (2, 36, 2), (HEAD, 45, 2), (1, 47, 1)]);
        assert!(extents.iter().all(|(_, extent)| {
            extent.location.is_some_and(|place| u64::from(place.chunk_offset) == extent.lba - 32)
        }));
    }
}
