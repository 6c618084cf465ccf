//! Giving back the room of segments that are mostly overwritten, and gathering small ones.
//!
//! # Policy
//! Segments that no snapshot needs are rewritten, emptiest first, until what all of them take is within a fifth of
//! what is live in them. Small ones (data that travelled in records, small flushes) are gathered into full segments
//! when there are many, oldest first. A round moves about twice what was written since the last one.
//!
//! A segment that the head names, and that was born before a snapshot was taken, is named by that snapshot too: blocks
//! never come back. So birth alone tells what snapshots hold.
//!
//! # Guarantees
//! A move applies only where the map still names the source, so newer data stays. Copies keep the session and the
//! place in the write order of the original.
//!
//! # Crash behaviour
//! Copies that no record names are garbage of the session.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::GcError;
use super::mark::{Needed, Usage};
use super::sweep::Swept;
use crate::codec::{self, ENVELOPE_BYTES, Envelope, ObjectKind, ObjectName, RECORD_MOVES_MAX};
use crate::ids::{BLOCK_BYTES, ObjectId, RecordNumber};
use crate::map::{Extent, Location, SegmentKind, SegmentRef, Walk};
use crate::volume::{Bulk, FetchError, Fetcher, Limits, Volume, Writer};

/// Moved in a round, however little was written.
const ROUND_BYTES: u64 = 64 << 20;
/// Bytes of blocks that one record moves at most.
const STEP_BYTES: u64 = 32 << 20;
/// Bytes of blocks read at once.
const READ_BYTES: u64 = 4 << 20;
/// Small segments are gathered when there are so many.
const SMALL_MIN: usize = 64;
/// A segment is small below this part of a full one.
const SMALL_PART: u64 = 4;
/// What stays unused at most, as a part of what is live.
const SLACK_PART: u64 = 5;
/// Bytes that a copy takes beyond the live ones, at most: of each chunk its entry in the table, a trailer and what it
/// compresses worse alone; of each segment its envelope and the table's begin. So a copy never looks worth copying.
const CHUNK_EXTRA_BYTES: u64 = 64;
const SEGMENT_EXTRA_BYTES: u64 = 160;
/// How long reading one table may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Moves what is worth it after `written_bytes` were written since the last round. Returns the bytes of blocks moved.
pub(super) async fn relocate(volume: &Volume, swept: &Swept, written_bytes: u64) -> Result<u64, GcError> {
    let held =
        swept.cut.control.snapshots.keys().next_back().map_or(RecordNumber(0), |last| RecordNumber(last.0));
    let budget = ROUND_BYTES + 2 * written_bytes;
    let chosen = choose(&swept.needed, held, swept.covered, volume.limits(), budget);
    if chosen.is_empty() {
        return Ok(0);
    }
    let mut mover =
        Mover { volume, bulk: volume.bulk(volume.session()), tables: BTreeMap::new(), step: Step::default() };
    let mut walk = Walk::new(&swept.cut.head);
    let mut moved_bytes = 0;
    let mut batch: Vec<Extent> = Vec::new();
    let mut batch_bytes = 0;
    loop {
        let extents = walk.next().await?;
        let ended = extents.is_none();
        let ours =
            |extent: &Extent| extent.location.is_some_and(|location| chosen.contains(&location.segment.id));
        for extent in extents.unwrap_or_default().into_iter().filter(ours) {
            batch_bytes += bytes(&extent);
            batch.push(extent);
            if batch_bytes >= READ_BYTES {
                moved_bytes += std::mem::take(&mut batch_bytes);
                mover.copy(&std::mem::take(&mut batch)).await?;
            }
        }
        if ended {
            mover.copy(&batch).await?;
            mover.commit().await?;
            return Ok(moved_bytes + batch_bytes);
        }
    }
}

/// What a copy of the live data takes.
fn copy_bytes(usage: &Usage) -> u64 {
    usage.live_bytes + usage.extents * CHUNK_EXTRA_BYTES + SEGMENT_EXTRA_BYTES
}

/// What rewriting the segment gives back.
fn spare_bytes(usage: &Usage) -> u64 {
    usage.size_bytes.saturating_sub(copy_bytes(usage))
}

fn bytes(extent: &Extent) -> u64 {
    u64::from(extent.blocks) * BLOCK_BYTES
}

/// The segments to rewrite: of those born after `held`, whose births a durable root covers.
fn choose(
    needed: &Needed,
    held: RecordNumber,
    covered: RecordNumber,
    limits: &Limits,
    budget_bytes: u64,
) -> BTreeSet<ObjectId> {
    let free = |usage: &Usage| usage.birth > held && usage.birth <= covered && usage.size_bytes > 0;
    let mut segments: Vec<(&ObjectId, &Usage)> =
        needed.head.iter().filter(|(_, usage)| free(usage)).collect();
    let mut stored_bytes: u64 = segments.iter().map(|(_, usage)| usage.size_bytes).sum();
    let live_bytes: u64 = segments.iter().map(|(_, usage)| copy_bytes(usage)).sum();
    let mut left_bytes = budget_bytes;
    let mut chosen = BTreeSet::new();
    let mut take = |id: &ObjectId, usage: &Usage, stored_bytes: &mut u64| {
        if usage.live_bytes <= left_bytes && chosen.insert(*id) {
            left_bytes -= usage.live_bytes;
            *stored_bytes = stored_bytes.saturating_sub(spare_bytes(usage));
        }
    };
    let small = |usage: &Usage| usage.size_bytes < limits.segment_bytes / SMALL_PART;
    if segments.iter().filter(|(_, usage)| small(usage)).count() >= SMALL_MIN {
        segments.sort_by_key(|(_, usage)| usage.birth);
        for (id, usage) in segments.iter().filter(|(_, usage)| small(usage)) {
            take(id, usage, &mut stored_bytes);
        }
    }
    // In thousandths; the oldest first where they are equal.
    segments.retain(|(_, usage)| spare_bytes(usage) > 0);
    segments.sort_by_key(|(_, usage)| (copy_bytes(usage) * 1000 / usage.size_bytes, usage.birth));
    for (id, usage) in segments {
        if stored_bytes <= live_bytes + live_bytes / SLACK_PART {
            break;
        }
        take(id, usage, &mut stored_bytes);
    }
    chosen
}

#[derive(Debug, Default)]
struct Step {
    moves: usize,
    bytes: u64,
}

/// Copies blocks, a record at a time.
struct Mover<'a> {
    volume: &'a Volume,
    bulk: Bulk,
    /// Who wrote the chunks of the segments met so far, by their place.
    tables: BTreeMap<ObjectId, BTreeMap<u32, Writer>>,
    step: Step,
}

impl Mover<'_> {
    async fn copy(&mut self, extents: &[Extent]) -> Result<(), GcError> {
        let locations: Vec<Location> = extents.iter().filter_map(|extent| extent.location).collect();
        let chunks = self.volume.reader().fetcher().chunks(&locations).await?;
        for (extent, location) in extents.iter().zip(&locations) {
            let data = Fetcher::blocks(&chunks, location, extent.blocks)
                .ok_or(FetchError::Short { location: *location })?;
            let writer = self.writer(location).await?;
            self.bulk.relocate_as(writer, *extent, &data).await?;
            self.step.moves += 1;
            self.step.bytes += bytes(extent);
            if self.step.moves >= RECORD_MOVES_MAX || self.step.bytes >= STEP_BYTES {
                self.commit().await?;
            }
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), GcError> {
        if self.step.moves == 0 {
            return Ok(());
        }
        self.step = Step::default();
        let bulk = std::mem::replace(&mut self.bulk, self.volume.bulk(self.volume.session()));
        self.volume.commit_relocation(bulk).await?;
        Ok(())
    }

    async fn writer(&mut self, location: &Location) -> Result<Writer, GcError> {
        let segment = location.segment;
        if !self.tables.contains_key(&segment.id) {
            let table = read_table(self.volume, segment).await?;
            self.tables.insert(segment.id, table);
        }
        let found = self.tables.get(&segment.id).and_then(|table| table.get(&location.stored_offset));
        // The chunk itself was read and checked; only who wrote it is not known.
        Ok(found.copied().unwrap_or(Writer { session: self.volume.session(), order: 0 }))
    }
}

/// Who wrote the chunks of a segment, by their place in it.
async fn read_table(volume: &Volume, segment: SegmentRef) -> Result<BTreeMap<u32, Writer>, GcError> {
    let log = volume.log();
    let (key, deadline) = (segment.key(), Instant::now() + PATIENCE);
    let chunks = match segment.kind {
        SegmentKind::Record => {
            let bytes = log.retry(deadline, || log.store.get(&key)).await?;
            codec::decode_record(&bytes, segment.volume, segment.birth, log.key.as_ref())
                .map_err(FetchError::from)?
                .chunks
        }
        SegmentKind::Object => {
            let name = ObjectName::ById { kind: ObjectKind::Segment, volume: segment.volume, id: segment.id };
            let first = log.retry(deadline, || log.store.get_range(&key, 0..ENVELOPE_BYTES as u64)).await?;
            let envelope = Envelope::decode(name, &first).map_err(FetchError::from)?;
            let begin = log.retry(deadline, || log.store.get_range(&key, 0..envelope.body_end())).await?;
            codec::decode_segment_table(&begin, segment.volume, segment.id, log.key.as_ref())
                .map_err(FetchError::from)?
                .chunks
        }
    };
    let writer = |chunk: &codec::ChunkEntry| Writer { session: chunk.session, order: chunk.order };
    Ok(chunks.iter().map(|chunk| (chunk.stored_offset, writer(chunk))).collect())
}
