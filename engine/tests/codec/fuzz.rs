//! Long runs over objects that are changed and then signed anew, from the committed ones.
//!
//! `HOLDFAST_FUZZ=n` sets how many inputs each test tries. An input that fails is named by its number, which makes it
//! again; what it found is kept as a test of its own where the decoder is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use holdfast_engine::archive::{PointMeta, PointSource};
use holdfast_engine::buffer::{Budget, DirtyBuffer, MemoryRegion, Mutation, Region, Ring};
use holdfast_engine::codec::{Codec, ObjectKind, UserKey, decode_chunk, decode_packed_page};
use holdfast_engine::env::Env;
use holdfast_engine::ids::{BLOCK_BYTES, ObjectId, PoolId, SnapshotId, VolumeId};
use holdfast_engine::map::{Location, PackPlace, SegmentKind, SegmentRef};
use holdfast_engine::pool::{Access, NewVolume, Pool};
use holdfast_engine::store::{Memory, Store};
use serde_json::Value;
use tokio::time::Instant;

use crate::allocations::bytes_allocated_by;
use crate::forgery::{allowed, forge, parts};
use crate::mutator::{Mutator, iterations};
use crate::samples::{self, NUMBER, VOLUME};
use crate::vectors::committed;

const USUAL: u64 = 20_000;

fn bounded(what: &str, input: u64, bytes: usize, work: impl FnOnce()) {
    let allocated = bytes_allocated_by(work);
    assert!(allocated <= allowed(bytes), "{what} {input}: {allocated} bytes for {bytes}");
}

#[test]
fn changed_objects_with_right_checksums() {
    let parts = parts();
    let bodies: Vec<Vec<u8>> =
        parts.iter().flat_map(|(_, _, body, data)| [body.clone(), data.clone()]).collect();
    for input in 0..iterations(USUAL) {
        let mut mutator = Mutator::new(input);
        let (kind, mut flags, mut body, mut data) = mutator.pick(&parts).clone();
        mutator.mutate(&mut body, &bodies);
        if mutator.below(4) == 0 {
            mutator.mutate(&mut data, &bodies);
        }
        if mutator.below(16) == 0 {
            flags ^= 1 << mutator.below(4);
        }
        let object = forge(kind, 1, flags, &body, &data);
        bounded("object", input, object.len(), || {
            // Whether a changed object still makes sense is not the question here.
            let _ = samples::read(kind, &object, VOLUME, ObjectId(samples::id(1)), NUMBER, None);
        });
    }
}

#[test]
fn changed_objects_with_wrong_checksums_are_refused() {
    let committed = committed();
    let all: Vec<Vec<u8>> = committed.iter().map(|(.., bytes)| bytes.to_vec()).collect();
    for input in 0..iterations(USUAL) {
        let mut mutator = Mutator::new(input);
        let (name, kind, key, bytes) = mutator.pick(&committed);
        let mut changed = bytes.to_vec();
        mutator.mutate(&mut changed, &all);
        // More behind the end of a segment is not read.
        let same =
            changed.starts_with(bytes) && (changed.len() == bytes.len() || *kind == ObjectKind::Segment);
        let changed = Bytes::from(changed);
        bounded(name, input, changed.len(), || {
            let read = samples::read(*kind, &changed, VOLUME, ObjectId(samples::id(1)), NUMBER, key.as_ref());
            assert_eq!(read.is_ok(), same, "{name} {input}");
        });
    }
}

/// A chunk of the sample segment, and where the map says that it lies, both changed; the checksum is right.
#[test]
fn changed_chunks_with_right_checksums() {
    let id = ObjectId(samples::id(1));
    let blocks: Vec<u8> = (0..4 * BLOCK_BYTES).map(|at| (at / 100) as u8).collect();
    let packed =
        [lz4_flex::block::compress(&blocks), zstd::bulk::compress(&blocks, 3).expect("it compresses")];
    for input in 0..iterations(USUAL) {
        let mut mutator = Mutator::new(input);
        let codec = *mutator.pick(&[Codec::Raw, Codec::Lz4, Codec::Zstd]);
        let mut data = mutator.pick(&packed).clone();
        mutator.mutate(&mut data, &packed);
        let stored_offset = mutator.draw() as u32;
        let mut checksum = Digest::new(CrcAlgorithm::Crc64Nvme);
        for part in [&VOLUME.0[..], &id.0, b"HOLDSEG1", &u64::from(stored_offset).to_le_bytes(), &data] {
            checksum.update(part);
        }
        data.extend(checksum.finalize().to_le_bytes());
        let location = Location {
            segment: SegmentRef { volume: VOLUME, birth: NUMBER, id, kind: SegmentKind::Object },
            stored_offset,
            stored_len: data.len() as u32,
            codec,
            chunk_blocks: mutator.draw() as u8,
            chunk_offset: mutator.draw() as u8,
        };
        bounded("chunk", input, data.len(), || {
            let _ = decode_chunk(Bytes::from(data), &location, None);
        });
    }
}

/// A page of a pack, and what its reference says of where it lies, both changed; the checksum is right.
#[test]
fn changed_pages_of_packs_with_right_checksums() {
    let id = ObjectId(samples::id(1));
    let named = |name: &str| {
        let found = parts().into_iter().zip(samples::objects(None)).find(|(_, (sample, ..))| *sample == name);
        let ((_, flags, body, _), _) = found.expect("a sample");
        // Whether it is compressed, before the body.
        [&[(flags / 2) as u8][..], &body].concat()
    };
    let pages = [named("page-raw"), named("page-lz4")];
    for input in 0..iterations(USUAL) {
        let mut mutator = Mutator::new(input);
        let mut page = mutator.pick(&pages).clone();
        mutator.mutate(&mut page, &pages);
        let offset = mutator.draw() as u32;
        let mut checksum = Digest::new(CrcAlgorithm::Crc64Nvme);
        for part in [&VOLUME.0[..], &id.0, b"HOLDPACK", &u64::from(offset).to_le_bytes(), &page] {
            checksum.update(part);
        }
        page.extend(checksum.finalize().to_le_bytes());
        let place = PackPlace { offset, len: page.len() as u16, pages: mutator.draw() as u8 };
        bounded("page", input, page.len(), || {
            let _ = decode_packed_page(Bytes::from(page), VOLUME, id, place, None);
        });
    }
}

/// Signs the two headers and the entries of a ring, wherever they look like some.
fn sign(ring: &mut [u8]) {
    for slot in [0, 64] {
        let crc = crc_fast::crc32_iscsi(&ring[slot..slot + 56]);
        ring[slot + 56..slot + 60].copy_from_slice(&crc.to_le_bytes());
    }
    let (mut at, entry) = (128, 56);
    while at + entry <= ring.len() {
        let len = u64::from_le_bytes(ring[at + 40..at + 48].try_into().expect("eight bytes")) as usize;
        let is_write = ring[at + 24] == 1;
        let data_len = if is_write { len } else { 0 };
        let crc = crc_fast::crc32_iscsi(&ring[at..at + 48]);
        ring[at + 48..at + 52].copy_from_slice(&crc.to_le_bytes());
        match data_len.checked_next_multiple_of(8) {
            Some(data_len) if data_len < ring.len() => at += entry + data_len,
            Some(_) | None => return,
        }
    }
}

/// What lies in the memory of a dirty buffer is read by a successor, which may be another version.
#[test]
fn changed_rings_with_right_checksums() {
    const RING_BYTES: usize = 16 << 10;
    let memory = Arc::new(MemoryRegion::new(RING_BYTES));
    let ring =
        Ring::open(Arc::clone(&memory) as Arc<dyn Region>, &Budget::unlimited()).expect("an empty ring");
    ring.bind(ObjectId([7; 16]), 0).expect("a grant");
    ring.append(&Mutation::Write { offset: 4096, data: vec![3; 100].into() }).expect("there is room");
    ring.append(&Mutation::Discard { offset: 0, len: 1 << 20 }).expect("there is room");
    ring.free(1);
    ring.append(&Mutation::Write { offset: 0, data: vec![4; 4096].into() }).expect("there is room");
    let mut sample = vec![0; RING_BYTES];
    memory.read_at(0, &mut sample);
    for input in 0..iterations(USUAL) {
        let mut mutator = Mutator::new(input);
        let mut changed = sample.clone();
        // The headers and the first entries: the data behind them is not looked at.
        let mut head = changed[..512].to_vec();
        mutator.mutate(&mut head, std::slice::from_ref(&sample));
        head.resize(512, 0);
        changed[..512].copy_from_slice(&head);
        sign(&mut changed);
        let memory = Arc::new(MemoryRegion::new(RING_BYTES));
        memory.write_at(0, &changed);
        bounded("ring", input, RING_BYTES, || {
            let Ok(ring) = Ring::open(memory, &Budget::unlimited()) else { return };
            let _ = ring.recover();
            if ring.bind(ObjectId([7; 16]), mutator.draw() >> mutator.below(64)).is_ok() {
                let _ = ring.append(&Mutation::Discard { offset: 0, len: 1 });
                ring.free(mutator.below(10) as u64);
                let _ = ring.recover();
            }
            let _ = ring.bind(ObjectId([8; 16]), mutator.draw());
            let _ = ring.append(&Mutation::Discard { offset: 0, len: 1 });
        });
    }
}

/// A JSON object with a field that is gone, or something else.
fn change_json(mutator: &mut Mutator, value: &mut Value) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(mutator.below(fields.len())).cloned().unwrap_or_default();
            match mutator.below(3) {
                0 => drop(fields.remove(&name)),
                _ => {
                    if let Some(field) = fields.get_mut(&name) {
                        change_json(mutator, field);
                    }
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let at = mutator.below(items.len());
            match mutator.below(3) {
                0 => drop(items.remove(at)),
                1 => items.extend(items.clone()),
                _ => change_json(mutator, &mut items[at]),
            }
        }
        other => {
            *other = match mutator.below(7) {
                0 => Value::Null,
                1 => Value::from(u64::MAX),
                2 => Value::from(-1),
                3 => Value::from("ä".repeat(mutator.below(200))),
                4 => Value::from("0".repeat(32)),
                5 => (0..200).fold(Value::Null, |inner, _| Value::from(vec![inner])),
                _ => Value::from(1e300),
            }
        }
    }
}

/// Everything in JSON: the pool's description and keys, volumes, names, pins, nodes.
#[test]
fn changed_descriptions() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let env = Env::system();
    let key = UserKey::new([1; 32]);
    let soon = || Instant::now() + Duration::from_secs(60);
    let open = async |store: &Memory| {
        Pool::over("p", "memory", Arc::new(store.clone()), Some(&key), Access::ReadWrite, env.clone()).await
    };
    let sample = runtime.block_on(async {
        let store = Memory::default();
        let pool = open(&store).await.expect("a pool is made");
        pool.bind_volume_name("name", VOLUME, soon()).await.expect("a name");
        let new = NewVolume {
            name: "name".into(),
            size_bytes: 1 << 30,
            parents: Vec::new(),
            codec: Codec::Lz4,
            parameters: [("a".to_owned(), "b".to_owned())].into(),
        };
        pool.create_volume_json(VOLUME, &new, soon()).await.expect("a description");
        pool.bind_snapshot_name("snapshot", VOLUME, soon()).await.expect("a name");
        pool.put_pin(VOLUME, SnapshotId(3), VolumeId([9; 16]), PoolId([8; 16]), soon()).await.expect("a pin");
        pool.register_node("node", soon()).await.expect("a node");
        let mut objects = Vec::new();
        for listed in store.list("", None, 100).await.expect("a listing") {
            objects.push((listed.key.clone(), store.get(&listed.key).await.expect("an object")));
        }
        objects
    });
    assert!(sample.len() >= 7, "{sample:?}");
    let bodies: Vec<Vec<u8>> = sample.iter().map(|(_, body)| body.to_vec()).collect();
    for input in 0..iterations(USUAL / 10) {
        let mut mutator = Mutator::new(input);
        let which = mutator.below(sample.len());
        let mut body = bodies[which].clone();
        if mutator.below(2) == 0 {
            mutator.mutate(&mut body, &bodies);
        } else {
            let mut value = serde_json::from_slice(&body).expect("the sample is JSON");
            change_json(&mut mutator, &mut value);
            body = serde_json::to_vec(&value).expect("it has a JSON form");
        }
        let bytes = body.len();
        let allocated = bytes_allocated_by(|| {
            runtime.block_on(async {
                let store = Memory::default();
                for (at, (key, original)) in sample.iter().enumerate() {
                    let body = if at == which { Bytes::from(body.clone()) } else { original.clone() };
                    store.put_if_absent(key, body).await.expect("the key is free");
                }
                let Ok(pool) = open(&store).await else { return };
                let _ = pool.data_key(VOLUME, soon()).await;
                let _ = pool.volume_json(VOLUME, soon()).await;
                let _ = pool.list_volumes(None, 10, soon()).await;
                let _ = pool.list_snapshot_names(None, 10, soon()).await;
                let _ = pool.pin(VOLUME, SnapshotId(3), VolumeId([9; 16]), soon()).await;
                let _ = pool.pins(VOLUME, soon()).await;
                let _ = pool.has_node("node", soon()).await;
            });
        });
        assert!(allocated <= allowed(bytes), "{} {input}: {allocated} bytes for {bytes}", sample[which].0);
    }
}

#[test]
fn changed_notes_of_points() {
    let meta = PointMeta {
        source: PointSource {
            cluster_uid: "c".into(),
            namespace: "shop".into(),
            claim_name: "data".into(),
            volume_mode: "Filesystem".into(),
            fs_type: Some("ext4".into()),
        },
        source_handle: "h".into(),
        point_in_time: "2026-11-23T05:00:00Z".into(),
        expires_at: None,
        changed_bytes: 7,
    };
    let note = meta.to_note().into_bytes();
    for input in 0..iterations(USUAL) {
        let mut mutator = Mutator::new(input);
        let mut changed = note.clone();
        mutator.mutate(&mut changed, std::slice::from_ref(&note));
        let text = String::from_utf8_lossy(&changed).into_owned();
        bounded("note", input, text.len(), || {
            let read = PointMeta::from_note(&text);
            assert!(text.as_bytes() != note || read.as_ref() == Some(&meta), "{input}");
        });
    }
}
