//! Chunks: runs of up to 16 consecutive blocks, compressed and sealed, each readable by itself.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};

use super::envelope::{Envelope, ObjectWriter};
use super::seal::trailer_bytes;
use super::wire::{Reader, put_count};
use super::{
    Codec, CodecError, DataKey, ENVELOPE_BYTES, ObjectKind, ObjectName, SEGMENT_BYTES_MAX,
    SEGMENT_CHUNKS_MAX, Sealer,
};
use crate::ids::{BLOCK_BYTES, CHUNK_BLOCKS_MAX, ObjectId, SessionId};
use crate::map::{Extent, Location, SegmentKind, SegmentRef};

const BLOCK: usize = BLOCK_BYTES as usize;
const SESSION_BYTES: usize = 16;
const ENTRY_BYTES: usize = 24;
/// zstd's own default: the knee of its curve of speed against size.
const ZSTD_LEVEL: i32 = 3;

/// A chunk as an object's table lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChunkEntry {
    /// The first block.
    pub lba: u64,
    /// How many blocks, 1 to 16.
    pub blocks: u8,
    /// Place in the write order of its session.
    pub order: u64,
    /// The session that wrote the data first; relocation keeps it.
    pub session: SessionId,
    /// How it is compressed.
    pub codec: Codec,
    /// Where the sealed chunk begins in the object, in bytes.
    pub stored_offset: u32,
    /// Bytes of the sealed chunk, with its trailer.
    pub stored_len: u32,
}

impl ChunkEntry {
    /// The whole chunk as a map entry, given the segment that it lies in.
    pub fn extent(&self, segment: SegmentRef) -> Extent {
        let location = Location {
            segment,
            stored_offset: self.stored_offset,
            stored_len: self.stored_len,
            codec: self.codec,
            chunk_blocks: self.blocks,
            chunk_offset: 0,
        };
        Extent { lba: self.lba, blocks: u32::from(self.blocks), location: Some(location) }
    }
}

/// What `chunks` of one segment say about the map: sorted, not overlapping. Where chunks overlap, the one with the
/// higher order wins, and of two with the same order the later in the table.
pub fn extents_of(chunks: &[ChunkEntry], segment: SegmentRef) -> Vec<Extent> {
    let mut extents: Vec<_> = chunks.iter().map(|chunk| chunk.extent(segment)).collect();
    extents.sort_by_key(|extent| extent.lba);
    let overlaps = extents.windows(2).any(|pair| pair[0].end() > pair[1].lba);
    if overlaps { resolve(chunks, segment) } else { extents }
}

fn resolve(chunks: &[ChunkEntry], segment: SegmentRef) -> Vec<Extent> {
    let mut oldest_first: Vec<_> = chunks.iter().collect();
    oldest_first.sort_by_key(|chunk| chunk.order);
    let mut newest = BTreeMap::new();
    for (age, chunk) in oldest_first.iter().enumerate() {
        newest.extend((chunk.lba..chunk.lba + u64::from(chunk.blocks)).map(|lba| (lba, age)));
    }
    let blocks: Vec<_> = newest.into_iter().collect();
    blocks
        .chunk_by(|(lba, age), (next_lba, next_age)| lba + 1 == *next_lba && age == next_age)
        .map(|run| {
            let (lba, age) = run[0];
            oldest_first[age].extent(segment).slice(lba, lba + run.len() as u64)
        })
        .collect()
}

/// Compressed chunks that wait to become a segment, or to go with a record.
#[derive(Debug)]
pub struct Chunks {
    codec: Codec,
    session: SessionId,
    pending: Vec<Pending>,
    sessions: Vec<SessionId>,
    payload_bytes: usize,
    scratch: Vec<u8>,
    /// How many of the last chunks in a row did not compress.
    stubborn: u32,
}

/// After so many chunks in a row that did not compress, only each of so many is tried, until one does: data that are
/// compressed or encrypted already come in long stretches.
const STUBBORN_CHUNKS: u32 = 8;

#[derive(Debug)]
struct Pending {
    lba: u64,
    order: u64,
    session: u16,
    blocks: u8,
    codec: Codec,
    payload: Bytes,
}

impl Chunks {
    /// No chunks yet; `session` will have written them.
    pub fn new(codec: Codec, session: SessionId) -> Self {
        let (pending, sessions) = (Vec::new(), Vec::new());
        Self { codec, session, pending, sessions, payload_bytes: 0, scratch: Vec::new(), stubborn: 0 }
    }

    /// Takes the blocks in `data`, of which the first is `lba`, written as `order` of the session. Chunks end at
    /// multiples of 16 blocks, so that later overwrites tend to hit whole ones.
    ///
    /// Returns how many blocks were taken: fewer than given if the segment is full. The rest goes into the next one.
    ///
    /// # Panics
    /// If `data` is no whole number of blocks.
    #[must_use = "blocks that do not fit have to go into another segment"]
    pub fn push(&mut self, lba: u64, order: u64, data: &[u8]) -> u64 {
        self.push_from(self.session, lba, order, data)
    }

    /// As [`Self::push`], for data that is shared: what does not compress is not copied.
    ///
    /// # Panics
    /// If `data` is no whole number of blocks.
    #[must_use = "blocks that do not fit have to go into another segment"]
    pub fn push_shared(&mut self, lba: u64, order: u64, data: &Bytes) -> u64 {
        self.push_chunks(self.session, lba, order, data, |chunk| data.slice_ref(chunk))
    }

    /// As [`Self::push`], for data that another session wrote first.
    ///
    /// # Panics
    /// If `data` is no whole number of blocks.
    #[must_use = "blocks that do not fit have to go into another segment"]
    pub fn push_from(&mut self, session: SessionId, lba: u64, order: u64, data: &[u8]) -> u64 {
        self.push_chunks(session, lba, order, data, Bytes::copy_from_slice)
    }

    fn push_chunks(
        &mut self,
        session: SessionId,
        lba: u64,
        order: u64,
        data: &[u8],
        raw: impl Fn(&[u8]) -> Bytes,
    ) -> u64 {
        assert!(data.len().is_multiple_of(BLOCK), "{} bytes are no whole number of blocks", data.len());
        let (mut at, mut rest) = (lba, data);
        while !rest.is_empty() {
            let to_boundary = u64::from(CHUNK_BLOCKS_MAX) - at % u64::from(CHUNK_BLOCKS_MAX);
            let (chunk, after) = rest.split_at(rest.len().min(to_boundary as usize * BLOCK));
            if !self.push_chunk(session, at, order, chunk, &raw) {
                break;
            }
            at += (chunk.len() / BLOCK) as u64;
            rest = after;
        }
        at - lba
    }

    fn push_chunk(
        &mut self,
        session: SessionId,
        lba: u64,
        order: u64,
        data: &[u8],
        raw: impl Fn(&[u8]) -> Bytes,
    ) -> bool {
        let is_tried = self.stubborn < STUBBORN_CHUNKS || self.stubborn.is_multiple_of(STUBBORN_CHUNKS);
        let codec = if is_tried { self.codec } else { Codec::Raw };
        let (codec, payload) = compress(codec, data, &mut self.scratch);
        // A new session and the larger of the two trailers are always counted: close enough to the limit.
        let added = payload.len() + ENTRY_BYTES + SESSION_BYTES + trailer_bytes(true);
        let used = stored_bytes(self.sessions.len(), self.pending.len(), self.payload_bytes);
        if used + added > SEGMENT_BYTES_MAX || self.pending.len() == SEGMENT_CHUNKS_MAX {
            return false;
        }
        // Recent sessions are the likely ones. There are no more of them than chunks, so 16 bits suffice.
        let known = self.sessions.iter().rposition(|known| *known == session);
        let index = known.unwrap_or_else(|| {
            self.sessions.push(session);
            self.sessions.len() - 1
        });
        self.stubborn = if codec == Codec::Raw { self.stubborn.saturating_add(1) } else { 0 };
        self.payload_bytes += payload.len();
        let payload = if codec == Codec::Raw { raw(payload) } else { Bytes::copy_from_slice(payload) };
        let (session, blocks) = (index as u16, (data.len() / BLOCK) as u8);
        self.pending.push(Pending { lba, order, session, blocks, codec, payload });
        true
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// The blocks of each.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<u64>> {
        self.pending.iter().map(|chunk| chunk.lba..chunk.lba + u64::from(chunk.blocks))
    }

    /// Bytes of the segment that these chunks would be, with encryption.
    pub fn stored_bytes(&self) -> usize {
        stored_bytes(self.sessions.len(), self.pending.len(), self.payload_bytes)
    }

    /// Bytes of the sealed chunks alone.
    pub(super) fn data_bytes(&self, encrypted: bool) -> usize {
        self.payload_bytes + self.pending.len() * trailer_bytes(encrypted)
    }

    /// Appends the chunk table.
    pub(super) fn encode_table(&self, out: &mut Vec<u8>, encrypted: bool) {
        put_count(out, self.sessions.len());
        self.sessions.iter().for_each(|session| out.put_slice(&session.0));
        put_count(out, self.pending.len());
        for chunk in &self.pending {
            out.put_u64_le(chunk.lba);
            out.put_u64_le(chunk.order);
            out.put_u32_le((chunk.payload.len() + trailer_bytes(encrypted)) as u32);
            out.put_u16_le(chunk.session);
            out.put_u8(chunk.blocks);
            out.put_u8(chunk.codec as u8);
        }
    }

    /// Bytes of what [`Self::encode_table`] appends.
    pub(super) fn table_bytes(&self) -> usize {
        table_bytes(self.sessions.len(), self.pending.len())
    }

    /// Appends the chunks to the object; the table as a decoder will see it.
    pub(super) fn write(&self, object: &mut ObjectWriter) -> Vec<ChunkEntry> {
        let mut entries = Vec::with_capacity(self.pending.len());
        for chunk in &self.pending {
            let (stored_offset, stored_len) = object.part(&chunk.payload);
            entries.push(ChunkEntry {
                lba: chunk.lba,
                blocks: chunk.blocks,
                order: chunk.order,
                session: self.sessions[usize::from(chunk.session)],
                codec: chunk.codec,
                stored_offset,
                stored_len,
            });
        }
        entries
    }
}

/// Bytes of a segment that surely hold so many chunks of one session, of so many bytes together, however they compress.
pub fn segment_bytes_at_most(chunks: usize, data_bytes: usize) -> usize {
    // As [`Chunks::push`] reckons: with room for one more session.
    stored_bytes(2, chunks, data_bytes)
}

fn table_bytes(sessions: usize, chunks: usize) -> usize {
    4 + sessions * SESSION_BYTES + 4 + chunks * ENTRY_BYTES
}

fn stored_bytes(sessions: usize, chunks: usize, payload_bytes: usize) -> usize {
    let trailers = (1 + chunks) * trailer_bytes(true);
    ENVELOPE_BYTES + table_bytes(sessions, chunks) + payload_bytes + trailers
}

/// Reads a chunk table. The chunks lie one after the other behind the body and fill the object.
pub(super) fn decode_table(
    reader: &mut Reader<'_>,
    envelope: &Envelope,
) -> Result<Vec<ChunkEntry>, CodecError> {
    let sessions: Vec<_> =
        (0..reader.count(SESSION_BYTES)?).map(|_| reader.array().map(ObjectId)).collect::<Result<_, _>>()?;
    let count = reader.count(ENTRY_BYTES)?;
    if count > SEGMENT_CHUNKS_MAX {
        let (object, limit) = (reader.object(), SEGMENT_CHUNKS_MAX);
        return Err(CodecError::TooLarge { object, what: "chunks", limit });
    }
    let mut entries = Vec::with_capacity(count);
    let mut offset = envelope.body_end();
    for _ in 0..count {
        let (lba, order) = (reader.u64()?, reader.u64()?);
        let (stored_len, session) = (reader.u32()?, reader.u16()?);
        let (blocks, codec) = (reader.u8()?, decode_codec(reader)?);
        let session = *sessions
            .get(usize::from(session))
            .ok_or_else(|| reader.malformed("a chunk's session is not in its table"))?;
        if blocks == 0 || u32::from(blocks) > CHUNK_BLOCKS_MAX || lba.checked_add(u64::from(blocks)).is_none()
        {
            return Err(reader.malformed("a chunk's blocks are out of range"));
        }
        if !stored_len_fits(stored_len, blocks, codec, envelope.encrypted) {
            return Err(reader.malformed("a chunk's length does not fit its blocks"));
        }
        let stored_offset =
            u32::try_from(offset).map_err(|_| reader.malformed("a chunk lies beyond 4 GiB"))?;
        entries.push(ChunkEntry { lba, blocks, order, session, codec, stored_offset, stored_len });
        offset += u64::from(stored_len);
    }
    if offset != u64::from(envelope.object_bytes) {
        return Err(reader.malformed("its chunks do not fill it"));
    }
    Ok(entries)
}

pub(super) fn decode_codec(reader: &mut Reader<'_>) -> Result<Codec, CodecError> {
    match reader.u8()? {
        0 => Ok(Codec::Raw),
        1 => Ok(Codec::Lz4),
        2 => Ok(Codec::Zstd),
        codec => Err(reader.newer(format!("codec {codec}"))),
    }
}

/// Raw chunks are exactly as long as their blocks, compressed ones shorter.
fn stored_len_fits(stored_len: u32, blocks: u8, codec: Codec, encrypted: bool) -> bool {
    let data_bytes = usize::from(blocks) * BLOCK;
    match ((stored_len as usize).checked_sub(trailer_bytes(encrypted)), codec) {
        (None, _) => false,
        (Some(payload_bytes), Codec::Raw) => payload_bytes == data_bytes,
        (Some(payload_bytes), Codec::Lz4 | Codec::Zstd) => (1..data_bytes).contains(&payload_bytes),
    }
}

/// The blocks of the whole chunk that `location` lies in, from its `stored_len` bytes at `stored_offset` and the data
/// key of the segment's owner.
pub fn decode_chunk(stored: Bytes, location: &Location, key: Option<&DataKey>) -> Result<Bytes, CodecError> {
    let SegmentRef { volume, birth, id, kind } = location.segment;
    let (kind, object) = match kind {
        SegmentKind::Object => {
            (ObjectKind::Segment, ObjectName::ById { kind: ObjectKind::Segment, volume, id })
        }
        SegmentKind::Record => {
            (ObjectKind::Record, ObjectName::ByNumber { kind: ObjectKind::Record, volume, number: birth })
        }
    };
    if stored.len() != location.stored_len as usize {
        let (have, need) = (stored.len() as u64, u64::from(location.stored_len));
        return Err(CodecError::Truncated { object, have, need });
    }
    let data_bytes = usize::from(location.chunk_blocks) * BLOCK;
    let malformed =
        || CodecError::Malformed { object, what: "a chunk does not hold the blocks that the map says" };
    if !stored_len_fits(location.stored_len, location.chunk_blocks, location.codec, key.is_some()) {
        return Err(malformed());
    }
    let sealer = Sealer::new(kind, volume, id, key);
    let payload = sealer.open(object, u64::from(location.stored_offset), None, stored)?;
    match location.codec {
        Codec::Raw => Ok(payload),
        Codec::Lz4 => {
            let mut data = vec![0; data_bytes];
            let bytes = lz4_flex::block::decompress_into(&payload, &mut data).map_err(|_| malformed())?;
            if bytes == data_bytes { Ok(data.into()) } else { Err(malformed()) }
        }
        Codec::Zstd => {
            let data = zstd::bulk::decompress(&payload, data_bytes).map_err(|_| malformed())?;
            if data.len() == data_bytes { Ok(data.into()) } else { Err(malformed()) }
        }
    }
}

/// The shorter of `data` and `data` compressed, and which of them it is.
fn compress<'a>(codec: Codec, data: &'a [u8], scratch: &'a mut Vec<u8>) -> (Codec, &'a [u8]) {
    let bytes = match codec {
        Codec::Raw => None,
        Codec::Lz4 => {
            scratch.resize(lz4_flex::block::get_maximum_output_size(data.len()), 0);
            lz4_flex::block::compress_into(data, scratch).ok()
        }
        Codec::Zstd => {
            scratch.resize(zstd::zstd_safe::compress_bound(data.len()), 0);
            zstd::bulk::compress_to_buffer(data, scratch, ZSTD_LEVEL).ok()
        }
    };
    match bytes {
        Some(bytes) if bytes < data.len() => (codec, &scratch[..bytes]),
        Some(_) | None => (Codec::Raw, data),
    }
}
