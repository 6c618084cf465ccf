//! One small object of every kind, with everything in it that its kind can hold, and how to read it whole.

use bytes::Bytes;
use holdfast_engine::buffer::Mutation;
use holdfast_engine::codec::{
    ChunkEntry, Chunks, Codec, CodecError, DataKey, EncodedPage, Frame, Identity, ObjectKind, decode_chunk,
    decode_frame, decode_index, decode_pack, decode_packed_page, decode_page, decode_record, decode_root,
    decode_segment_table, decode_snapshot_map, encode_frame, encode_index, encode_pages, encode_record,
    encode_root, encode_segment, encode_snapshot_map,
};
use holdfast_engine::ids::{ObjectId, PoolId, RecordNumber, SnapshotId, VolumeId};
use holdfast_engine::log::{Control, Grant, GrantMode, Move, Op, Reader, Record, Session, Snapshot};
use holdfast_engine::map::{
    Extent, IndexRef, Location, Origin, PackPlace, PageRef, Root, RunRef, SegmentKind, SegmentRef,
    SnapshotMap, StoredMap,
};

use crate::values::{BLOCK, noise};

pub const VOLUME: VolumeId = VolumeId(*b"\xa0\x1d\x2c\x3b\x4a\x59\x68\x77\x86\x95\xa4\xb3\xc2\xd1\xe0\xff");
pub const ANCESTOR: VolumeId = VolumeId([0xa1; 16]);
pub const SESSION: ObjectId = ObjectId([0xb0; 16]);
pub const EARLIER_SESSION: ObjectId = ObjectId([0xb1; 16]);
pub const NUMBER: RecordNumber = RecordNumber(0x102);

/// Sixteen bytes that do not repeat.
pub fn id(n: u8) -> [u8; 16] {
    std::array::from_fn(|at| noise(u64::from(n) * 16 + at as u64))
}

pub fn data_key() -> DataKey {
    DataKey::new(std::array::from_fn(|at| at as u8))
}

pub fn identity() -> Identity {
    Identity { volume: VOLUME, id: ObjectId(id(1)), session: SESSION }
}

/// A block that compresses, two that do not, and one that another session wrote.
pub fn chunks(codec: Codec) -> Chunks {
    let even = [0x5a; BLOCK];
    let rough: Vec<_> = (0..2 * BLOCK as u64).map(noise).collect();
    let mut chunks = Chunks::new(codec, SESSION);
    let taken = [
        chunks.push(3, 7, &even),
        chunks.push(16, 8, &rough[..if codec == Codec::Raw { BLOCK } else { 2 * BLOCK }]),
        chunks.push_from(EARLIER_SESSION, 40, 2, &even),
    ];
    assert!(taken.iter().all(|blocks| *blocks > 0));
    chunks
}

pub fn extents() -> Vec<Extent> {
    let mine = SegmentRef {
        volume: VOLUME,
        birth: RecordNumber(0x101),
        id: ObjectId(id(2)),
        kind: SegmentKind::Object,
    };
    let theirs = SegmentRef {
        volume: ANCESTOR,
        birth: RecordNumber(9),
        id: ObjectId(id(3)),
        kind: SegmentKind::Record,
    };
    let whole = Location {
        segment: mine,
        stored_offset: 0x1000,
        stored_len: 0x234,
        codec: Codec::Lz4,
        chunk_blocks: 16,
        chunk_offset: 0,
    };
    let part = Location {
        segment: theirs,
        stored_offset: 0x48,
        stored_len: 0x3008,
        codec: Codec::Raw,
        chunk_blocks: 3,
        chunk_offset: 1,
    };
    vec![
        Extent { lba: 0, blocks: 16, location: Some(whole) },
        Extent { lba: 16, blocks: 1000, location: None },
        Extent { lba: 0x1_0000_0000, blocks: 2, location: Some(part) },
    ]
}

pub fn pages() -> Vec<PageRef> {
    let near =
        PageRef { first_lba: 0, end_lba: 1016, volume: VOLUME, id: ObjectId(id(4)), place: None, extents: 2 };
    let far = PageRef {
        first_lba: 2000,
        end_lba: 1 << 33,
        volume: ANCESTOR,
        id: ObjectId(id(5)),
        extents: 2700,
        ..near
    };
    vec![near, far]
}

/// Two pages of a pack, and one that is an object.
fn packed_pages() -> Vec<PageRef> {
    let [near, far] = pages()[..] else { unreachable!("two pages") };
    let id = ObjectId(id(13));
    let first = PackPlace { offset: 0x80, len: 0x1234, pages: 64 };
    let last = PackPlace { offset: 0x1f_ffe0, len: 0xffff, pages: 64 };
    let later = PageRef { first_lba: 1 << 33, end_lba: 1 << 34, ..near };
    vec![
        PageRef { id, place: Some(first), ..near },
        far,
        PageRef { id, place: Some(last), extents: 2730, ..later },
    ]
}

/// A record of no real history: every operation once.
pub fn record() -> Record {
    let (grant, run) = (ObjectId(id(6)), ObjectId(id(7)));
    let snapshot = SnapshotId(0x33);
    let [first, _, last] = extents()[..] else { unreachable!("three extents") };
    let moved = Move { to: first, from: Location { chunk_blocks: 16, chunk_offset: 0, ..place(last) } };
    let ops = vec![
        Op::Maintain,
        Op::Create { size_bytes: 1 << 30 },
        Op::Dead,
        Op::Grant { node: "node-a".into(), mode: GrantMode::Maintenance },
        Op::Revoke { grant },
        Op::Open { grant, resumes: EARLIER_SESSION, endpoint: "10.0.0.1:9000".into() },
        Op::Close,
        Op::Snapshot { name: "snapshot-1".into(), meta: r#"{"source":"pvc"}"#.into() },
        Op::DeleteSnapshot { snapshot },
        Op::Annotate { snapshot, meta: "noted".into() },
        Op::Resize { size_bytes: 1 << 31 },
        Op::Write { extents: extents() },
        Op::WritePages { pages: pages() },
        Op::Relocate { moves: vec![moved] },
        Op::SwitchSnapshotMap { snapshot, generation: 2, map: ObjectId(id(8)) },
        Op::ForgetSnapshot { snapshot },
        Op::RunCommitted { run },
        Op::RunEnded { run },
        Op::Noop,
    ];
    Record {
        volume: VOLUME,
        number: NUMBER,
        id: ObjectId(id(1)),
        session: SESSION,
        prev: ObjectId(id(9)),
        time_ms: 1_700_000_000_000,
        buffer_complete: 77,
        ops,
    }
}

fn place(extent: Extent) -> Location {
    extent.location.expect("the extent has a place")
}

/// A record as a small flush appends it.
pub fn small_flush() -> Record {
    Record { ops: Vec::new(), ..record() }
}

fn stored_map() -> StoredMap {
    let indexes =
        vec![IndexRef { first_lba: 0, end_lba: 1 << 30, volume: VOLUME, id: ObjectId(id(10)), pages: 1024 }];
    let origin = Origin { pool: PoolId(id(11)), volume: ANCESTOR, snapshot: SnapshotId(5) };
    StoredMap { runs: vec![RunRef::Pages(pages()), RunRef::Indexed(indexes)], origins: vec![origin] }
}

pub fn root() -> Root {
    let snapshot = |name: &str, deleted, map| Snapshot {
        name: name.into(),
        meta: "{}".into(),
        time_ms: 1_700_000_000_000,
        size_bytes: 1 << 30,
        deleted,
        generation: 1,
        map,
    };
    let control = Control {
        last: ObjectId(id(9)),
        size_bytes: 1 << 31,
        grant: Some(Grant { id: ObjectId(id(6)), node: "node-a".into(), mode: GrantMode::ReadWrite }),
        readers: vec![Reader { id: ObjectId(id(12)), node: "node-b".into() }],
        session: Some(Session { id: SESSION, grant: ObjectId(id(6)), endpoint: "10.0.0.1:9000".into() }),
        buffer_complete: 77,
        snapshots: [
            (SnapshotId(0x33), snapshot("first", true, Some(ObjectId(id(8))))),
            (SnapshotId(0x44), snapshot("second", false, None)),
        ]
        .into(),
        ended_runs: [ObjectId(id(7))].into(),
        dead: false,
    };
    Root { volume: VOLUME, id: ObjectId(id(1)), number: NUMBER, control, map: stored_map() }
}

pub fn snapshot_map() -> SnapshotMap {
    SnapshotMap {
        volume: VOLUME,
        id: ObjectId(id(1)),
        snapshot: SnapshotId(0x33),
        size_bytes: 1 << 30,
        map: stored_map(),
    }
}

/// A write and a discard.
pub fn frame() -> Frame {
    Frame {
        volume: VOLUME,
        grant: SESSION,
        id: ObjectId(id(1)),
        prev: ObjectId(id(9)),
        position: NUMBER.0,
        first: 76,
        mutations: vec![
            Mutation::Write { offset: 3 * BLOCK as u64, data: vec![0x5a; BLOCK].into() },
            Mutation::Discard { offset: 0, len: 1 << 40 },
        ],
    }
}

/// An object of every kind, by a name.
pub fn objects(key: Option<&DataKey>) -> Vec<(&'static str, ObjectKind, Bytes)> {
    let record_bytes = |record, chunks: Option<&Chunks>| {
        encode_record(record, chunks, key).expect("a record within its limits").bytes
    };
    let segment = |codec| encode_segment(identity(), &chunks(codec), key).bytes;
    let pages_of = |pages: &[Vec<Extent>]| {
        let encoded: Result<Vec<_>, _> = pages.iter().map(|page| EncodedPage::new(page)).collect();
        let encoded = encoded.expect("pages within their limits");
        encode_pages(identity(), &encoded, key).expect("a pack within its limits").bytes
    };
    let page = |extents: Vec<Extent>| pages_of(&[extents]);
    let index = |pages: &[PageRef]| encode_index(identity(), pages, key).expect("an index within its limits");
    let map = encode_snapshot_map(SESSION, &snapshot_map(), key).expect("a map within its limits");
    vec![
        ("segment-raw", ObjectKind::Segment, segment(Codec::Raw)),
        ("segment-lz4", ObjectKind::Segment, segment(Codec::Lz4)),
        ("segment-zstd", ObjectKind::Segment, segment(Codec::Zstd)),
        ("record-operations", ObjectKind::Record, record_bytes(record(), None)),
        ("record-data", ObjectKind::Record, record_bytes(small_flush(), Some(&chunks(Codec::Lz4)))),
        ("page-raw", ObjectKind::Page, page(incompressible())),
        ("page-lz4", ObjectKind::Page, page(extents())),
        ("pack-raw", ObjectKind::Pack, pages_of(&[incompressible(), incompressible()])),
        ("pack-lz4", ObjectKind::Pack, pages_of(&[extents(), incompressible()])),
        ("index", ObjectKind::Index, index(&pages())),
        ("index-of-packs", ObjectKind::Index, index(&packed_pages())),
        ("root", ObjectKind::Root, encode_root(SESSION, &root(), key).expect("a root within its limits")),
        ("snapshot-map", ObjectKind::SnapshotMap, map),
        ("journal-frame", ObjectKind::Journal, encode_frame(&frame(), key)),
    ]
}

/// An extent that LZ4 does not make smaller.
fn incompressible() -> Vec<Extent> {
    let segment = SegmentRef {
        volume: VOLUME,
        birth: RecordNumber(0x1234_5678_9abc_def0),
        id: ObjectId(id(2)),
        kind: SegmentKind::Object,
    };
    let location = Location {
        segment,
        stored_offset: 0x1357_9bdf,
        stored_len: 0x2468_ace1,
        codec: Codec::Zstd,
        chunk_blocks: 14,
        chunk_offset: 3,
    };
    vec![Extent { lba: 0x0f1e_2d3c_4b5a_6978, blocks: 9, location: Some(location) }]
}

/// Reads all of an object that should be the sample of its kind in `volume`, under `id` and number: table, body and
/// every chunk.
pub fn read(
    kind: ObjectKind,
    bytes: &Bytes,
    volume: VolumeId,
    id: ObjectId,
    number: RecordNumber,
    key: Option<&DataKey>,
) -> Result<(), CodecError> {
    match kind {
        ObjectKind::Segment => {
            let table = decode_segment_table(bytes, volume, id, key)?;
            let segment = SegmentRef { volume, birth: number, id, kind: SegmentKind::Object };
            read_chunks(bytes, &table.chunks, segment, key)
        }
        ObjectKind::Record => {
            let decoded = decode_record(bytes, volume, number, key)?;
            let id = decoded.record.id;
            let segment = SegmentRef { volume, birth: number, id, kind: SegmentKind::Record };
            read_chunks(bytes, &decoded.chunks, segment, key)
        }
        ObjectKind::Page => decode_page(bytes, volume, id, key).map(|_| ()),
        ObjectKind::Pack => {
            let places = decode_pack(bytes, volume, id, key)?;
            places.iter().try_for_each(|place| read_page(bytes, volume, id, *place, key).map(|_| ()))
        }
        ObjectKind::Index => decode_index(bytes, volume, id, key).map(|_| ()),
        ObjectKind::Root => decode_root(bytes, volume, number, key).map(|_| ()),
        ObjectKind::SnapshotMap => decode_snapshot_map(bytes, volume, id, key).map(|_| ()),
        ObjectKind::Journal => decode_frame(bytes, volume, number.0, key).map(|_| ()),
    }
}

/// A page of a pack that is there as a whole.
pub fn read_page(
    pack: &Bytes,
    volume: VolumeId,
    id: ObjectId,
    place: PackPlace,
    key: Option<&DataKey>,
) -> Result<Vec<Extent>, CodecError> {
    let range = place.range().start as usize..place.range().end as usize;
    decode_packed_page(pack.slice(range), volume, id, place, key)
}

fn read_chunks(
    object: &Bytes,
    chunks: &[ChunkEntry],
    segment: SegmentRef,
    key: Option<&DataKey>,
) -> Result<(), CodecError> {
    for chunk in chunks {
        let location = place(chunk.extent(segment));
        let from = (chunk.stored_offset as usize).min(object.len());
        let to = (from + chunk.stored_len as usize).min(object.len());
        decode_chunk(object.slice(from..to), &location, key)?;
    }
    Ok(())
}
