//! The committed objects in `tests/vectors` stay readable, and mean what their description says.
//!
//! `cargo test -p holdfast-engine --test codec -- --ignored write_the_vectors` writes them anew. That changes what the
//! format is: only for a new kind of object, or a new version.

use std::fs;
use std::path::PathBuf;

use aws_lc_rs::digest;
use bytes::Bytes;
use holdfast_engine::buffer::Mutation;
use holdfast_engine::codec::{
    ChunkEntry, Codec, DataKey, Envelope, KEY_BYTES, MasterKey, ObjectKind, ObjectName, UserKey, WrappedKey,
    decode_chunk, decode_frame, decode_index, decode_pack, decode_page, decode_record, decode_root,
    decode_segment_table, decode_snapshot_map,
};
use holdfast_engine::env::Entropy;
use holdfast_engine::ids::{ObjectId, PoolId};
use holdfast_engine::log::{Control, GrantMode, Op, Snapshot};
use holdfast_engine::map::{
    Extent, IndexRef, Location, PackPlace, PageRef, RunRef, SegmentKind, SegmentRef, StoredMap,
};
use serde_json::{Value, json};

use crate::samples::{self, NUMBER, SESSION, VOLUME};

const POOL: PoolId = PoolId([0xd0; 16]);

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(file)
}

/// Names of files, their keys and objects: all samples in the clear, and those encrypted that differ in more.
fn vectors() -> Vec<(String, ObjectKind, Option<DataKey>, Bytes)> {
    let key = samples::data_key();
    let clear =
        samples::objects(None).into_iter().map(|(name, kind, bytes)| (name.to_owned(), kind, None, bytes));
    let sealed = samples::objects(Some(&key))
        .into_iter()
        .filter(|(name, ..)| {
            ["record-data", "page-raw", "page-lz4", "pack-raw", "root", "journal-frame"].contains(name)
        })
        .map(|(name, kind, bytes)| (format!("{name}-encrypted"), kind, Some(key.clone()), bytes));
    clear.chain(sealed).collect()
}

/// Text that a person can look at and `xxd -r -p` reads.
fn to_hex(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| hex::encode(line) + "\n").collect()
}

fn from_hex(text: &str) -> Bytes {
    hex::decode(text.split_whitespace().collect::<String>()).expect("the file is hexadecimal").into()
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The committed objects: names, kinds, keys, bytes.
pub fn committed() -> Vec<(String, ObjectKind, Option<DataKey>, Bytes)> {
    let read = |(name, kind, key, _): (String, _, _, _)| {
        let bytes = from_hex(&read(&format!("{name}.hex")));
        (name, kind, key, bytes)
    };
    vectors().into_iter().map(read).collect()
}

#[test]
#[ignore = "changes the committed vectors"]
fn write_the_vectors() {
    let vectors = vectors();
    for (name, _, _, bytes) in &vectors {
        fs::write(path(&format!("{name}.hex")), to_hex(bytes)).unwrap();
    }
    let objects =
        vectors.iter().map(|(name, kind, key, bytes)| (name.as_str(), *kind, key.as_ref(), bytes.clone()));
    let text = serde_json::to_string_pretty(&describe_all(objects)).unwrap();
    fs::write(path("vectors.json"), text + "\n").unwrap();
}

#[test]
fn the_committed_objects_mean_what_their_description_says() {
    let committed: Value = serde_json::from_str(&read("vectors.json")).unwrap();
    let vectors = vectors();
    let objects = vectors.iter().map(|(name, kind, key, _)| {
        (name.as_str(), *kind, key.as_ref(), from_hex(&read(&format!("{name}.hex"))))
    });
    assert_eq!(describe_all(objects), committed);
}

#[test]
fn the_same_values_still_encode_to_the_committed_bytes() {
    // A later version of a compressor may find other bytes; what it finds is tested by reading it back.
    let compressed = ["lz4", "zstd", "record-data"];
    let mut compared = 0;
    let stable = |(name, ..): &&(String, _, _, _)| !compressed.iter().any(|part| name.contains(part));
    for (name, _, _, bytes) in vectors().iter().filter(stable) {
        assert_eq!(to_hex(bytes), read(&format!("{name}.hex")), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 13);
}

#[test]
fn the_committed_keys_unwrap() {
    let committed: Value = serde_json::from_str(&read("vectors.json")).unwrap();
    let wrapped = |field: &str| -> WrappedKey {
        serde_json::from_value(committed["keys"][field].clone()).expect("a wrapped key")
    };
    let master = user_key().unwrap(&wrapped("wrapped_master_key"), POOL).unwrap();
    let check = master.check_value(POOL);
    assert_eq!(check, committed["keys"]["key_check"]);
    let data = master.unwrap(&wrapped("wrapped_data_key"), VOLUME).unwrap();
    // It is the key that the encrypted objects were sealed with.
    let bytes = from_hex(&read("page-lz4-encrypted.hex"));
    assert_eq!(
        decode_page(&bytes, VOLUME, ObjectId(samples::id(1)), Some(&data)).unwrap(),
        samples::extents()
    );
}

fn user_key() -> UserKey {
    UserKey::new([0xe0; KEY_BYTES])
}

fn master_key() -> MasterKey {
    MasterKey::new([0xe1; KEY_BYTES])
}

/// The nonce of the wrapped keys.
#[derive(Debug)]
struct Fixed;

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0xf0);
    }
}

fn describe_all<'a>(
    objects: impl Iterator<Item = (&'a str, ObjectKind, Option<&'a DataKey>, Bytes)>,
) -> Value {
    let master = master_key();
    let data_key: [u8; KEY_BYTES] = std::array::from_fn(|at| at as u8);
    json!({
        "volume": VOLUME.to_string(),
        "number": NUMBER.0,
        "keys": {
            "pool": POOL.to_string(),
            "user_key": hex::encode([0xe0; KEY_BYTES]),
            "master_key": hex::encode([0xe1; KEY_BYTES]),
            "key_check": master.check_value(POOL),
            "wrapped_master_key": user_key().wrap(&master, POOL, &Fixed),
            "data_key": hex::encode(data_key),
            "wrapped_data_key": master.wrap(&samples::data_key(), VOLUME, &Fixed),
        },
        "objects": objects
            .map(|(name, kind, key, bytes)| (name.to_owned(), describe(kind, &bytes, key)))
            .collect::<serde_json::Map<_, _>>(),
    })
}

fn describe(kind: ObjectKind, bytes: &Bytes, key: Option<&DataKey>) -> Value {
    let id = ObjectId(samples::id(1));
    let object = ObjectName::ById { kind, volume: VOLUME, id };
    let envelope = Envelope::decode(object, bytes).expect("the object has its name");
    let content = content(kind, bytes, id, key);
    assert_eq!(envelope.identity.session, SESSION);
    json!({
        "kind": kind.to_string(),
        "id": envelope.identity.id.to_string(),
        "session": envelope.identity.session.to_string(),
        "encrypted": envelope.encrypted,
        "body_bytes": envelope.body_bytes,
        "object_bytes": envelope.object_bytes,
        "content": content,
    })
}

fn content(kind: ObjectKind, bytes: &Bytes, id: ObjectId, key: Option<&DataKey>) -> Value {
    const INTACT: &str = "a committed object is intact";
    match kind {
        ObjectKind::Segment => {
            let table = decode_segment_table(bytes, VOLUME, id, key).expect(INTACT);
            chunks(bytes, &table.chunks, SegmentKind::Object, key)
        }
        ObjectKind::Record => {
            let decoded = decode_record(bytes, VOLUME, NUMBER, key).expect(INTACT);
            let record = decoded.record;
            json!({
                "number": record.number.0,
                "prev": record.prev.to_string(),
                "time_ms": record.time_ms,
                "buffer_complete": record.buffer_complete,
                "operations": record.ops.iter().map(op).collect::<Vec<_>>(),
                "chunks": chunks(bytes, &decoded.chunks, SegmentKind::Record, key),
            })
        }
        ObjectKind::Page => extents(&decode_page(bytes, VOLUME, id, key).expect(INTACT)),
        ObjectKind::Pack => {
            let describe = |place: PackPlace| {
                let read = samples::read_page(bytes, VOLUME, id, place, key).expect(INTACT);
                json!({ "offset": place.offset, "len": place.len, "extents": extents(&read) })
            };
            decode_pack(bytes, VOLUME, id, key).expect(INTACT).into_iter().map(describe).collect()
        }
        ObjectKind::Index => pages(&decode_index(bytes, VOLUME, id, key).expect(INTACT)),
        ObjectKind::Root => {
            let root = decode_root(bytes, VOLUME, NUMBER, key).expect(INTACT);
            json!({ "number": root.number.0, "control": control(&root.control), "map": map(&root.map) })
        }
        ObjectKind::SnapshotMap => {
            let found = decode_snapshot_map(bytes, VOLUME, id, key).expect(INTACT);
            json!({ "snapshot": found.snapshot.0, "size_bytes": found.size_bytes, "map": map(&found.map) })
        }
        ObjectKind::Journal => {
            let frame = decode_frame(bytes, VOLUME, NUMBER.0, key).expect(INTACT);
            json!({
                "position": frame.position,
                "prev": frame.prev.to_string(),
                "first": frame.first,
                "entries": frame.mutations.iter().map(mutation).collect::<Vec<_>>(),
            })
        }
    }
}

fn mutation(mutation: &Mutation) -> Value {
    match mutation {
        Mutation::Write { offset, data } => {
            let sha256 = hex::encode(digest::digest(&digest::SHA256, data));
            json!({ "write": { "offset": offset, "len": data.len(), "sha256": sha256 } })
        }
        Mutation::Discard { offset, len } => json!({ "discard": { "offset": offset, "len": len } }),
    }
}

/// The chunks with the SHA-256 of their blocks.
fn chunks(object: &Bytes, chunks: &[ChunkEntry], kind: SegmentKind, key: Option<&DataKey>) -> Value {
    let segment = SegmentRef { volume: VOLUME, birth: NUMBER, id: ObjectId(samples::id(1)), kind };
    let describe = |chunk: &ChunkEntry| {
        let location = chunk.extent(segment).location.expect("a chunk has a place");
        let from = chunk.stored_offset as usize;
        let stored = object.slice(from..from + chunk.stored_len as usize);
        let data = decode_chunk(stored, &location, key).expect("a committed chunk is intact");
        json!({
            "lba": chunk.lba,
            "blocks": chunk.blocks,
            "order": chunk.order,
            "session": chunk.session.to_string(),
            "codec": codec(chunk.codec),
            "stored_offset": chunk.stored_offset,
            "stored_len": chunk.stored_len,
            "sha256": hex::encode(digest::digest(&digest::SHA256, &data)),
        })
    };
    chunks.iter().map(describe).collect()
}

fn codec(codec: Codec) -> &'static str {
    match codec {
        Codec::Raw => "raw",
        Codec::Lz4 => "lz4",
        Codec::Zstd => "zstd",
    }
}

fn location(location: &Location) -> Value {
    let Location { segment, stored_offset, stored_len, codec: how, chunk_blocks, chunk_offset } = location;
    json!({
        "segment": {
            "volume": segment.volume.to_string(),
            "birth": segment.birth.0,
            "id": segment.id.to_string(),
            "kind": match segment.kind { SegmentKind::Object => "object", SegmentKind::Record => "record" },
        },
        "stored_offset": stored_offset,
        "stored_len": stored_len,
        "codec": codec(*how),
        "chunk_blocks": chunk_blocks,
        "chunk_offset": chunk_offset,
    })
}

fn extent(extent: &Extent) -> Value {
    json!({ "lba": extent.lba, "blocks": extent.blocks, "location": extent.location.as_ref().map(location) })
}

fn extents(all: &[Extent]) -> Value {
    all.iter().map(extent).collect()
}

fn pages(all: &[PageRef]) -> Value {
    let page = |PageRef { first_lba, end_lba, volume, id, place, extents }: &PageRef| {
        let (volume, id) = (volume.to_string(), id.to_string());
        let mut page = json!({ "first_lba": first_lba, "end_lba": end_lba, "volume": volume, "id": id, "extents": extents });
        if let Some(PackPlace { offset, len, pages }) = place {
            page["place"] = json!({ "offset": offset, "len": len, "pages": pages });
        }
        page
    };
    all.iter().map(page).collect()
}

fn map(map: &StoredMap) -> Value {
    let index = |IndexRef { first_lba, end_lba, volume, id, pages }: &IndexRef| {
        let (volume, id) = (volume.to_string(), id.to_string());
        json!({ "first_lba": first_lba, "end_lba": end_lba, "volume": volume, "id": id, "pages": pages })
    };
    let run = |run: &RunRef| match run {
        RunRef::Pages(all) => json!({ "pages": pages(all) }),
        RunRef::Indexed(all) => json!({ "indexes": all.iter().map(index).collect::<Vec<_>>() }),
    };
    let origins = map.origins.iter().map(|origin| {
        let (pool, volume) = (origin.pool.to_string(), origin.volume.to_string());
        json!({ "pool": pool, "volume": volume, "snapshot": origin.snapshot.0 })
    });
    json!({
        "runs": map.runs.iter().map(run).collect::<Vec<_>>(),
        "origins": origins.collect::<Vec<_>>(),
    })
}

fn mode(mode: GrantMode) -> &'static str {
    match mode {
        GrantMode::ReadWrite => "read-write",
        GrantMode::ReadOnly => "read-only",
        GrantMode::Maintenance => "maintenance",
    }
}

fn op(op: &Op) -> Value {
    match op {
        Op::Create { size_bytes } => json!({ "create": { "size_bytes": size_bytes } }),
        Op::Dead => json!("dead"),
        Op::Grant { node, mode: how } => json!({ "grant": { "node": node, "mode": mode(*how) } }),
        Op::Revoke { grant } => json!({ "revoke": { "grant": grant.to_string() } }),
        Op::Open { grant, resumes, endpoint } => json!({
            "open": { "grant": grant.to_string(), "resumes": resumes.to_string(), "endpoint": endpoint }
        }),
        Op::Close => json!("close"),
        Op::Maintain => json!("maintain"),
        Op::Snapshot { name, meta } => json!({ "snapshot": { "name": name, "meta": meta } }),
        Op::DeleteSnapshot { snapshot } => json!({ "delete-snapshot": { "snapshot": snapshot.0 } }),
        Op::Annotate { snapshot, meta } => json!({ "annotate": { "snapshot": snapshot.0, "meta": meta } }),
        Op::Resize { size_bytes } => json!({ "resize": { "size_bytes": size_bytes } }),
        Op::Write { extents: all } => json!({ "write": extents(all) }),
        Op::WritePages { pages: all } => json!({ "write-pages": pages(all) }),
        Op::Relocate { moves } => {
            let entry = |entry: &holdfast_engine::log::Move| json!({ "to": extent(&entry.to), "from": location(&entry.from) });
            json!({ "relocate": moves.iter().map(entry).collect::<Vec<_>>() })
        }
        Op::SwitchSnapshotMap { snapshot, generation, map } => json!({
            "switch-snapshot-map": { "snapshot": snapshot.0, "generation": generation, "map": map.to_string() }
        }),
        Op::ForgetSnapshot { snapshot } => json!({ "forget-snapshot": { "snapshot": snapshot.0 } }),
        Op::RunCommitted { run } => json!({ "run-committed": { "run": run.to_string() } }),
        Op::RunEnded { run } => json!({ "run-ended": { "run": run.to_string() } }),
        Op::Noop => json!("noop"),
    }
}

fn control(control: &Control) -> Value {
    let grant = control
        .grant
        .as_ref()
        .map(|grant| json!({ "id": grant.id.to_string(), "node": grant.node, "mode": mode(grant.mode) }));
    let session = control.session.as_ref().map(|session| {
        let (id, grant) = (session.id.to_string(), session.grant.to_string());
        json!({ "id": id, "grant": grant, "endpoint": session.endpoint })
    });
    let readers = control.readers.iter().map(|r| json!({ "id": r.id.to_string(), "node": r.node }));
    let snapshot = |snapshot: &Snapshot| {
        json!({
            "name": snapshot.name,
            "meta": snapshot.meta,
            "time_ms": snapshot.time_ms,
            "size_bytes": snapshot.size_bytes,
            "deleted": snapshot.deleted,
            "generation": snapshot.generation,
            "map": snapshot.map.map(|map| map.to_string()),
        })
    };
    let snapshots = control.snapshots.iter().map(|(id, found)| (id.0.to_string(), snapshot(found)));
    json!({
        "last": control.last.to_string(),
        "size_bytes": control.size_bytes,
        "buffer_complete": control.buffer_complete,
        "dead": control.dead,
        "grant": grant,
        "session": session,
        "readers": readers.collect::<Vec<_>>(),
        "snapshots": snapshots.collect::<serde_json::Map<_, _>>(),
        "ended_runs": control.ended_runs.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
