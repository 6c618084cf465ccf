//! In which order a volume is hydrated.
//!
//! Whoever starts from a restored volume reads its file system's metadata first, and then what it needs; what it will
//! read next is likely to lie around that. So the regions that were read come first, the newest before the others. The
//! rest follows in ascending order.

use std::collections::{BTreeSet, VecDeque};

use super::lies_in;
use super::wanted::Wanted;
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::map::{Extent, MapError, MapView, Walk};

/// Regions that may come before their turn; each is remembered until then. What is read beyond that waits for its turn.
const REGIONS_AHEAD: usize = 1 << 16;

/// What is left to copy of a map.
#[derive(Debug)]
pub(super) struct Order {
    view: MapView,
    foreign: BTreeSet<VolumeId>,
    /// Blocks of a step, and of a region.
    step_blocks: u64,
    walk: Walk,
    /// What the walk has found.
    coming: VecDeque<Extent>,
    /// The first region that the walk's steps have not reached.
    next_region: u64,
    /// Regions from there on that come before their turn.
    ahead: BTreeSet<u64>,
    /// What is left of the one that was begun last.
    wanted: VecDeque<Extent>,
}

impl Order {
    /// What `view` names in segments of `foreign`, in steps of up to `step_bytes`.
    pub(super) fn new(view: MapView, foreign: BTreeSet<VolumeId>, step_bytes: u64) -> Self {
        Self {
            walk: Walk::new(&view),
            view,
            foreign,
            step_blocks: (step_bytes / BLOCK_BYTES).max(1),
            coming: VecDeque::new(),
            next_region: 0,
            ahead: BTreeSet::new(),
            wanted: VecDeque::new(),
        }
    }

    /// What the next step copies, in ascending order; nothing if nothing is left.
    pub(super) async fn next(&mut self, reads: &Wanted) -> Result<Vec<Extent>, MapError> {
        self.look_for_reads(reads).await?;
        let mut step = Filling {
            blocks_left: self.step_blocks,
            chunk_blocks_left: 2 * self.step_blocks,
            extents: Vec::new(),
        };
        if !self.wanted.is_empty() {
            while step.has_room()
                && let Some(extent) = self.wanted.pop_front()
            {
                step.add(extent);
            }
            return Ok(step.extents);
        }
        while step.has_room()
            && let Some(extent) = self.in_turn().await?
        {
            step.add(extent);
        }
        Ok(step.extents)
    }

    /// Finds what is left of the region that was read last, unless one was begun already.
    async fn look_for_reads(&mut self, reads: &Wanted) -> Result<(), MapError> {
        while self.wanted.is_empty()
            && let Some(lba) = reads.take()
        {
            let region = lba / self.step_blocks;
            if region < self.next_region || self.ahead.len() >= REGIONS_AHEAD || !self.ahead.insert(region) {
                continue;
            }
            let from = region * self.step_blocks;
            let extents = self.view.lookup(from..from + self.step_blocks).await?;
            self.wanted = extents.into_iter().filter(|extent| lies_in(extent, &self.foreign)).collect();
        }
        Ok(())
    }

    /// The next extent of the walk that no step has.
    async fn in_turn(&mut self) -> Result<Option<Extent>, MapError> {
        loop {
            let Some(extent) = self.coming.pop_front() else {
                match self.walk.next().await? {
                    Some(found) => {
                        self.coming.extend(found.into_iter().filter(|extent| lies_in(extent, &self.foreign)))
                    }
                    None => return Ok(None),
                }
                continue;
            };
            let region = extent.lba / self.step_blocks;
            let region_end = (region + 1) * self.step_blocks;
            if extent.end() > region_end {
                self.coming.push_front(extent.slice(region_end, extent.end()));
            }
            while self.ahead.first().is_some_and(|first| *first < region) {
                self.ahead.pop_first();
            }
            if !self.ahead.contains(&region) {
                self.next_region = region + 1;
                return Ok(Some(extent.slice(extent.lba, region_end)));
            }
        }
    }
}

/// Extents that are copied together.
struct Filling {
    extents: Vec<Extent>,
    blocks_left: u64,
    /// Of the chunks that they lie in, which are got whole.
    chunk_blocks_left: u64,
}

impl Filling {
    fn has_room(&self) -> bool {
        self.blocks_left > 0 && self.chunk_blocks_left > 0
    }

    fn add(&mut self, extent: Extent) {
        self.blocks_left = self.blocks_left.saturating_sub(extent.blocks.into());
        let chunk_blocks = extent.location.map_or(0, |location| u64::from(location.chunk_blocks));
        self.chunk_blocks_left = self.chunk_blocks_left.saturating_sub(chunk_blocks);
        self.extents.push(extent);
    }
}
