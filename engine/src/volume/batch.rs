//! From writes that have gathered to segments and records.

use std::sync::Arc;

use bytes::Bytes;

use super::Limits;
use super::overlay::Overlay;
use super::read::joined;
use super::upload::Spare;
use crate::codec::{self, Chunks, CodecError, EncodedSegment, Identity};
use crate::ids::{BLOCK_BYTES, CHUNK_BLOCKS_MAX, ObjectId, RecordNumber, SessionId, VolumeId};
use crate::log::{Log, LogError, Move, Op, Record};
use crate::map::{self, Extent, Location, Memtable, PageSource, SegmentKind, SegmentRef};

/// Data that are compressed and sealed before others get a turn.
const TURN_BYTES: usize = 1 << 20;

/// A segment on its way to the store.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: ObjectId,
    pub(super) body: Bytes,
    pub(super) chunks: Vec<codec::ChunkEntry>,
}

/// A batch, encoded as far as it can be before its record has a number.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Data in segments of their own.
    pub(super) segments: Vec<Segment>,
    /// Data that goes into the record.
    pub(super) inline: Option<Chunks>,
    /// What was discarded.
    pub(super) holes: Vec<Extent>,
    /// Segments with copies of blocks that stay what they are.
    pub(super) moved: Vec<Segment>,
    /// What those segments hold.
    pub(super) copies: Vec<CopiedChunk>,
}

/// A chunk of a copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopiedChunk {
    /// The segment that has it.
    pub(super) segment: ObjectId,
    pub(super) chunk: codec::ChunkEntry,
    /// Where its first block lay before; the others follow it.
    pub(super) from: Location,
    /// Whether the head named it there.
    pub(super) in_head: bool,
}

impl CopiedChunk {
    /// The move, once a record of this number has made it visible.
    pub(super) fn moved(&self, volume: VolumeId, birth: RecordNumber) -> Move {
        let segment = SegmentRef { volume, birth, id: self.segment, kind: SegmentKind::Object };
        Move { to: self.chunk.extent(segment), from: self.from }
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.inline.is_none() && self.holes.is_empty() && self.moved.is_empty()
    }

    /// Bytes of its data as stored.
    pub(super) fn stored_bytes(&self) -> u64 {
        let segments = self.segments.iter().chain(&self.moved).flat_map(|segment| &segment.chunks);
        let inline = self.inline.as_ref().map_or(0, Chunks::stored_bytes) as u64;
        segments.map(|chunk| u64::from(chunk.stored_len)).sum::<u64>() + inline
    }
}

/// Encodes the mutations of `overlay`: up to `inline_bytes` of data for the record, more into segments. Others get a turn
/// now and then meanwhile.
pub(super) async fn encode(
    overlay: &Overlay,
    session: SessionId,
    limits: &Limits,
    log: &Log,
    spare: &Spare,
) -> Result<Batch, CodecError> {
    let mut batch = Batch::default();
    let inline = overlay.data_bytes() <= limits.inline_bytes;
    let mut chunks = Chunks::new(limits.codec, session);
    let seal = |chunks: &Chunks| {
        let id = super::random_id(&log.env);
        let identity = Identity { volume: log.volume, id, session };
        let EncodedSegment { bytes, chunks } =
            codec::encode_segment_within(spare.take(), identity, chunks, log.key.as_ref());
        Segment { id, body: bytes, chunks }
    };
    let mut worked = 0;
    for window in windows(overlay, &mut batch.holes) {
        let (mut lba, mut data) = (window.lba, window.data());
        worked += data.len();
        loop {
            let taken = chunks.push_shared(lba, window.order, &data);
            data = data.split_off((taken * BLOCK_BYTES) as usize);
            lba += taken;
            if data.is_empty() {
                break;
            }
            batch.segments.push(seal(&chunks));
            chunks = Chunks::new(limits.codec, session);
        }
        if chunks.stored_bytes() as u64 >= limits.segment_bytes && !inline {
            batch.segments.push(seal(&chunks));
            chunks = Chunks::new(limits.codec, session);
        }
        if worked >= TURN_BYTES {
            worked = 0;
            tokio::task::yield_now().await;
        }
    }
    if !chunks.is_empty() {
        if inline && batch.segments.is_empty() {
            batch.inline = Some(chunks);
        } else {
            batch.segments.push(seal(&chunks));
        }
    }
    Ok(batch)
}

/// Consecutive data inside one aligned stretch of a chunk's length.
struct Window {
    lba: u64,
    order: u64,
    blocks: u64,
    /// One after the other.
    pieces: Vec<Bytes>,
}

impl Window {
    fn data(&self) -> Bytes {
        joined(&self.pieces)
    }
}

/// The data of `overlay`, neighbours joined as far as a chunk reaches; its discards go to `holes`.
fn windows(overlay: &Overlay, holes: &mut Vec<Extent>) -> Vec<Window> {
    let chunk = u64::from(CHUNK_BLOCKS_MAX);
    let mut windows: Vec<Window> = Vec::new();
    for run in overlay.iter() {
        let Some(data) = &run.data else {
            holes.extend(hole(run.lba, run.blocks));
            continue;
        };
        let (mut lba, mut rest) = (run.lba, data.clone());
        while !rest.is_empty() {
            let room = chunk - lba % chunk;
            let piece = rest.split_to(rest.len().min((room * BLOCK_BYTES) as usize));
            let blocks = piece.len() as u64 / BLOCK_BYTES;
            match windows.last_mut() {
                Some(open) if open.lba + open.blocks == lba && open.lba / chunk == lba / chunk => {
                    open.pieces.push(piece);
                    open.blocks += blocks;
                    open.order = open.order.max(run.order);
                }
                Some(_) | None => {
                    windows.push(Window { lba, order: run.order, blocks, pieces: vec![piece] });
                }
            }
            lba += blocks;
        }
    }
    windows
}

/// A discard as map entries: one entry cannot name more than 2³² - 1 blocks.
pub(super) fn hole(lba: u64, blocks: u64) -> impl Iterator<Item = Extent> {
    const MAX: u64 = u32::MAX as u64;
    (0..blocks.div_ceil(MAX)).map(move |part| {
        let from = lba + part * MAX;
        Extent { lba: from, blocks: (lba + blocks - from).min(MAX) as u32, location: None }
    })
}

/// The map entries of the segments and discards of `batches`, sorted: newer batches over older ones, and over all of
/// them the data that the record carries itself.
fn extents(batches: &[Arc<Batch>], volume: VolumeId, birth: RecordNumber) -> Vec<Extent> {
    let mut newest = Memtable::new();
    for batch in batches {
        for Segment { id, chunks, .. } in &batch.segments {
            let segment = SegmentRef { volume, birth, id: *id, kind: SegmentKind::Object };
            codec::extents_of(chunks, segment).into_iter().for_each(|extent| newest.insert(extent));
        }
        batch.holes.iter().for_each(|hole| newest.insert(*hole));
        batch.inline.iter().flat_map(Chunks::ranges).for_each(|range| newest.clear(range));
    }
    newest.iter().collect()
}

/// What of a batch's copies concerns the head, sorted.
fn moves(batch: &Batch, volume: VolumeId, birth: RecordNumber) -> Vec<Move> {
    let in_head = batch.copies.iter().filter(|copy| copy.in_head);
    let mut moves: Vec<Move> = in_head.map(|copy| copy.moved(volume, birth)).collect();
    moves.sort_by_key(|moved| moved.to.lba);
    moves
}

/// Encodes the record that makes `batches` visible, of which the last may have data for the record itself, and does
/// `ops`. More entries than fit a record are put into pages
/// first; those of an attempt whose number was taken are garbage.
pub(super) async fn encode_record(
    mut record: Record,
    batches: &[Arc<Batch>],
    ops: &[Op],
    log: &Log,
    pages: &Arc<dyn PageSource>,
) -> Result<codec::EncodedRecord, LogError> {
    let extents = extents(batches, record.volume, record.number);
    if extents.len() > codec::RECORD_EXTENTS_MAX {
        record.ops.push(Op::WritePages { pages: map::write_pages(pages, extents).await? });
    } else if !extents.is_empty() {
        record.ops.push(Op::Write { extents });
    }
    let moves: Vec<Move> =
        batches.iter().flat_map(|batch| moves(batch, record.volume, record.number)).collect();
    if !moves.is_empty() {
        record.ops.push(Op::Relocate { moves });
    }
    record.ops.extend_from_slice(ops);
    let inline = batches.last().and_then(|batch| batch.inline.as_ref());
    Ok(codec::encode_record(record, inline, log.key.as_ref())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{ChunkEntry, Codec};

    fn chunk(lba: u64, blocks: u8) -> ChunkEntry {
        let (session, codec) = (ObjectId([9; 16]), Codec::Raw);
        let stored_len = u32::from(blocks) * 4096 + 8;
        ChunkEntry { lba, blocks, order: 1, session, codec, stored_offset: 0, stored_len }
    }

    /// A discard has no place of its own in the order of writing: it must not seem to hide what was written after it.
    #[test]
    fn one_record_says_of_each_block_what_was_done_to_it_last() {
        let id = ObjectId([7; 16]);
        let segment = |chunks| Segment { id, body: Bytes::new(), chunks };
        let older = Batch {
            segments: vec![segment(vec![chunk(100, 16)])],
            holes: hole(0, 20).collect(),
            ..Batch::default()
        };
        let newer = Batch {
            segments: vec![segment(vec![chunk(4, 4)])],
            holes: hole(104, 4).collect(),
            ..Batch::default()
        };
        let mut inline = Chunks::new(Codec::Raw, ObjectId([9; 16]));
        assert_eq!(inline.push(10, 3, &[1; 4096]), 1);
        let tail = Batch { inline: Some(inline), ..Batch::default() };
        let batches = [older, newer, tail].map(Arc::new);
        let said: Vec<(u64, u32, bool)> = extents(&batches, VolumeId([1; 16]), RecordNumber(3))
            .iter()
            .map(|extent| (extent.lba, extent.blocks, extent.location.is_some()))
            .collect();
        let expected = [
            (0, 4, false),
            (4, 4, true),
            (8, 2, false),
            (11, 9, false),
            (100, 4, true),
            (104, 4, false),
            (108, 8, true),
        ];
        assert_eq!(said, expected);
    }
}
