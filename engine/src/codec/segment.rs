//! Segments: a chunk table, then the chunks.

use bytes::Bytes;

use super::chunk::decode_table;
use super::envelope::{Body, ObjectWriter, open_body};
use super::wire::Reader;
use super::{ChunkEntry, Chunks, CodecError, DataKey, Identity, ObjectKind, ObjectName};
use crate::ids::{ObjectId, SessionId, VolumeId};

/// Segments begin at addresses that are multiples of this, from which a disk can take them without a copy.
const MEMORY_ALIGN: usize = 4096;

/// A segment, ready to be put.
#[derive(Debug, Clone)]
pub struct EncodedSegment {
    /// The object.
    pub bytes: Bytes,
    /// Its chunks; [`super::extents_of`] makes map entries of them once the record that makes them visible has a
    /// number.
    pub chunks: Vec<ChunkEntry>,
}

/// Encodes `chunks` as a segment of the volume whose data key `key` is.
pub fn encode_segment(identity: Identity, chunks: &Chunks, key: Option<&DataKey>) -> EncodedSegment {
    encode_segment_within(Vec::new(), identity, chunks, key)
}

/// As [`encode_segment`], in memory that was used for another segment before: fresh memory of that size costs as much
/// as the copy into it. Aligned to pages, so that a directory's disk can take it from there.
pub fn encode_segment_within(
    memory: Vec<u8>,
    identity: Identity,
    chunks: &Chunks,
    key: Option<&DataKey>,
) -> EncodedSegment {
    let encrypted = key.is_some();
    let mut body = Body { bytes: Vec::with_capacity(chunks.table_bytes()), lz4: false };
    chunks.encode_table(&mut body.bytes, encrypted);
    let (kind, data_bytes) = (ObjectKind::Segment, chunks.data_bytes(encrypted));
    let mut object = ObjectWriter::within(memory, MEMORY_ALIGN, kind, identity, key, &body, data_bytes);
    let chunks = chunks.write(&mut object);
    EncodedSegment { bytes: object.finish(), chunks }
}

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentTable {
    /// The session that wrote the segment; its chunks may be older.
    pub session: SessionId,
    /// Its chunks.
    pub chunks: Vec<ChunkEntry>,
}

/// Reads the table of the segment `id` from its first bytes, at least [`super::Envelope::body_end`] of them.
pub fn decode_segment_table(
    bytes: &Bytes,
    volume: VolumeId,
    id: ObjectId,
    key: Option<&DataKey>,
) -> Result<SegmentTable, CodecError> {
    let object = ObjectName::ById { kind: ObjectKind::Segment, volume, id };
    let (envelope, body) = open_body(object, bytes, key)?;
    let mut reader = Reader::new(object, &body);
    let chunks = decode_table(&mut reader, &envelope)?;
    reader.end()?;
    Ok(SegmentTable { session: envelope.identity.session, chunks })
}
