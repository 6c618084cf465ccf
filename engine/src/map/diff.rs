//! What differs between two maps.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::cursor::{LayerCursor, MapCursor, Reading, RunCursor, with_holes};
use super::{Extent, Layer, MapError, MapView, RunRef};

/// Yields the blocks that differ between two maps, in order, with what the newer one says of them.
///
/// Two maps agree on a block if both name the same block of the same chunk, or both none. So a block that was moved
/// by the collector counts as changed: safe, and it happens once.
///
/// Pages that both maps have are stepped over without loading them, and where both list them by the same index, so is
/// the index: the cost follows what differs. Memory is bounded by a few pages of each run.
///
/// # Assumptions
/// Pages that both maps have lie in the same order in both. It holds for maps of one volume and of its clones: runs
/// are stacked in the order of the log, and compaction merges neighbours only. Unrelated maps share no pages.
#[derive(Debug)]
pub struct Diff {
    old: Side,
    new: Side,
    lba: u64,
    ready: VecDeque<Extent>,
}

#[derive(Debug)]
struct Side {
    /// What only this map has: a block that neither side's own layers cover does not differ.
    own: MapCursor,
    all: MapCursor,
}

impl Diff {
    /// The blocks from `lba` on that differ between `old` and `new`.
    pub fn new(old: &MapView, new: &MapView, lba: u64) -> Self {
        Self { old: Side::new(old, new), new: Side::new(new, old), lba, ready: VecDeque::new() }
    }

    /// The next extent of the newer map that differs, or a hole where the older one has data; none at the end.
    pub async fn next(&mut self) -> Result<Option<Extent>, MapError> {
        while self.ready.is_empty() {
            let window = match (self.old.own.window(self.lba).await?, self.new.own.window(self.lba).await?) {
                (None, None) => return Ok(None),
                (Some(window), None) | (None, Some(window)) => window,
                (Some(old), Some(new)) => old.start.min(new.start)..old.end.min(new.end),
            };
            self.lba = window.end;
            let mut covered = self.old.own.resolve(window.clone()).await?;
            covered.extend(self.new.own.resolve(window).await?);
            for range in union(covered) {
                let old = with_holes(range.clone(), self.old.all.resolve(range.clone()).await?);
                let new = with_holes(range.clone(), self.new.all.resolve(range).await?);
                self.compare(&old, &new);
            }
        }
        Ok(self.ready.pop_front())
    }

    /// Takes note of what differs between `old` and `new`, which cover the same range.
    fn compare(&mut self, old: &[Extent], new: &[Extent]) {
        let mut old = old.iter().peekable();
        for extent in new {
            while let Some(before) = old.peek()
                && before.lba < extent.end()
            {
                let same = match (&before.slice(extent.lba, extent.end()).location, &extent.location) {
                    (None, None) => true,
                    (Some(ours), Some(theirs)) => {
                        let skip = before.lba.max(extent.lba) - extent.lba;
                        ours.same_place(&theirs.skip(skip as u8))
                    }
                    (Some(_), None) | (None, Some(_)) => false,
                };
                if !same {
                    let changed = extent.slice(before.lba, before.end());
                    match self.ready.back_mut() {
                        Some(last) if last.joins(&changed) => last.blocks += changed.blocks,
                        _ => self.ready.push_back(changed),
                    }
                }
                if before.end() > extent.end() {
                    break;
                }
                old.next();
            }
        }
    }
}

impl Side {
    fn new(view: &MapView, other: &MapView) -> Self {
        let runs: Vec<Arc<RunRef>> = other
            .layers()
            .iter()
            .filter_map(|layer| match layer {
                Layer::Memory(_) => None,
                Layer::Run(run) => Some(run.clone()),
            })
            .collect();
        let shared = |ours: &Layer| {
            other.layers().iter().any(|theirs| match (ours, theirs) {
                (Layer::Memory(ours), Layer::Memory(theirs)) => Arc::ptr_eq(ours, theirs),
                _ => false,
            })
        };
        let own = view.layers().iter().filter(|layer| !shared(layer)).map(|layer| match layer {
            Layer::Memory(memtable) => LayerCursor::Memory(memtable.clone()),
            Layer::Run(run) => LayerCursor::Run(RunCursor::except(run.clone(), &runs)),
        });
        Self {
            own: MapCursor::new(Reading::sequential(view.source().clone()), own.collect()),
            all: view.cursor(Reading::scan(view.source().clone())),
        }
    }
}

/// The ranges that extents cover together, in order; those that touch become one.
fn union(mut extents: Vec<Extent>) -> Vec<Range<u64>> {
    extents.sort_unstable_by_key(|extent| extent.lba);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for extent in extents {
        match ranges.last_mut() {
            Some(last) if last.end >= extent.lba => last.end = last.end.max(extent.end()),
            _ => ranges.push(extent.lba..extent.end()),
        }
    }
    ranges
}
