//! What is left of a volume when its maps are not to be trusted: the records that are there, and the tables of its
//! segments. Each chunk says which session wrote it and where in that session's order.
//!
//! # The order of writing
//! Sessions follow one another, so the number of a session's Open record, which is kept for ever, comes first; then the
//! place in the session's write order. What collection has moved keeps both. Runs of archives, and sessions whose Open
//! cannot be read, are placed by the store's own time of the object they lie in: also a copy was made when its
//! content was the newest.
//!
//! A discard is known only from a record that is still there. All entries up to its record's `buffer_complete` were in
//! the log with it, so that is its place in the order.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::object::PATIENCE;
use super::{Damage, SalvageError, state};
use crate::codec::{self, ChunkEntry, Codec};
use crate::ids::{RecordNumber, SessionId};
use crate::log::{Control, Log, Op};
use crate::map::{Access, Extent, Location, PageSource, SegmentKind, SegmentRef};
use crate::pool::layout;
use crate::store::StoreError;

/// Objects read at once.
const PARALLEL: usize = 8;

/// A place in the order in which a volume was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Rank {
    /// The number of the Open record of the session.
    open: u64,
    /// The place in the session.
    order: u64,
    /// The store's time, where nothing else tells.
    time_ms: u64,
}

/// A chunk or a discard: 56 bytes, of which there may be very many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    pub rank: Rank,
    /// Whether it is known to be no older than what the base says of its blocks.
    newer: bool,
    lba: u64,
    blocks: u32,
    /// Its place among the segments; none for a discard.
    segment: Option<u32>,
    stored_offset: u32,
    stored_len: u32,
    codec: Codec,
}

/// The state that versions are compared with: those it knows of are not newer.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub number: RecordNumber,
    pub control: Control,
    /// When it was put, by the store's clock.
    pub time_ms: u64,
}

/// What is left.
#[derive(Debug, Default)]
pub(super) struct History {
    segments: Vec<SegmentRef>,
    versions: Vec<Version>,
    /// The largest size that any record speaks of.
    pub size_bytes: u64,
    /// Objects that cannot be read: what they said is not known.
    pub unreadable: Vec<Damage>,
    /// Sessions, by their ids: the numbers of their Open records.
    sessions: BTreeMap<SessionId, u64>,
    /// The store's times of Open records, by their numbers.
    opened: BTreeMap<u64, u64>,
}

impl History {
    /// Reads what is left of the volume of `log`.
    pub async fn read(log: &Log, pages: &Arc<dyn PageSource>, known: &Known) -> Result<Self, SalvageError> {
        let mut history = Self::default();
        history.read_records(log, pages, known).await?;
        history.read_segments(log, known).await?;
        history.versions.sort_by_key(|version| version.rank);
        Ok(history)
    }

    /// What the versions say, oldest first; with `newer`, only those that the known state cannot know of.
    pub fn extents(&self, newer: bool) -> impl Iterator<Item = Extent> {
        self.versions.iter().filter(move |version| version.newer || !newer).map(|version| {
            let location = version.segment.map(|segment| Location {
                segment: self.segments[segment as usize],
                stored_offset: version.stored_offset,
                stored_len: version.stored_len,
                codec: version.codec,
                chunk_blocks: version.blocks as u8,
                chunk_offset: 0,
            });
            Extent { lba: version.lba, blocks: version.blocks, location }
        })
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.opened.is_empty() && self.size_bytes == 0
    }

    async fn read_records(
        &mut self,
        log: &Log,
        pages: &Arc<dyn PageSource>,
        known: &Known,
    ) -> Result<(), SalvageError> {
        let listed = log.list(&layout::records(log.volume), Instant::now() + state::REPLAY).await?;
        let mut reads = stream::iter(&listed)
            .map(|listed| async move {
                let deadline = Instant::now() + PATIENCE;
                (listed, log.retry(deadline, || log.store.get(&listed.key)).await)
            })
            .buffered(PARALLEL);
        while let Some((listed, read)) = reads.next().await {
            let Some(number) = layout::number_in(&listed.key) else { continue };
            let bytes = match read {
                Err(StoreError::NotFound { .. }) => continue,
                read => read?,
            };
            match codec::decode_record(&bytes, log.volume, number, log.key.as_ref()) {
                Ok(decoded) => self.note_record(&decoded, listed.modified_ms, pages, known).await?,
                Err(error) => {
                    self.unreadable.push(Damage::undecodable(listed.key.clone(), log.volume, &error));
                }
            }
        }
        Ok(())
    }

    async fn note_record(
        &mut self,
        decoded: &codec::DecodedRecord,
        time_ms: u64,
        pages: &Arc<dyn PageSource>,
        known: &Known,
    ) -> Result<(), SalvageError> {
        let record = &decoded.record;
        if record.ops.iter().any(|op| matches!(op, Op::Open { .. })) {
            self.sessions.insert(record.id, record.number.0);
            self.opened.insert(record.number.0, time_ms);
        }
        // The discards of an archive run stand where its data do.
        let run = record.ops.iter().find_map(|op| match op {
            Op::RunCommitted { run } => Some(*run),
            _ => None,
        });
        let (session, order) = run.map_or((record.session, record.buffer_complete), |run| (run, 0));
        let mut holes: Vec<Extent> = Vec::new();
        for op in &record.ops {
            match op {
                Op::Create { size_bytes } | Op::Resize { size_bytes } => {
                    self.size_bytes = self.size_bytes.max(*size_bytes);
                }
                Op::Write { extents } => {
                    holes.extend(extents.iter().filter(|extent| extent.location.is_none()));
                }
                Op::WritePages { pages: listed } => {
                    for page in listed {
                        match pages.page(page, Access::Scan).await {
                            Ok(page) => {
                                let all = page.extents(page.first_lba()..page.end_lba());
                                holes.extend(all.filter(|extent| extent.location.is_none()));
                            }
                            Err(error) if error.is_damage() => {
                                let page_offset = page.place.map(|place| place.offset);
                                self.unreadable.push(Damage::of_map(page.into(), page_offset, &error));
                            }
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                _ => {}
            }
        }
        for hole in holes {
            let rank = self.rank(session, order, time_ms);
            self.versions.push(Version {
                rank,
                newer: record.number > known.number,
                lba: hole.lba,
                blocks: hole.blocks,
                segment: None,
                stored_offset: 0,
                stored_len: 0,
                codec: Codec::Raw,
            });
        }
        if !decoded.chunks.is_empty() {
            let segment = SegmentRef {
                volume: record.volume,
                birth: record.number,
                id: record.id,
                kind: SegmentKind::Record,
            };
            self.note_chunks(segment, &decoded.chunks, time_ms, known);
        }
        Ok(())
    }

    async fn read_segments(&mut self, log: &Log, known: &Known) -> Result<(), SalvageError> {
        let listed = log.list(&layout::segments(log.volume), Instant::now() + state::REPLAY).await?;
        let mut reads = stream::iter(&listed)
            .map(|listed| async move { (listed, log.segment_table(listed, Instant::now() + PATIENCE).await) })
            .buffered(PARALLEL);
        while let Some((listed, read)) = reads.next().await {
            let Some(id) = layout::object_id_in(&listed.key) else { continue };
            match read? {
                None => {}
                Some(Ok(table)) => {
                    // Which record made it visible is not known; only records are found by their birth.
                    let birth = RecordNumber(0);
                    let kind = SegmentKind::Object;
                    let segment = SegmentRef { volume: log.volume, birth, id, kind };
                    self.note_chunks(segment, &table.chunks, listed.modified_ms, known);
                }
                Some(Err(error)) => {
                    self.unreadable.push(Damage::undecodable(listed.key.clone(), log.volume, &error));
                }
            }
        }
        Ok(())
    }

    fn note_chunks(&mut self, segment: SegmentRef, chunks: &[ChunkEntry], time_ms: u64, known: &Known) {
        // A volume has far fewer segments than 2³².
        let place = self.segments.len() as u32;
        self.segments.push(segment);
        for chunk in chunks {
            let rank = self.rank(chunk.session, chunk.order, time_ms);
            self.versions.push(Version {
                rank,
                newer: self.is_newer(known, chunk.session, rank),
                lba: chunk.lba,
                blocks: u32::from(chunk.blocks),
                segment: Some(place),
                stored_offset: chunk.stored_offset,
                stored_len: chunk.stored_len,
                codec: chunk.codec,
            });
        }
    }

    fn rank(&self, session: SessionId, order: u64, time_ms: u64) -> Rank {
        match self.sessions.get(&session) {
            Some(open) => Rank { open: *open, order, time_ms: 0 },
            None => {
                let before = self.opened.iter().filter(|(_, opened_ms)| **opened_ms <= time_ms);
                Rank { open: before.map(|(open, _)| *open).max().unwrap_or(0), order: 0, time_ms }
            }
        }
    }

    fn is_newer(&self, known: &Known, session: SessionId, rank: Rank) -> bool {
        let current = known.control.session.as_ref().is_some_and(|current| current.id == session);
        if current {
            return rank.order > known.control.buffer_complete;
        }
        match self.sessions.get(&session) {
            Some(open) => *open > known.number.0,
            None => !known.control.ended_runs.contains(&session) && rank.time_ms >= known.time_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ObjectId;

    fn id(number: u8) -> ObjectId {
        ObjectId([number; 16])
    }

    /// Two sessions, opened at record 3 and 9, at 10 and 20 seconds.
    fn history() -> History {
        let mut history = History::default();
        for (number, open, time_ms) in [(1, 3, 10_000), (2, 9, 20_000)] {
            history.sessions.insert(id(number), open);
            history.opened.insert(open, time_ms);
        }
        history
    }

    #[test]
    fn later_sessions_come_after_earlier_ones_and_runs_stand_where_their_time_is() {
        let history = history();
        let ranks = [
            history.rank(id(7), 0, 5_000),
            history.rank(id(1), 1, 99_000),
            history.rank(id(1), 2, 0),
            history.rank(id(8), 0, 21_000),
            history.rank(id(8), 0, 22_000),
            history.rank(id(2), 1, 0),
        ];
        assert!(ranks.is_sorted(), "{ranks:?}");
        // A run inside the first session comes before what that session wrote itself.
        assert!(history.rank(id(8), 0, 11_000) < history.rank(id(1), 1, 0));
    }

    #[test]
    fn a_state_knows_what_its_session_had_completed() {
        let history = history();
        let mut known = Known { number: RecordNumber(5), time_ms: 12_000, ..Known::default() };
        known.control.session =
            Some(crate::log::Session { id: id(1), grant: id(0), endpoint: String::new() });
        known.control.buffer_complete = 4;
        known.control.ended_runs.insert(id(8));
        let newer = |session, order, time_ms| {
            history.is_newer(&known, session, history.rank(session, order, time_ms))
        };
        assert!(!newer(id(1), 4, 0));
        assert!(newer(id(1), 5, 0));
        assert!(newer(id(2), 0, 0));
        assert!(!newer(id(8), 0, 30_000), "the run is committed");
        assert!(newer(id(9), 0, 12_000));
        assert!(!newer(id(9), 0, 11_000));
    }
}
