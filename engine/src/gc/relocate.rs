//! Giving back the room of segments that are mostly overwritten, and gathering small ones: what the head and the
//! snapshots need of them is copied into new segments.
//!
//! # Guarantees
//! A move applies only where the map still names the source, so newer data stays. Copies keep the session and the
//! place in the write order of the original. What a pinned snapshot names is not moved, and neither is what lies in a
//! damaged segment, which does not keep the others from being moved.
//!
//! # Cost
//! Segments are read one after the other, neighbouring chunks with one request. In memory stand the places of the
//! chunks in hand ([`super::gather`]) and the blocks of one segment.
//!
//! # Crash behaviour
//! Copies that no record and no map names are garbage of the session.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::GcError;
use super::choose::{Bounds, choose};
use super::differences::{Differences, Held};
use super::gather::{Gather, HEAD, Names, Newest, Piece};
use super::generations::{add_late, switch};
use super::sweep::Swept;
use crate::codec::{self, ENVELOPE_BYTES, Envelope, ObjectKind, ObjectName, RECORD_MOVES_MAX};
use crate::ids::{BLOCK_BYTES, ObjectId, RecordNumber, SnapshotId};
use crate::log::Move;
use crate::map::{Extent, Location, MapView, SegmentKind, SegmentRef};
use crate::volume::{Bulk, FetchError, Fetcher, Volume, Writer};

/// Bytes of blocks that one record moves at most.
pub(super) const STEP_BYTES: u64 = 32 << 20;
/// How long reading one table, or writing new maps, may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What only snapshots need is told apart by its age in so many parts of equal size, or fewer of a segment each: every
/// segment is read once for each part.
const PARTS: u64 = 16;

/// What a relocation did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Relocated {
    /// Bytes of blocks moved.
    pub bytes: u64,
    /// The last record that switched the map of a snapshot.
    pub switched: Option<RecordNumber>,
}

/// What a session's collector knows from its earlier rounds.
pub(super) struct Known<'a> {
    pub differences: &'a mut Differences,
    /// Segments that were found damaged.
    pub damaged: &'a mut BTreeSet<ObjectId>,
}

/// Moves what is worth it after `written_bytes` were written since the last round. Snapshots name nothing that was born
/// after `held`.
pub(super) async fn relocate(
    volume: &Volume,
    swept: &mut Swept,
    known: Known<'_>,
    held: RecordNumber,
    written_bytes: u64,
) -> Result<Relocated, GcError> {
    let Known { differences, damaged } = known;
    let limits = volume.limits();
    // The map of a snapshot that was taken this very moment is not written yet. It waits for the next round.
    if !swept.cut.unmapped.is_empty() {
        return Ok(Relocated::default());
    }
    let bounds = Bounds { covered: swept.covered, held, written_bytes, damaged, limits };
    let chosen = choose(&swept.needed, bounds);
    if chosen.is_empty() {
        return Ok(Relocated::default());
    }
    let head = swept.cut.head.of_own_pages(volume.id());
    let mut gather = Gather::new(volume.id(), names(&head, &swept.needed.snapshots), &chosen);
    let mut mover = Mover::new(volume, damaged);
    let mut switched = None;
    let mut newest = swept.cut.control.snapshots.keys().next_back().copied().unwrap_or(SnapshotId(0));
    while let Some(pieces) = gather.next().await? {
        mover.copy(pieces).await?;
        let moves = std::mem::take(&mut mover.moves);
        let deadline = Instant::now() + PATIENCE;
        let snapshots = &mut swept.needed.snapshots;
        newest = add_late(volume, snapshots, newest, deadline).await?;
        let held = held.max(RecordNumber(newest.0));
        let named = moves.into_iter().filter(|moved| moved.from.segment.birth <= held).collect();
        let last = switch(volume, &swept.cut, snapshots, differences, named, deadline).await?;
        switched = last.or(switched);
    }
    Ok(Relocated { bytes: mover.bytes, switched })
}

/// Cuts `extents` into parts of at least so many bytes, but for the last one; `bytes` says how many one has that another
/// follows.
fn cut(
    extents: &[(Newest, Extent)],
    part_bytes: u64,
    bytes: impl Fn(&Extent, &Extent) -> u64,
) -> impl Iterator<Item = &[(Newest, Extent)]> {
    let mut gathered = 0;
    extents.chunk_by(move |(_, extent), (_, next)| {
        gathered += bytes(extent, next);
        let goes_on = gathered < part_bytes;
        gathered = if goes_on { gathered } else { 0 };
        goes_on
    })
}

/// Cuts `extents`, which stand in the order of their places, into batches whose chunks hold so many bytes together, or the
/// part of a chunk more: chunks are opened whole, however little of them is needed.
fn batches(extents: &[(Newest, Extent)], batch_bytes: u64) -> impl Iterator<Item = &[(Newest, Extent)]> {
    let chunk =
        |extent: &Extent| extent.location.map(|location| (location.segment.id, location.stored_offset));
    let opened = move |extent: &Extent, next: &Extent| match extent.location {
        Some(location) if chunk(extent) != chunk(next) => u64::from(location.chunk_blocks) * BLOCK_BYTES,
        Some(_) | None => 0,
    };
    cut(extents, batch_bytes, opened)
}

/// Where to find what the head and the snapshots name.
fn names(head: &MapView, snapshots: &[Held]) -> Vec<Names> {
    let mut newer = head.clone();
    let mut names = vec![Names::Head(head.clone())];
    for held in snapshots {
        let older = MapView::from_stored(head.source().clone(), &held.map.map);
        names.push(match &held.only {
            Some(only) => Names::Known(only.clone()),
            None => Names::Compared { newer, older: older.clone() },
        });
        newer = older;
    }
    names
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
    step: Step,
    bytes: u64,
    /// What was committed.
    moves: Vec<Move>,
    damaged: &'a mut BTreeSet<ObjectId>,
}

/// Chunks, and who wrote them, by the segment and the place in it.
#[derive(Default)]
struct Read {
    chunks: BTreeMap<Location, Bytes>,
    writers: BTreeMap<(ObjectId, u32), Writer>,
}

impl<'a> Mover<'a> {
    fn new(volume: &'a Volume, damaged: &'a mut BTreeSet<ObjectId>) -> Self {
        let bulk = volume.bulk(volume.session());
        Self { volume, bulk, step: Step::default(), bytes: 0, moves: Vec::new(), damaged }
    }

    /// Copies the pieces, and commits: what the head needs, segment by segment in the order of their births, so that
    /// data of one age comes to lie together; and apart from it what only snapshots need, by the newest of those, so
    /// that what goes with the same snapshots does.
    async fn copy(&mut self, pieces: Vec<Piece>) -> Result<(), GcError> {
        let mut extents: Vec<(Newest, Extent)> = pieces.iter().flat_map(Piece::extents).collect();
        extents.sort_by_key(|(newest, _)| *newest);
        let snapshots = extents.split_off(extents.partition_point(|(newest, _)| *newest == HEAD));
        self.copy_part(&extents, true).await?;
        self.commit().await?;
        let bytes: u64 = snapshots.iter().map(|(_, extent)| extent.bytes()).sum();
        let part_bytes = self.volume.limits().segment_bytes.max(bytes / PARTS);
        for part in cut(&snapshots, part_bytes, |extent, _| extent.bytes()) {
            self.copy_part(part, false).await?;
        }
        self.commit().await
    }

    async fn copy_part(&mut self, part: &[(Newest, Extent)], in_head: bool) -> Result<(), GcError> {
        let mut part = part.to_vec();
        part.sort_by_key(|(_, extent)| extent.location.map(|location| (location.segment.birth, location)));
        for batch in batches(&part, self.volume.limits().segment_bytes) {
            self.copy_batch(batch.iter().map(|(_, extent)| *extent).collect(), in_head).await?;
        }
        Ok(())
    }

    async fn copy_batch(&mut self, mut extents: Vec<Extent>, in_head: bool) -> Result<(), GcError> {
        let Read { chunks, writers } = self.read(&mut extents).await?;
        extents.sort_by_key(|extent| extent.lba);
        for extent in extents {
            let Some(location) = extent.location else { continue };
            let data =
                Fetcher::blocks(&chunks, &location, extent.blocks).ok_or(FetchError::Short { location })?;
            // The chunk itself was read and checked; only who wrote it may be unknown.
            let unknown = Writer { session: self.volume.session(), order: 0 };
            let writer =
                writers.get(&(location.segment.id, location.stored_offset)).copied().unwrap_or(unknown);
            self.bulk.relocate_as(writer, extent, in_head, &data).await?;
            self.step.moves += 1;
            self.step.bytes += extent.bytes();
            if self.step.moves >= RECORD_MOVES_MAX || self.step.bytes >= STEP_BYTES {
                self.commit().await?;
            }
        }
        Ok(())
    }

    /// What `extents`, segment by segment, lie in. Those in segments that turn out to be damaged are left out of them.
    async fn read(&mut self, extents: &mut Vec<Extent>) -> Result<Read, GcError> {
        match read(self.volume, extents).await {
            Err(GcError::Fetch(error)) if error.is_damage() => {}
            outcome => return outcome,
        }
        let segment = |extent: &Extent| extent.location.map(|location| location.segment.id);
        let mut all = Read::default();
        for neighbours in extents.chunk_by(|one, next| segment(one) == segment(next)) {
            match read(self.volume, neighbours).await {
                Ok(found) => {
                    all.chunks.extend(found.chunks);
                    all.writers.extend(found.writers);
                }
                Err(GcError::Fetch(error)) if error.is_damage() => {
                    tracing::warn!(volume = %self.volume.id(), %error, "a damaged segment stays where it is");
                    self.damaged.extend(neighbours.first().and_then(segment));
                }
                Err(error) => return Err(error),
            }
        }
        extents.retain(|extent| segment(extent).is_some_and(|id| !self.damaged.contains(&id)));
        Ok(all)
    }

    async fn commit(&mut self) -> Result<(), GcError> {
        if self.step.moves == 0 {
            return Ok(());
        }
        self.bytes += std::mem::take(&mut self.step).bytes;
        let bulk = std::mem::replace(&mut self.bulk, self.volume.bulk(self.volume.session()));
        self.moves.extend(self.volume.commit_relocation(bulk).await?);
        Ok(())
    }
}

/// What `extents` lie in.
async fn read(volume: &Volume, extents: &[Extent]) -> Result<Read, GcError> {
    let locations: Vec<Location> = extents.iter().filter_map(|extent| extent.location).collect();
    let chunks = volume.reader().fetcher().unkept().chunks(&locations).await?;
    let writers = writers(volume, &locations).await?;
    Ok(Read { chunks, writers })
}

/// Who wrote the chunks of the segments that `locations` lie in.
async fn writers(
    volume: &Volume,
    locations: &[Location],
) -> Result<BTreeMap<(ObjectId, u32), Writer>, GcError> {
    let mut writers = BTreeMap::new();
    for neighbours in locations.chunk_by(|one, next| one.segment == next.segment) {
        let Some(segment) = neighbours.first().map(|location| location.segment) else { continue };
        let table = read_table(volume, segment).await?;
        writers.extend(table.into_iter().map(|(offset, writer)| ((segment.id, offset), writer)));
    }
    Ok(writers)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::ids::VolumeId;

    #[test]
    fn a_batch_opens_a_segments_worth_of_chunks_however_little_of_them_is_needed() {
        let segment = SegmentRef {
            volume: VolumeId([1; 16]),
            id: ObjectId([2; 16]),
            birth: RecordNumber(3),
            kind: SegmentKind::Object,
        };
        let place = |chunk: u32, chunk_offset| Location {
            segment,
            stored_offset: chunk * 1000,
            stored_len: 1000,
            codec: Codec::Raw,
            chunk_blocks: 16,
            chunk_offset,
        };
        // The second and the last block of each of 100 chunks.
        let extent = |n: u32| {
            let location = Some(place(n / 2, [1, 15][n as usize % 2]));
            (HEAD, Extent { lba: u64::from(n), blocks: 1, location })
        };
        let extents: Vec<(Newest, Extent)> = (0..200).map(extent).collect();
        let sizes: Vec<usize> = batches(&extents, 30 * 16 * BLOCK_BYTES).map(<[_]>::len).collect();
        assert_eq!(sizes, [60, 60, 60, 20]);
    }
}
