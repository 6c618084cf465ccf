//! What each snapshot names and the next newer one does not, remembered from round to round: a round then costs what
//! has changed since the last one, however many snapshots there are.
//!
//! # Guarantees
//! Nothing remembered is ever stale:
//! - A snapshot's map and its pages never change, and their ids are random. So what differs between two maps, known by
//!   their ids, is always the same.
//! - Moves change the maps of all snapshots alike: each names the moved data at its new place, if it named it at the
//!   old one, and all else as before. No two blocks are moved to one place. So two restated maps differ where they
//!   differed before, and what the older one says there is what it said, restated.
//!
//! Whatever is not known here is read anew.
//!
//! # Cost
//! [`LIMIT_BYTES`] of memory: 16 bytes for each extent that only snapshots name. What is beyond is compared in each
//! round. What a round has not asked for is forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::ObjectId;
use crate::log::Move;
use crate::map::{Extents, ExtentsWriter, MapError, PageRef, RunRef, SegmentTable, SnapshotMap, restated};

/// Bytes of memory at most.
pub(super) const LIMIT_BYTES: usize = 8 << 20;

/// The map of a snapshot, and that of an older one.
pub(super) type Pair = (ObjectId, ObjectId);

/// A snapshot whose map may be rewritten.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub map: Arc<SnapshotMap>,
    /// What it names of the volume's own segments and the next newer one of these, or the head, does not; none if that
    /// is too much to remember.
    pub only: Option<Arc<Extents>>,
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Differences {
    round: u64,
    bytes: usize,
    pairs: BTreeMap<Pair, Known<Extents>>,
    maps: BTreeMap<ObjectId, Known<SnapshotMap>>,
    segments: Arc<SegmentTable>,
}

#[derive(Debug)]
struct Known<T> {
    what: Arc<T>,
    bytes: usize,
    /// The last round that asked for it.
    asked: u64,
}

impl Differences {
    /// Begins a round; forgets what the last one did not ask for.
    pub fn begin_round(&mut self) {
        let last = self.round;
        self.pairs.retain(|_, known| known.asked >= last);
        self.maps.retain(|_, known| known.asked >= last);
        let pairs = self.pairs.values().map(|known| known.bytes);
        self.bytes = pairs.chain(self.maps.values().map(|known| known.bytes)).sum();
        self.round += 1;
    }

    /// A snapshot's map.
    pub fn map(&mut self, id: ObjectId) -> Option<Arc<SnapshotMap>> {
        let known = self.maps.get_mut(&id)?;
        known.asked = self.round;
        Some(known.what.clone())
    }

    /// Remembers a snapshot's map.
    pub fn note_map(&mut self, map: Arc<SnapshotMap>) {
        let refs = |run: &RunRef| match run {
            RunRef::Pages(pages) => pages.len(),
            RunRef::Indexed(indexes) => indexes.len(),
        };
        let refs: usize = map.map.runs.iter().map(refs).sum();
        let bytes = size_of::<SnapshotMap>() + refs * size_of::<PageRef>();
        if self.has_room(bytes) {
            self.bytes += bytes;
            self.maps.insert(map.id, Known { what: map, bytes, asked: self.round });
        }
    }

    /// What the older of the two maps names and the newer one does not.
    pub fn get(&mut self, pair: Pair) -> Option<Arc<Extents>> {
        let known = self.pairs.get_mut(&pair)?;
        known.asked = self.round;
        Some(known.what.clone())
    }

    /// Remembers that.
    pub fn note(&mut self, pair: Pair, what: Arc<Extents>) {
        let bytes = what.bytes();
        if self.has_room(bytes) {
            self.bytes += bytes;
            self.pairs.insert(pair, Known { what, bytes, asked: self.round });
        }
    }

    #[cfg(test)]
    pub fn pairs(&self) -> impl Iterator<Item = (Pair, Arc<Extents>)> {
        self.pairs.iter().map(|(pair, known)| (*pair, known.what.clone()))
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes + bytes <= LIMIT_BYTES
    }

    /// Names the segments of what is remembered.
    pub fn segments(&self) -> Arc<SegmentTable> {
        self.segments.clone()
    }

    /// The maps of neighbours (newest first) that were `before` are now those of `held`, restated after `moves` (in
    /// order of the blocks).
    pub fn restate(&mut self, before: &[ObjectId], held: &[Held], moves: &[Move]) -> Result<(), MapError> {
        let ids = before.windows(2).zip(held.windows(2));
        for (before, held) in ids {
            let &[newer_before, older_before] = before else { continue };
            let [newer, older] = held else { continue };
            let pair = (newer.map.id, older.map.id);
            let Some(known) = self.get((newer_before, older_before)) else { continue };
            if pair != (newer_before, older_before) {
                let what = self.restated(&known, moves)?;
                self.note(pair, what);
            }
        }
        Ok(())
    }

    fn restated(&self, known: &Arc<Extents>, moves: &[Move]) -> Result<Arc<Extents>, MapError> {
        let mut writer = ExtentsWriter::new(self.segments());
        let mut changed = false;
        for extent in known.from(0) {
            let places = restated(&extent, moves);
            changed |= places != [extent];
            places.into_iter().try_for_each(|place| writer.push(place))?;
        }
        Ok(if changed { Arc::new(writer.finish()?) } else { known.clone() })
    }
}
