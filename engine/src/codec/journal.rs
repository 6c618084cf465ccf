//! Frames of a node's journal: writes and discards in their order.

use bytes::{BufMut, Bytes};

use super::envelope::{Body, ObjectWriter, open_whole};
use super::wire::{Reader, put_count};
use super::{CodecError, DataKey, Identity, ObjectKind, ObjectName};
use crate::buffer::Mutation;
use crate::ids::{BLOCK_BYTES, GrantId, ObjectId, RecordNumber, VolumeId};

const WRITE: u8 = 1;
const DISCARD: u8 = 2;
/// Bytes of an entry without its data.
const ENTRY_BYTES: usize = 17;

/// Consecutive entries of a grant's dirty buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The volume.
    pub volume: VolumeId,
    /// The grant that the entries belong to.
    pub grant: GrantId,
    /// The frame's id: random, used for this frame only.
    pub id: ObjectId,
    /// The id of the frame before it in the journal; none before the first.
    pub prev: ObjectId,
    /// Where it begins, counted in all bytes ever appended to the journal.
    pub position: u64,
    /// The number of the first entry.
    pub first: u64,
    /// The entries, at least one.
    pub mutations: Vec<Mutation>,
}

impl Frame {
    /// The number of the last entry.
    pub fn last(&self) -> u64 {
        self.first + self.mutations.len() as u64 - 1
    }
}

/// Bytes that an entry takes in a frame.
pub fn entry_bytes(mutation: &Mutation) -> usize {
    match mutation {
        Mutation::Write { data, .. } => ENTRY_BYTES + data.len(),
        Mutation::Discard { .. } => ENTRY_BYTES,
    }
}

fn name(volume: VolumeId, position: u64) -> ObjectName {
    ObjectName::ByNumber { kind: ObjectKind::Journal, volume, number: RecordNumber(position) }
}

/// Encodes a frame, which is far below 4 GiB.
pub fn encode_frame(frame: &Frame, key: Option<&DataKey>) -> Bytes {
    let entries: usize = frame.mutations.iter().map(entry_bytes).sum();
    let mut bytes = Vec::with_capacity(36 + entries);
    bytes.put_u64_le(frame.position);
    bytes.put_slice(&frame.prev.0);
    bytes.put_u64_le(frame.first);
    put_count(&mut bytes, frame.mutations.len());
    for mutation in &frame.mutations {
        let (kind, offset, len, data) = match mutation {
            Mutation::Write { offset, data } => (WRITE, *offset, data.len() as u64, data.as_ref()),
            Mutation::Discard { offset, len } => (DISCARD, *offset, *len, [].as_slice()),
        };
        bytes.put_u8(kind);
        bytes.put_u64_le(offset);
        bytes.put_u64_le(len);
        bytes.put_slice(data);
    }
    let identity = Identity { volume: frame.volume, id: frame.id, session: frame.grant };
    let body = Body { bytes, lz4: false };
    ObjectWriter::new(ObjectKind::Journal, identity, key, &body, 0).finish()
}

/// Decodes the frame at `position` of a journal of `volume`; `bytes` are the whole of it.
pub fn decode_frame(
    bytes: &Bytes,
    volume: VolumeId,
    position: u64,
    key: Option<&DataKey>,
) -> Result<Frame, CodecError> {
    let object = name(volume, position);
    let (envelope, body) = open_whole(object, bytes, key)?;
    let mut reader = Reader::new(object, &body);
    let found = reader.u64()?;
    if found != position {
        return Err(CodecError::WrongObject { object, found: name(volume, found).to_string() });
    }
    let prev = ObjectId(reader.array()?);
    let first = reader.u64()?;
    let count = reader.count(ENTRY_BYTES)?;
    if first == 0 || count == 0 || first.checked_add(count as u64).is_none() {
        return Err(reader.malformed("its entries have no numbers"));
    }
    let mut mutations = Vec::with_capacity(count);
    for _ in 0..count {
        mutations.push(entry(&mut reader, &body)?);
    }
    reader.end()?;
    let Identity { id, session: grant, .. } = envelope.identity;
    Ok(Frame { volume, grant, id, prev, position, first, mutations })
}

fn entry(reader: &mut Reader<'_>, body: &Bytes) -> Result<Mutation, CodecError> {
    let kind = reader.u8()?;
    let (offset, len) = (reader.u64()?, reader.u64()?);
    let whole = offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES) && len > 0;
    if !whole || offset.checked_add(len).is_none() {
        return Err(reader.malformed("an entry is no range of blocks"));
    }
    match kind {
        WRITE => {
            let len = usize::try_from(len).map_err(|_| reader.malformed("a field goes beyond its end"))?;
            Ok(Mutation::Write { offset, data: body.slice_ref(reader.bytes(len)?) })
        }
        DISCARD => Ok(Mutation::Discard { offset, len }),
        _ => Err(reader.newer(format!("entry kind {kind}"))),
    }
}

/// Bytes of the frame at `position` of a journal of `volume`, from its first bytes.
pub fn frame_bytes(head: &[u8], volume: VolumeId, position: u64) -> Result<u32, CodecError> {
    Ok(super::Envelope::decode(name(volume, position), head)?.object_bytes)
}
