//! From writes that have gathered to segments and records.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Limits, Overlay};
use crate::codec::{self, Chunks, CodecError, EncodedSegment, Identity};
use crate::ids::{BLOCK_BYTES, CHUNK_BLOCKS_MAX, ObjectId, RecordNumber, SessionId, VolumeId};
use crate::log::{Log, LogError, Move, Op, Record};
use crate::map::{self, Extent, PageSource, SegmentKind, SegmentRef};

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
    /// Where those blocks were copied from, sorted.
    pub(super) sources: Vec<Extent>,
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

    /// Both; `bulk` has no data for the record itself.
    pub(super) fn with(mut self, bulk: Self) -> Self {
        self.segments.extend(bulk.segments);
        self.holes.extend(bulk.holes);
        self.moved.extend(bulk.moved);
        self.sources.extend(bulk.sources);
        self
    }
}

/// Encodes the mutations of `overlay`: up to `inline_bytes` of data for the record, more into segments.
pub(super) fn encode(
    overlay: &Overlay,
    (volume, session): (VolumeId, SessionId),
    limits: &Limits,
    log: &Log,
) -> Result<Batch, CodecError> {
    let mut batch = Batch::default();
    let inline = overlay.data_bytes() <= limits.inline_bytes;
    let mut chunks = Chunks::new(limits.codec, session);
    let seal = |chunks: &Chunks| {
        let id = super::random_id(&log.env);
        let identity = Identity { volume, id, session };
        let EncodedSegment { bytes, chunks } = codec::encode_segment(identity, chunks, log.key.as_ref());
        Segment { id, body: bytes, chunks }
    };
    for window in windows(overlay, &mut batch.holes) {
        let (mut lba, mut data) = (window.lba, window.data);
        loop {
            let taken = chunks.push(lba, window.order, &data);
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
    data: Bytes,
}

/// The data of `overlay`, neighbours joined as far as a chunk reaches; its discards go to `holes`.
fn windows(overlay: &Overlay, holes: &mut Vec<Extent>) -> Vec<Window> {
    let chunk = u64::from(CHUNK_BLOCKS_MAX);
    let mut done = Vec::new();
    let mut open: Option<(u64, u64, BytesMut)> = None;
    let mut close = |open: &mut Option<(u64, u64, BytesMut)>| {
        if let Some((lba, order, data)) = open.take() {
            done.push(Window { lba, order, data: data.freeze() });
        }
    };
    for run in overlay.iter() {
        let Some(data) = &run.data else {
            close(&mut open);
            holes.extend(hole(run.lba, run.blocks));
            continue;
        };
        let (mut lba, mut rest) = (run.lba, data.clone());
        while !rest.is_empty() {
            let room = chunk - lba % chunk;
            let piece = rest.split_to(rest.len().min((room * BLOCK_BYTES) as usize));
            let blocks = piece.len() as u64 / BLOCK_BYTES;
            match &mut open {
                Some((start, order, joined))
                    if *start + joined.len() as u64 / BLOCK_BYTES == lba && *start / chunk == lba / chunk =>
                {
                    joined.extend_from_slice(&piece);
                    *order = (*order).max(run.order);
                }
                Some(_) | None => {
                    close(&mut open);
                    open = Some((lba, run.order, BytesMut::from(piece.as_ref())));
                }
            }
            lba += blocks;
        }
    }
    close(&mut open);
    done
}

/// A discard as map entries: one entry cannot name more than 2³² - 1 blocks.
pub(super) fn hole(lba: u64, blocks: u64) -> impl Iterator<Item = Extent> {
    const MAX: u64 = u32::MAX as u64;
    (0..blocks.div_ceil(MAX)).map(move |part| {
        let from = lba + part * MAX;
        Extent { lba: from, blocks: (lba + blocks - from).min(MAX) as u32, location: None }
    })
}

/// The map entries of a batch's segments and discards, sorted.
fn extents(batch: &Batch, volume: VolumeId, birth: RecordNumber) -> Vec<Extent> {
    let segments = batch.segments.iter().flat_map(|Segment { id, chunks, .. }| {
        codec::extents_of(chunks, SegmentRef { volume, birth, id: *id, kind: SegmentKind::Object })
    });
    let mut extents: Vec<Extent> = segments.chain(batch.holes.iter().copied()).collect();
    extents.sort_by_key(|extent| extent.lba);
    extents
}

/// The moves of a batch's copies. A copied chunk lies within one source: chunks are made from one source each.
fn moves(batch: &Batch, volume: VolumeId, birth: RecordNumber) -> Vec<Move> {
    let copies = batch.moved.iter().flat_map(|Segment { id, chunks, .. }| {
        codec::extents_of(chunks, SegmentRef { volume, birth, id: *id, kind: SegmentKind::Object })
    });
    let mut moves: Vec<Move> = copies
        .filter_map(|to| {
            let after = batch.sources.partition_point(|source| source.lba <= to.lba);
            let source = batch.sources[..after].last().filter(|source| source.end() >= to.end())?;
            Some(Move { to, from: source.slice(to.lba, to.end()).location? })
        })
        .collect();
    moves.sort_by_key(|moved| moved.to.lba);
    moves
}

/// Encodes the record that makes `batch` visible and does `ops`. More entries than fit a record are put into pages
/// first; those of an attempt whose number was taken are garbage.
pub(super) async fn encode_record(
    mut record: Record,
    batch: &Batch,
    ops: &[Op],
    log: &Log,
    pages: &Arc<dyn PageSource>,
) -> Result<codec::EncodedRecord, LogError> {
    let extents = extents(batch, record.volume, record.number);
    if extents.len() > codec::RECORD_EXTENTS_MAX {
        record.ops.push(Op::WritePages { pages: map::write_pages(pages, extents).await? });
    } else if !extents.is_empty() {
        record.ops.push(Op::Write { extents });
    }
    let moves = moves(batch, record.volume, record.number);
    if !moves.is_empty() {
        record.ops.push(Op::Relocate { moves });
    }
    record.ops.extend_from_slice(ops);
    Ok(codec::encode_record(record, batch.inline.as_ref(), log.key.as_ref())?)
}
