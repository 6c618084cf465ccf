//! Roots and snapshot maps: both hold a map as stored.

use bytes::{BufMut, Bytes};

use super::control::{decode_control, encode_control};
use super::envelope::{Body, ObjectWriter, open_whole};
use super::names::{Names, NamesWriter, PAGE_REF_BYTES};
use super::wire::{Reader, put_count};
use super::{CodecError, DataKey, Identity, ObjectKind, ObjectName, ROOT_BODY_BYTES_MAX};
use crate::ids::{ObjectId, PoolId, RecordNumber, SessionId, SnapshotId, VolumeId};
use crate::map::{Origin, Root, RunRef, SnapshotMap, StoredMap};

const ORIGIN_BYTES: usize = 40;
const RUN_HEADER_BYTES: usize = 5;
const RUN_OF_PAGES: u8 = 0;
const RUN_OF_INDEXES: u8 = 1;

/// Encodes a checkpoint that `session` writes.
pub fn encode_root(session: SessionId, root: &Root, key: Option<&DataKey>) -> Result<Bytes, CodecError> {
    let object = root_name(root.volume, root.number);
    let mut body = Vec::new();
    body.put_u64_le(root.number.0);
    encode_control(&mut body, object, &root.control)?;
    encode_map(&mut body, object, &root.map)?;
    let identity = Identity { volume: root.volume, id: root.id, session };
    seal(ObjectKind::Root, identity, object, body, key)
}

/// Decodes the root `number` of `volume`.
pub fn decode_root(
    bytes: &Bytes,
    volume: VolumeId,
    number: RecordNumber,
    key: Option<&DataKey>,
) -> Result<Root, CodecError> {
    let object = root_name(volume, number);
    let (envelope, body) = open_whole(object, bytes, key)?;
    let mut reader = Reader::new(object, &body);
    let found = RecordNumber(reader.u64()?);
    if found != number {
        return Err(CodecError::WrongObject { object, found: root_name(volume, found).to_string() });
    }
    let control = decode_control(&mut reader)?;
    let map = decode_map(&mut reader)?;
    Ok(Root { volume, id: envelope.identity.id, number, control, map })
}

/// Encodes a snapshot's map that `session` writes.
pub fn encode_snapshot_map(
    session: SessionId,
    map: &SnapshotMap,
    key: Option<&DataKey>,
) -> Result<Bytes, CodecError> {
    let identity = Identity { volume: map.volume, id: map.id, session };
    let object = identity.name(ObjectKind::SnapshotMap);
    let mut body = Vec::new();
    body.put_u64_le(map.snapshot.0);
    body.put_u64_le(map.size_bytes);
    encode_map(&mut body, object, &map.map)?;
    seal(ObjectKind::SnapshotMap, identity, object, body, key)
}

/// Decodes the snapshot map `id` of `volume`.
pub fn decode_snapshot_map(
    bytes: &Bytes,
    volume: VolumeId,
    id: ObjectId,
    key: Option<&DataKey>,
) -> Result<SnapshotMap, CodecError> {
    let object = ObjectName::ById { kind: ObjectKind::SnapshotMap, volume, id };
    let (_, body) = open_whole(object, bytes, key)?;
    let mut reader = Reader::new(object, &body);
    let snapshot = SnapshotId(reader.u64()?);
    let size_bytes = reader.u64()?;
    Ok(SnapshotMap { volume, id, snapshot, size_bytes, map: decode_map(&mut reader)? })
}

fn root_name(volume: VolumeId, number: RecordNumber) -> ObjectName {
    ObjectName::ByNumber { kind: ObjectKind::Root, volume, number }
}

fn seal(
    kind: ObjectKind,
    identity: Identity,
    object: ObjectName,
    bytes: Vec<u8>,
    key: Option<&DataKey>,
) -> Result<Bytes, CodecError> {
    if bytes.len() > ROOT_BODY_BYTES_MAX {
        return Err(CodecError::TooLarge { object, what: "bytes", limit: ROOT_BODY_BYTES_MAX });
    }
    Ok(ObjectWriter::new(kind, identity, key, &Body { bytes, lz4: false }, 0).finish())
}

fn encode_map(out: &mut Vec<u8>, object: ObjectName, map: &StoredMap) -> Result<(), CodecError> {
    let mut names = NamesWriter::new(object);
    let mut runs = Vec::new();
    for run in &map.runs {
        match run {
            RunRef::Pages(pages) => {
                runs.put_u8(RUN_OF_PAGES);
                put_count(&mut runs, pages.len());
                names.put_pages(&mut runs, pages)?;
            }
            RunRef::Indexed(indexes) => {
                runs.put_u8(RUN_OF_INDEXES);
                put_count(&mut runs, indexes.len());
                names.put_indexes(&mut runs, indexes)?;
            }
        }
    }
    put_count(out, map.origins.len());
    for Origin { pool, volume, snapshot } in &map.origins {
        out.put_slice(&pool.0);
        out.put_slice(&volume.0);
        out.put_u64_le(snapshot.0);
    }
    names.encode(out);
    put_count(out, map.runs.len());
    out.append(&mut runs);
    Ok(())
}

/// Reads a map to the end of the body.
fn decode_map(reader: &mut Reader<'_>) -> Result<StoredMap, CodecError> {
    let mut map = StoredMap::default();
    for _ in 0..reader.count(ORIGIN_BYTES)? {
        map.origins.push(Origin {
            pool: PoolId(reader.array()?),
            volume: VolumeId(reader.array()?),
            snapshot: SnapshotId(reader.u64()?),
        });
    }
    let names = Names::decode(reader)?;
    for _ in 0..reader.count(RUN_HEADER_BYTES)? {
        let kind = reader.u8()?;
        let count = reader.count(PAGE_REF_BYTES)?;
        let mut references = reader.part(count * PAGE_REF_BYTES)?;
        map.runs.push(match kind {
            RUN_OF_PAGES => RunRef::Pages(names.pages(&mut references)?),
            RUN_OF_INDEXES => RunRef::Indexed(names.indexes(&mut references)?),
            kind => return Err(reader.newer(format!("run kind {kind}"))),
        });
    }
    reader.end()?;
    Ok(map)
}
