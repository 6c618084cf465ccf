//! Which segments to rewrite.
//!
//! # Policy
//! Segments are rewritten until what all of them take is within a sixth of what the head needs of them: what is
//! overwritten before the next round comes on top of that. Where snapshots hold what is overwritten it is a fifth of what
//! all need, less what their maps take. Of two that give back the same for what copying them costs, the older goes first:
//! what has stayed so long tends to stay, and what is young loses more blocks by waiting. Small ones (data that travelled
//! in records, small flushes) are gathered into full segments, the oldest first, so that there are never more than so many
//! of them. A round moves about twice what was written since the last one.
//!
//! What snapshots name is rewritten only where that gives back twice what new maps for all snapshots take, unless it is
//! small. What a pinned snapshot names stays, and what was found damaged.

use std::collections::{BTreeMap, BTreeSet};

use super::mark::{Needed, Usage};
use super::relocate::STEP_BYTES;
use crate::ids::{BLOCK_BYTES, ObjectId, RecordNumber};
use crate::volume::Limits;

/// Moved in a round, however little was written; or this part of what there is, if that is more.
const ROUND_BYTES: u64 = 64 << 20;
const ROUND_PART: u64 = 16;
/// A segment is small below this part of a full one, and of the blocks that one record moves: data that compresses very
/// well does not fill a segment.
const SMALL_PART: u64 = 4;
/// One small segment is let be for so many bytes of a full one, and never fewer than so many. Gathering leaves half of
/// them and a few that it has not filled, so it comes to rest.
const SMALL_BYTES: u64 = 8 << 10;
const SMALL_MIN: usize = 8;
/// What stays unused at most, in thousandths of what is live: of the head alone; of the head and snapshots together with
/// their maps, where those that are replaced wait to be deleted; and however much the maps take.
const SLACK: u64 = 167;
const HELD_SLACK: u64 = 206;
const HELD_MAPS: u64 = 1500;
const HELD_SLACK_MIN: u64 = 83;
/// Bytes that a copy takes beyond the live ones, at most: of each chunk its entry in the table, a trailer and what it
/// compresses worse alone; of each segment its envelope and the table's begin. So a copy never looks worth copying.
const CHUNK_EXTRA_BYTES: u64 = 64;
const SEGMENT_EXTRA_BYTES: u64 = 160;
/// What the new map of a snapshot has to give back, as a part of a full segment: about twice what it takes.
const MAP_PART: u64 = 64;

/// What bounds a choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    /// Births up to here are covered by a durable root that stays.
    pub covered: RecordNumber,
    /// Births after this are named by no snapshot.
    pub held: RecordNumber,
    /// Written since the last round.
    pub written_bytes: u64,
    /// Segments that were found damaged.
    pub damaged: &'a BTreeSet<ObjectId>,
    pub limits: &'a Limits,
}

/// What a copy of the live data takes.
fn copy_bytes(usage: &Usage) -> u64 {
    usage.live_bytes + usage.extents * CHUNK_EXTRA_BYTES + SEGMENT_EXTRA_BYTES
}

/// What rewriting the segment gives back.
fn spare_bytes(usage: &Usage) -> u64 {
    usage.size_bytes.saturating_sub(copy_bytes(usage))
}

/// A choice under way.
struct Choice {
    chosen: BTreeMap<ObjectId, Usage>,
    left_bytes: u64,
    stored_bytes: u64,
}

impl Choice {
    fn take(&mut self, id: ObjectId, usage: &Usage) {
        if usage.live_bytes <= self.left_bytes && self.chosen.insert(id, *usage).is_none() {
            self.left_bytes -= usage.live_bytes;
            self.stored_bytes = self.stored_bytes.saturating_sub(spare_bytes(usage));
        }
    }
}

/// The segments to rewrite.
pub(super) fn choose(needed: &Needed, bounds: Bounds<'_>) -> BTreeMap<ObjectId, Usage> {
    let Bounds { covered, held, written_bytes, damaged, limits } = bounds;
    let free = |(id, usage): &(&ObjectId, &Usage)| {
        let stays = needed.pinned.contains(id) || damaged.contains(id);
        usage.birth <= covered && usage.size_bytes > 0 && !stays
    };
    let mut segments: Vec<(&ObjectId, &Usage)> = needed.used.iter().filter(free).collect();
    let stored_bytes: u64 = segments.iter().map(|(_, usage)| usage.size_bytes).sum();
    let live_bytes: u64 = segments.iter().map(|(_, usage)| copy_bytes(usage)).sum();
    let left_bytes = ROUND_BYTES.max(live_bytes / ROUND_PART) + 2 * written_bytes;
    let mut choice = Choice { chosen: BTreeMap::new(), left_bytes, stored_bytes };

    segments.sort_by_key(|(_, usage)| usage.birth);
    let small = |usage: &Usage| {
        usage.size_bytes < limits.segment_bytes / SMALL_PART
            && usage.blocks * BLOCK_BYTES < STEP_BYTES / SMALL_PART
    };
    let small: Vec<_> = segments.iter().filter(|(_, usage)| small(usage)).collect();
    let small_max = SMALL_MIN.max((limits.segment_bytes / SMALL_BYTES) as usize);
    if small.len() > small_max {
        small[..small.len() - small_max / 2].iter().for_each(|(id, usage)| choice.take(**id, usage));
    }
    let gathered: BTreeSet<ObjectId> = choice.chosen.keys().copied().collect();
    segments.retain(|(_, usage)| spare_bytes(usage) > 0);
    let slack_bytes = if needed.snapshots.is_empty() {
        live_bytes * SLACK / 1000
    } else {
        let map_bytes = needed.map_bytes * HELD_MAPS / 1000;
        (live_bytes * HELD_SLACK / 1000).saturating_sub(map_bytes).max(live_bytes * HELD_SLACK_MIN / 1000)
    };
    let newest = covered.0 + 1;
    segments.sort_by_cached_key(|(_, usage)| {
        let age = u128::from(newest.saturating_sub(usage.birth.0).isqrt());
        let gain = u128::from(spare_bytes(usage)) * age * 1000;
        std::cmp::Reverse(gain / u128::from(copy_bytes(usage) + usage.size_bytes))
    });
    for (id, usage) in segments {
        if choice.stored_bytes <= live_bytes + slack_bytes {
            break;
        }
        choice.take(*id, usage);
    }
    let moves_snapshots = |(id, usage): &(&ObjectId, &Usage)| usage.birth <= held && !gathered.contains(id);
    let gain: u64 = choice.chosen.iter().filter(moves_snapshots).map(|(_, usage)| spare_bytes(usage)).sum();
    if gain < needed.snapshots.len() as u64 * limits.segment_bytes / MAP_PART {
        choice.chosen.retain(|id, usage| !moves_snapshots(&(id, &*usage)));
    }
    choice.chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is chosen of so many segments with nothing to give back.
    fn chosen(count: u8, size_bytes: u64, blocks: u64, segment_bytes: u64) -> usize {
        let mut needed = Needed::default();
        for n in 0..count {
            let birth = RecordNumber(u64::from(n) + 1);
            let live_bytes = size_bytes - CHUNK_EXTRA_BYTES - SEGMENT_EXTRA_BYTES;
            let usage = Usage { birth, size_bytes, live_bytes, blocks, extents: 1, in_snapshots: true };
            needed.used.insert(ObjectId([n; 16]), usage);
        }
        let limits = Limits { segment_bytes, ..Limits::default() };
        let (covered, held) = (RecordNumber(1000), RecordNumber(1000));
        let damaged = &BTreeSet::new();
        choose(&needed, Bounds { covered, held, written_bytes: 0, damaged, limits: &limits }).len()
    }

    #[test]
    fn small_segments_are_gathered_when_they_are_many() {
        assert_eq!(chosen(200, 1000, 4, 1 << 20), 200 - 64);
        assert_eq!(chosen(100, 1000, 4, 1 << 20), 0);
    }

    #[test]
    fn what_gathering_leaves_is_not_gathered_again() {
        // Four of the last round, and two that were begun and not filled: for the head, and for the snapshots.
        assert_eq!(chosen(9, 1000, 4, 16 << 10), 5);
        assert_eq!(chosen(4 + 2, 1000, 4, 16 << 10), 0);
        // Data that compresses very well: a record moves no more of it.
        assert_eq!(chosen(200, 1000, STEP_BYTES / BLOCK_BYTES, 1 << 20), 0);
    }
}
