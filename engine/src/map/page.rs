//! A page of the map as it is kept in memory: 16 bytes an extent, and 8 for each segment that the page names.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::packed::Packed;
use super::{Extent, SegmentRef};

/// A loaded page: sorted extents that do not overlap.
#[derive(Debug)]
pub struct LoadedPage {
    first_lba: u64,
    entries: Box<[Entry]>,
    segments: Box<[Arc<SegmentRef>]>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Blocks after the page's first.
    skip: u32,
    packed: Packed,
}

impl LoadedPage {
    /// Packs what a page says, or says why no page may say it.
    pub fn new(extents: &[Extent], segments: &SegmentTable) -> Result<Self, &'static str> {
        let first_lba = extents.first().ok_or("a page without extents")?.lba;
        let mut end = first_lba;
        let mut names: BTreeSet<SegmentRef> = BTreeSet::new();
        for extent in extents {
            extent.check()?;
            if extent.lba < end {
                return Err("a page whose extents are not in order");
            }
            end = extent.end();
            names.extend(extent.location.map(|location| location.segment));
        }
        if end - first_lba > PAGE_SPAN_MAX {
            return Err("a page that spans too many blocks");
        }
        let names: Vec<SegmentRef> = names.into_iter().collect();
        let number = |segment: &SegmentRef| names.binary_search(segment).unwrap_or_default() as u32;
        let entries = extents
            .iter()
            .map(|extent| Entry {
                skip: (extent.lba - first_lba) as u32,
                packed: Packed::new(extent, number),
            })
            .collect();
        Ok(Self { first_lba, entries, segments: segments.share(&names) })
    }

    /// A page that says nothing, which no store has.
    pub(super) fn silent() -> Self {
        Self { first_lba: 0, entries: [].into(), segments: [].into() }
    }

    /// The extents that overlap `range`, cut to it, in order.
    pub fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Extent> {
        let first = self.entries.partition_point(|entry| self.end(entry) <= range.start);
        self.entries[first..].iter().take_while(move |entry| self.lba(entry) < range.end).map(move |entry| {
            let extent = entry.packed.extent(self.lba(entry), |number| *self.segments[number as usize]);
            extent.slice(range.start, range.end)
        })
    }

    /// The first block it says anything about.
    pub fn first_lba(&self) -> u64 {
        self.first_lba
    }

    /// The block after the last one it says anything about.
    pub fn end_lba(&self) -> u64 {
        self.entries.last().map_or(self.first_lba, |entry| self.end(entry))
    }

    /// How many extents it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many bytes of memory it takes, without the names of segments, which all pages share.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.entries) + size_of_val(&*self.segments)
    }

    fn lba(&self, entry: &Entry) -> u64 {
        self.first_lba + u64::from(entry.skip)
    }

    fn end(&self, entry: &Entry) -> u64 {
        self.lba(entry) + u64::from(entry.packed.blocks())
    }
}

/// A page spans at most so many blocks, so that a place in it fits 32 bits.
pub(super) const PAGE_SPAN_MAX: u64 = u32::MAX as u64;

/// The names of the segments that loaded pages mention, once each: random writes put thousands of segments into every
/// page, and every segment into many pages.
#[derive(Debug, Default)]
pub struct SegmentTable {
    state: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    names: BTreeSet<Arc<SegmentRef>>,
    /// Look for unused names when there are more than this.
    sweep_above: usize,
}

/// Below so many names it is not worth looking for unused ones.
const SWEEP_MIN: usize = 4096;

impl SegmentTable {
    fn share(&self, names: &[SegmentRef]) -> Box<[Arc<SegmentRef>]> {
        // A set of names is valid whatever panicked while it was locked.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = names
            .iter()
            .map(|name| match state.names.get(name) {
                Some(known) => known.clone(),
                None => {
                    let new = Arc::new(*name);
                    state.names.insert(new.clone());
                    new
                }
            })
            .collect();
        if state.names.len() > state.sweep_above.max(SWEEP_MIN) {
            state.names.retain(|name| Arc::strong_count(name) > 1);
            state.sweep_above = 2 * state.names.len();
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{extent, hole};
    use super::*;

    #[test]
    fn a_page_gives_back_what_it_was_made_of() {
        let extents = [
            extent(5, 3, 1, 9, 13),
            hole(8, 1 << 30),
            extent((1 << 30) + 8, 16, 2, 0, 0),
            extent(u64::from(u32::MAX) - 20, 1, 1, 61_000, 15),
        ];
        let page = LoadedPage::new(&extents, &SegmentTable::default()).unwrap();
        assert_eq!(page.extents(0..1 << 40).collect::<Vec<_>>(), extents);
        assert_eq!(page.extents(7..9).collect::<Vec<_>>(), [extent(7, 1, 1, 9, 15), hole(8, 1)]);
        assert_eq!(page.extents(0..5).count(), 0);
        assert_eq!((page.first_lba(), page.end_lba()), (5, u64::from(u32::MAX) - 19));
    }

    #[test]
    fn what_no_page_may_say_is_refused() {
        let segments = SegmentTable::default();
        let refused = |extents: &[Extent]| LoadedPage::new(extents, &segments).is_err();
        assert!(refused(&[]));
        assert!(refused(&[extent(5, 3, 1, 0, 0), extent(7, 1, 1, 0, 0)]));
        assert!(refused(&[extent(5, 4, 1, 0, 13)]));
        assert!(refused(&[hole(5, 0)]));
        assert!(refused(&[hole(0, 1), hole(u64::from(u32::MAX), 1)]));
        assert!(refused(&[hole(u64::MAX - 3, 2)]));
    }

    #[test]
    fn a_million_extents_take_20_bytes_each() {
        const EXTENTS: u64 = 1_000_000;
        const PAGE: usize = 2_700;
        let segments = SegmentTable::default();
        // Sequential writes of whole chunks: 128 of them fill a segment of 8 MiB.
        let extents: Vec<Extent> =
            (0..EXTENTS).map(|n| extent(n * 16, 16, n / 128, (n % 128) as u32, 0)).collect();
        let pages: Vec<LoadedPage> =
            extents.chunks(PAGE).map(|page| LoadedPage::new(page, &segments).unwrap()).collect();
        let names = segments.state.lock().unwrap().names.len();
        let bytes = pages.iter().map(LoadedPage::bytes).sum::<usize>() + names * 2 * size_of::<SegmentRef>();
        let each = bytes as f64 / EXTENTS as f64;
        assert!(each <= 20.0, "{each} bytes an extent");

        // The worst case, a page whose extents lie in as many segments, stays below 25.
        let scattered: Vec<Extent> = (0..PAGE as u64).map(|n| extent(n * 20, 1, n, 0, 0)).collect();
        let each = LoadedPage::new(&scattered, &segments).unwrap().bytes() as f64 / PAGE as f64;
        assert!(each <= 25.0, "{each} bytes an extent");
    }

    #[test]
    fn names_of_segments_that_no_page_mentions_go() {
        let segments = SegmentTable::default();
        for round in 0..20 {
            let extents: Vec<Extent> =
                (0..2_000).map(|n| extent(n * 20, 1, round * 2_000 + n, 0, 0)).collect();
            LoadedPage::new(&extents, &segments).unwrap();
        }
        assert!(segments.state.lock().unwrap().names.len() <= 2 * SWEEP_MIN);
    }
}
