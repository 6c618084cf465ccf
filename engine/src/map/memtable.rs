//! The newest entries of the map, in memory until a checkpoint writes them as a run.

use std::collections::BTreeMap;
use std::ops::Range;

use super::packed::Packed;
use super::{Extent, SegmentRef};

/// Entries in order of their first block; they never overlap. Newer ones overwrite or split older ones. A hole is an
/// entry too: it hides what older layers say.
#[derive(Debug, Clone, Default)]
pub struct Memtable {
    entries: BTreeMap<u64, Packed>,
    segments: Vec<SegmentRef>,
    numbers: BTreeMap<SegmentRef, u32>,
}

/// What an entry takes: 20 bytes in tree nodes that are two thirds full.
const ENTRY_BYTES: usize = 32;

/// What a segment takes, in the table and in its reverse.
const SEGMENT_BYTES: usize = 128;

impl Memtable {
    /// An empty memtable.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that `extent` holds from now on. [`Extent::check`] must have passed.
    pub fn insert(&mut self, extent: Extent) {
        let (mut lba, mut end) = (extent.lba, extent.end());
        self.clear(lba..end);
        if extent.location.is_some() {
            let packed =
                Packed::new(&extent, |segment| number(&mut self.segments, &mut self.numbers, segment));
            self.entries.insert(lba, packed);
            return;
        }
        // Holes grow together, or a long run of small discards would cost an entry each.
        if let Some((&before, packed)) = self.entries.range(..lba).next_back()
            && packed.is_hole()
            && before + u64::from(packed.blocks()) == lba
            && end - before <= u64::from(u32::MAX)
        {
            self.entries.remove(&before);
            lba = before;
        }
        if let Some(packed) = self.entries.get(&end)
            && packed.is_hole()
            && end + u64::from(packed.blocks()) - lba <= u64::from(u32::MAX)
        {
            let blocks = packed.blocks();
            self.entries.remove(&end);
            end += u64::from(blocks);
        }
        let hole = Extent { lba, blocks: (end - lba) as u32, location: None };
        self.entries.insert(lba, Packed::new(&hole, |_| 0));
    }

    /// The entries that overlap `range`, cut to it, in order.
    pub fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Extent> {
        let before = self.entries.range(..range.start).next_back();
        let reaching = before.filter(|(at, packed)| **at + u64::from(packed.blocks()) > range.start);
        let inside = self.entries.range(range.start..range.end.max(range.start));
        reaching.into_iter().chain(inside).map(move |(&lba, packed)| {
            let extent = packed.extent(lba, |number| self.segments[number as usize]);
            extent.slice(range.start, range.end)
        })
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> {
        self.entries.iter().map(|(&lba, packed)| packed.extent(lba, |number| self.segments[number as usize]))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// About how many bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        self.entries.len() * ENTRY_BYTES + self.segments.len() * SEGMENT_BYTES
    }

    /// Where the `entries`-th entry ends that ends after `lba`, or the last one: how far a reader may go on and see
    /// no more than so many. None if no entry ends after `lba`; else also where the first of them begins.
    pub(super) fn stretch(&self, lba: u64, entries: usize) -> Option<Range<u64>> {
        let before = self.entries.range(..lba).next_back();
        let reaching = before.filter(|(at, packed)| **at + u64::from(packed.blocks()) > lba);
        let mut stretch = reaching.into_iter().chain(self.entries.range(lba..));
        let (&first, packed) = stretch.next()?;
        let (&last, packed) = stretch.take(entries.saturating_sub(1)).last().unwrap_or((&first, packed));
        Some(first..last + u64::from(packed.blocks()))
    }

    /// Forgets what is said about `range`.
    pub fn clear(&mut self, range: Range<u64>) {
        if let Some((&at, &packed)) = self.entries.range(..range.start).next_back() {
            let end = at + u64::from(packed.blocks());
            if end > range.start {
                self.entries.insert(at, packed.slice(0, (range.start - at) as u32));
            }
            if end > range.end {
                self.entries
                    .insert(range.end, packed.slice((range.end - at) as u32, (end - range.end) as u32));
            }
        }
        while let Some((&at, &packed)) = self.entries.range(range.clone()).next() {
            self.entries.remove(&at);
            let end = at + u64::from(packed.blocks());
            if end > range.end {
                self.entries
                    .insert(range.end, packed.slice((range.end - at) as u32, (end - range.end) as u32));
            }
        }
    }
}

/// The place of `segment` in the table, which it gets if it has none. Neighbours mostly share a segment.
fn number(
    segments: &mut Vec<SegmentRef>,
    numbers: &mut BTreeMap<SegmentRef, u32>,
    segment: &SegmentRef,
) -> u32 {
    match segments.last() {
        Some(last) if last == segment => (segments.len() - 1) as u32,
        _ => *numbers.entry(*segment).or_insert_with(|| {
            segments.push(*segment);
            (segments.len() - 1) as u32
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cursor::with_holes;
    use super::super::testing::{Model, extent, hole};
    use super::*;

    const BLOCKS: u64 = 300;

    fn any_extent() -> impl Strategy<Value = Extent> {
        let data = (0..BLOCKS - 16, 1u32..=16, 0u64..4, 0u32..4, 0u8..16).prop_map(
            |(lba, blocks, number, chunk, offset)| {
                extent(lba, blocks.min(16 - u32::from(offset)), number, chunk, offset)
            },
        );
        let discard = (0..BLOCKS - 60, 1u32..60).prop_map(|(lba, blocks)| hole(lba, blocks));
        prop_oneof![3 => data, 1 => discard]
    }

    proptest! {
        #[test]
        fn newer_entries_hide_older_ones_block_by_block(
            extents in prop::collection::vec(any_extent(), 1..80),
            from in 0..BLOCKS,
            len in 1..BLOCKS,
        ) {
            let mut memtable = Memtable::new();
            let mut model = Model::empty(BLOCKS as usize);
            for extent in &extents {
                memtable.insert(*extent);
                model.write(extent);
            }
            let range = from..(from + len).min(BLOCKS);
            let found = with_holes(range.clone(), memtable.extents(range.clone()).collect());
            prop_assert_eq!(Model::of(range.clone(), &found), model.part(range));

            let all: Vec<Extent> = memtable.iter().collect();
            prop_assert_eq!(all.len(), memtable.len());
            prop_assert!(all.windows(2).all(|two| two[0].end() <= two[1].lba));
            prop_assert!(
                !all.windows(2).any(|two| {
                    two[0].location.is_none() && two[1].location.is_none() && two[0].joins(&two[1])
                }),
                "holes that touch are one hole"
            );
        }
    }

    #[test]
    fn a_hole_is_an_entry() {
        let mut memtable = Memtable::new();
        memtable.insert(hole(10, 5));
        assert_eq!(memtable.extents(0..100).collect::<Vec<_>>(), [hole(10, 5)]);
        assert_eq!(memtable.stretch(0, 8), Some(10..15));
        assert_eq!(memtable.stretch(15, 8), None);
    }

    #[test]
    fn a_stretch_holds_so_many_entries() {
        let mut memtable = Memtable::new();
        (0..10).for_each(|n| memtable.insert(extent(n * 20, 8, n, 0, 0)));
        assert_eq!(memtable.stretch(5, 1), Some(0..8));
        assert_eq!(memtable.stretch(5, 3), Some(0..48));
        assert_eq!(memtable.stretch(8, 3), Some(20..68));
        assert_eq!(memtable.stretch(0, 99), Some(0..188));
    }
}
