//! Records of the commit log: header fields, then operations as tag, length and value, then the chunks of a record
//! that carries data.

use bytes::{BufMut, Bytes};

use super::chunk::decode_table;
use super::envelope::{Body, Envelope, ObjectWriter, open_whole};
use super::names::{Names, NamesWriter};
use super::wire::{Reader, put_text};
use super::{
    ChunkEntry, Chunks, CodecError, DataKey, Identity, META_BYTES_MAX, NAME_BYTES_MAX, ObjectKind,
    ObjectName, RECORD_BODY_BYTES_MAX, RECORD_DATA_BYTES_MAX, extents_of,
};
use crate::ids::{ObjectId, RecordNumber, SnapshotId, VolumeId};
use crate::log::{GrantMode, Op, Record};
use crate::map::{SegmentKind, SegmentRef};

/// The tags of operations. New ones are added at the end; a decoder that does not know one refuses the record.
mod tag {
    pub(super) const CREATE: u8 = 1;
    pub(super) const DEAD: u8 = 2;
    pub(super) const GRANT: u8 = 3;
    pub(super) const REVOKE: u8 = 4;
    pub(super) const OPEN: u8 = 5;
    pub(super) const CLOSE: u8 = 6;
    pub(super) const MAINTAIN: u8 = 7;
    pub(super) const SNAPSHOT: u8 = 8;
    pub(super) const DELETE_SNAPSHOT: u8 = 9;
    pub(super) const ANNOTATE: u8 = 10;
    pub(super) const RESIZE: u8 = 11;
    pub(super) const WRITE: u8 = 12;
    pub(super) const WRITE_PAGES: u8 = 13;
    pub(super) const RELOCATE: u8 = 14;
    pub(super) const SWITCH_SNAPSHOT_MAP: u8 = 15;
    pub(super) const FORGET_SNAPSHOT: u8 = 16;
    pub(super) const RUN_COMMITTED: u8 = 17;
    pub(super) const RUN_ENDED: u8 = 18;
    pub(super) const NOOP: u8 = 19;
    pub(super) const DATA: u8 = 20;
}

const OP_HEADER_BYTES: usize = 5;

/// A record, ready to be put.
#[derive(Debug, Clone)]
pub struct EncodedRecord {
    /// The object. A retry at the same number sends these bytes again.
    pub bytes: Bytes,
    /// The record as every replay will decode it: with the Write that makes its own chunks visible.
    pub record: Record,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecodedRecord {
    /// The record.
    pub record: Record,
    /// The chunks that it carries, for the collector and for salvage. The record's last Write says the same to
    /// the map.
    pub chunks: Vec<ChunkEntry>,
}

/// Encodes `record`; with `data`, also the chunks of a small flush, which become visible by an [`Op::Write`] behind the
/// record's own operations.
///
/// The same record under the same id must always be encoded with the same data.
pub fn encode_record(
    mut record: Record,
    data: Option<&Chunks>,
    key: Option<&DataKey>,
) -> Result<EncodedRecord, CodecError> {
    let object = name(record.volume, record.number);
    let encrypted = key.is_some();
    let data = data.filter(|chunks| !chunks.is_empty());
    let data_bytes = data.map_or(0, |chunks| chunks.data_bytes(encrypted));
    if data_bytes > RECORD_DATA_BYTES_MAX {
        return Err(CodecError::TooLarge { object, what: "bytes of chunks", limit: RECORD_DATA_BYTES_MAX });
    }

    let mut names = NamesWriter::new(object);
    let mut ops = Vec::new();
    for op in &record.ops {
        put_op(&mut ops, |out| encode_op(out, op, &mut names))?;
    }
    if let Some(chunks) = data {
        put_op(&mut ops, |out| {
            chunks.encode_table(out, encrypted);
            Ok(tag::DATA)
        })?;
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + names.len() + ops.len());
    bytes.put_u64_le(record.number.0);
    bytes.put_slice(&record.prev.0);
    bytes.put_u64_le(record.time_ms);
    bytes.put_u64_le(record.buffer_complete);
    names.encode(&mut bytes);
    bytes.append(&mut ops);
    if bytes.len() > RECORD_BODY_BYTES_MAX {
        return Err(CodecError::TooLarge {
            object,
            what: "bytes of operations",
            limit: RECORD_BODY_BYTES_MAX,
        });
    }

    let identity = Identity { volume: record.volume, id: record.id, session: record.session };
    let body = Body { bytes, lz4: false };
    let mut writer = ObjectWriter::new(ObjectKind::Record, identity, key, &body, data_bytes);
    if let Some(chunks) = data {
        let extents = extents_of(&chunks.write(&mut writer), itself(&record));
        record.ops.push(Op::Write { extents });
    }
    Ok(EncodedRecord { bytes: writer.finish(), record })
}

/// Decodes the record `number` of `volume` from the whole object. The chunks that it carries are checked when they are
/// read, by [`super::decode_chunk`].
pub fn decode_record(
    bytes: &Bytes,
    volume: VolumeId,
    number: RecordNumber,
    key: Option<&DataKey>,
) -> Result<DecodedRecord, CodecError> {
    let object = name(volume, number);
    let (envelope, body) = open_whole(object, bytes, key)?;
    let mut reader = Reader::new(object, &body);
    let found = RecordNumber(reader.u64()?);
    if found != number {
        return Err(CodecError::WrongObject { object, found: name(volume, found).to_string() });
    }
    let mut record = Record {
        volume,
        number,
        id: envelope.identity.id,
        session: envelope.identity.session,
        prev: ObjectId(reader.array()?),
        time_ms: reader.u64()?,
        buffer_complete: reader.u64()?,
        ops: Vec::new(),
    };
    let names = Names::decode(&mut reader)?;
    let mut chunks = Vec::new();
    while !reader.is_empty() {
        let tag = reader.u8()?;
        let len = reader.u32()? as usize;
        let mut value = reader.part(len)?;
        if tag == tag::DATA {
            chunks = decode_data(&mut value, &envelope)?;
            // Nothing may follow: the chunks' Write is the record's last operation.
            reader.end()?;
            record.ops.push(Op::Write { extents: extents_of(&chunks, itself(&record)) });
        } else {
            record.ops.push(decode_op(tag, &mut value, &names)?);
        }
        value.end()?;
    }
    if chunks.is_empty() && envelope.body_end() != u64::from(envelope.object_bytes) {
        return Err(reader.malformed("bytes follow its body"));
    }
    Ok(DecodedRecord { record, chunks })
}

const HEADER_BYTES: usize = 40;

fn name(volume: VolumeId, number: RecordNumber) -> ObjectName {
    ObjectName::ByNumber { kind: ObjectKind::Record, volume, number }
}

/// The record as the segment that its own chunks lie in.
fn itself(record: &Record) -> SegmentRef {
    SegmentRef { volume: record.volume, birth: record.number, id: record.id, kind: SegmentKind::Record }
}

fn decode_data(value: &mut Reader<'_>, envelope: &Envelope) -> Result<Vec<ChunkEntry>, CodecError> {
    let chunks = decode_table(value, envelope)?;
    if chunks.is_empty() { Err(value.malformed("data without chunks")) } else { Ok(chunks) }
}

/// Appends what `encode` appends, behind the tag that it returns and the length.
fn put_op(
    out: &mut Vec<u8>,
    encode: impl FnOnce(&mut Vec<u8>) -> Result<u8, CodecError>,
) -> Result<(), CodecError> {
    let at = out.len();
    out.put_bytes(0, OP_HEADER_BYTES);
    let tag = encode(out)?;
    // A body beyond its limit, which is far below 4 GiB, is refused when it is complete.
    let len = (out.len() - at - OP_HEADER_BYTES) as u32;
    out[at] = tag;
    out[at + 1..at + OP_HEADER_BYTES].copy_from_slice(&len.to_le_bytes());
    Ok(())
}

fn encode_op(out: &mut Vec<u8>, op: &Op, names: &mut NamesWriter) -> Result<u8, CodecError> {
    let object = names.object();
    Ok(match op {
        Op::Create { size_bytes } => {
            out.put_u64_le(*size_bytes);
            tag::CREATE
        }
        Op::Dead => tag::DEAD,
        Op::Grant { node, mode } => {
            out.put_u8(encode_mode(*mode));
            put_text(out, object, node, NAME_BYTES_MAX)?;
            tag::GRANT
        }
        Op::Revoke { grant } => {
            out.put_slice(&grant.0);
            tag::REVOKE
        }
        Op::Open { grant, resumes, endpoint } => {
            out.put_slice(&grant.0);
            out.put_slice(&resumes.0);
            put_text(out, object, endpoint, NAME_BYTES_MAX)?;
            tag::OPEN
        }
        Op::Close => tag::CLOSE,
        Op::Maintain => tag::MAINTAIN,
        Op::Snapshot { name, meta } => {
            put_text(out, object, name, NAME_BYTES_MAX)?;
            put_text(out, object, meta, META_BYTES_MAX)?;
            tag::SNAPSHOT
        }
        Op::DeleteSnapshot { snapshot } => {
            out.put_u64_le(snapshot.0);
            tag::DELETE_SNAPSHOT
        }
        Op::Annotate { snapshot, meta } => {
            out.put_u64_le(snapshot.0);
            put_text(out, object, meta, META_BYTES_MAX)?;
            tag::ANNOTATE
        }
        Op::Resize { size_bytes } => {
            out.put_u64_le(*size_bytes);
            tag::RESIZE
        }
        Op::Write { extents } => {
            names.put_extents(out, extents)?;
            tag::WRITE
        }
        Op::WritePages { pages } => {
            names.put_pages(out, pages)?;
            tag::WRITE_PAGES
        }
        Op::Relocate { moves } => {
            names.put_moves(out, moves)?;
            tag::RELOCATE
        }
        Op::SwitchSnapshotMap { snapshot, generation, map } => {
            out.put_u64_le(snapshot.0);
            out.put_u32_le(*generation);
            out.put_slice(&map.0);
            tag::SWITCH_SNAPSHOT_MAP
        }
        Op::ForgetSnapshot { snapshot } => {
            out.put_u64_le(snapshot.0);
            tag::FORGET_SNAPSHOT
        }
        Op::RunCommitted { run } => {
            out.put_slice(&run.0);
            tag::RUN_COMMITTED
        }
        Op::RunEnded { run } => {
            out.put_slice(&run.0);
            tag::RUN_ENDED
        }
        Op::Noop => tag::NOOP,
    })
}

fn decode_op(tag: u8, value: &mut Reader<'_>, names: &Names) -> Result<Op, CodecError> {
    Ok(match tag {
        tag::CREATE => Op::Create { size_bytes: value.u64()? },
        tag::DEAD => Op::Dead,
        tag::GRANT => Op::Grant { mode: decode_mode(value)?, node: value.text(NAME_BYTES_MAX)? },
        tag::REVOKE => Op::Revoke { grant: ObjectId(value.array()?) },
        tag::OPEN => Op::Open {
            grant: ObjectId(value.array()?),
            resumes: ObjectId(value.array()?),
            endpoint: value.text(NAME_BYTES_MAX)?,
        },
        tag::CLOSE => Op::Close,
        tag::MAINTAIN => Op::Maintain,
        tag::SNAPSHOT => {
            Op::Snapshot { name: value.text(NAME_BYTES_MAX)?, meta: value.text(META_BYTES_MAX)? }
        }
        tag::DELETE_SNAPSHOT => Op::DeleteSnapshot { snapshot: SnapshotId(value.u64()?) },
        tag::ANNOTATE => {
            Op::Annotate { snapshot: SnapshotId(value.u64()?), meta: value.text(META_BYTES_MAX)? }
        }
        tag::RESIZE => Op::Resize { size_bytes: value.u64()? },
        tag::WRITE => Op::Write { extents: names.extents(value)? },
        tag::WRITE_PAGES => Op::WritePages { pages: names.pages(value)? },
        tag::RELOCATE => Op::Relocate { moves: names.moves(value)? },
        tag::SWITCH_SNAPSHOT_MAP => Op::SwitchSnapshotMap {
            snapshot: SnapshotId(value.u64()?),
            generation: value.u32()?,
            map: ObjectId(value.array()?),
        },
        tag::FORGET_SNAPSHOT => Op::ForgetSnapshot { snapshot: SnapshotId(value.u64()?) },
        tag::RUN_COMMITTED => Op::RunCommitted { run: ObjectId(value.array()?) },
        tag::RUN_ENDED => Op::RunEnded { run: ObjectId(value.array()?) },
        tag::NOOP => Op::Noop,
        unknown => return Err(value.newer(format!("operation {unknown}"))),
    })
}

pub(super) fn encode_mode(mode: GrantMode) -> u8 {
    match mode {
        GrantMode::ReadWrite => 0,
        GrantMode::ReadOnly => 1,
        GrantMode::Maintenance => 2,
    }
}

pub(super) fn decode_mode(reader: &mut Reader<'_>) -> Result<GrantMode, CodecError> {
    match reader.u8()? {
        0 => Ok(GrantMode::ReadWrite),
        1 => Ok(GrantMode::ReadOnly),
        2 => Ok(GrantMode::Maintenance),
        mode => Err(reader.newer(format!("grant mode {mode}"))),
    }
}
