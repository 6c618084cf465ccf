//! The control state, as a root keeps it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::BufMut;

use super::record::{decode_mode, encode_mode};
use super::wire::{Reader, put_count, put_text};
use super::{CodecError, META_BYTES_MAX, NAME_BYTES_MAX, ObjectName};
use crate::ids::{ObjectId, SnapshotId};
use crate::log::{Control, Grant, Reader as ReadingNode, Session, Snapshot};

/// Bytes of the shortest reading node: an id and an empty name.
const READER_BYTES: usize = 18;
/// Bytes of the shortest snapshot: empty texts, no map.
const SNAPSHOT_BYTES: usize = 34;
const RUN_BYTES: usize = 16;

pub(super) fn encode_control(
    out: &mut Vec<u8>,
    object: ObjectName,
    control: &Control,
) -> Result<(), CodecError> {
    out.put_slice(&control.last.0);
    out.put_u64_le(control.size_bytes);
    out.put_u64_le(control.buffer_complete);
    out.put_u8(u8::from(control.dead));
    out.put_u8(u8::from(control.grant.is_some()));
    if let Some(Grant { id, node, mode }) = &control.grant {
        out.put_slice(&id.0);
        out.put_u8(encode_mode(*mode));
        put_text(out, object, node, NAME_BYTES_MAX)?;
    }
    out.put_u8(u8::from(control.session.is_some()));
    if let Some(Session { id, grant, endpoint }) = &control.session {
        out.put_slice(&id.0);
        out.put_slice(&grant.0);
        put_text(out, object, endpoint, NAME_BYTES_MAX)?;
    }
    put_count(out, control.readers.len());
    for ReadingNode { id, node } in &control.readers {
        out.put_slice(&id.0);
        put_text(out, object, node, NAME_BYTES_MAX)?;
    }
    put_count(out, control.snapshots.len());
    for (id, snapshot) in &control.snapshots {
        out.put_u64_le(id.0);
        encode_snapshot(out, object, snapshot)?;
    }
    put_count(out, control.ended_runs.len());
    control.ended_runs.iter().for_each(|run| out.put_slice(&run.0));
    Ok(())
}

pub(super) fn decode_control(reader: &mut Reader<'_>) -> Result<Control, CodecError> {
    let mut control = Control {
        last: ObjectId(reader.array()?),
        size_bytes: reader.u64()?,
        buffer_complete: reader.u64()?,
        dead: reader.flag()?,
        ..Control::default()
    };
    if reader.flag()? {
        let (id, mode) = (ObjectId(reader.array()?), decode_mode(reader)?);
        control.grant = Some(Grant { id, mode, node: reader.text(NAME_BYTES_MAX)? });
    }
    if reader.flag()? {
        let (id, grant) = (ObjectId(reader.array()?), ObjectId(reader.array()?));
        control.session = Some(Session { id, grant, endpoint: reader.text(NAME_BYTES_MAX)? });
    }
    for _ in 0..reader.count(READER_BYTES)? {
        let id = ObjectId(reader.array()?);
        control.readers.push(ReadingNode { id, node: reader.text(NAME_BYTES_MAX)? });
    }
    control.snapshots = decode_snapshots(reader)?;
    control.ended_runs = decode_runs(reader)?;
    Ok(control)
}

fn encode_snapshot(out: &mut Vec<u8>, object: ObjectName, snapshot: &Snapshot) -> Result<(), CodecError> {
    put_text(out, object, &snapshot.name, NAME_BYTES_MAX)?;
    put_text(out, object, &snapshot.meta, META_BYTES_MAX)?;
    out.put_u64_le(snapshot.time_ms);
    out.put_u64_le(snapshot.size_bytes);
    out.put_u8(u8::from(snapshot.deleted));
    out.put_u32_le(snapshot.generation);
    out.put_u8(u8::from(snapshot.map.is_some()));
    if let Some(map) = &snapshot.map {
        out.put_slice(&map.0);
    }
    Ok(())
}

fn decode_snapshots(reader: &mut Reader<'_>) -> Result<BTreeMap<SnapshotId, Snapshot>, CodecError> {
    let mut snapshots = BTreeMap::new();
    for _ in 0..reader.count(SNAPSHOT_BYTES)? {
        let id = SnapshotId(reader.u64()?);
        let snapshot = Snapshot {
            name: reader.text(NAME_BYTES_MAX)?,
            meta: reader.text(META_BYTES_MAX)?,
            time_ms: reader.u64()?,
            size_bytes: reader.u64()?,
            deleted: reader.flag()?,
            generation: reader.u32()?,
            map: if reader.flag()? { Some(ObjectId(reader.array()?)) } else { None },
        };
        if snapshots.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(reader.malformed("its snapshots are not sorted"));
        }
        snapshots.insert(id, snapshot);
    }
    Ok(snapshots)
}

fn decode_runs(reader: &mut Reader<'_>) -> Result<BTreeSet<ObjectId>, CodecError> {
    let mut runs = BTreeSet::new();
    for _ in 0..reader.count(RUN_BYTES)? {
        let run = ObjectId(reader.array()?);
        if runs.last().is_some_and(|last| *last >= run) {
            return Err(reader.malformed("its archive runs are not sorted"));
        }
        runs.insert(run);
    }
    Ok(runs)
}
