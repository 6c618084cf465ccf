//! Objects whose checksums are right and whose content is anything: decoders answer with an error, never with a panic,
//! and never take much more memory than the object.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use holdfast_engine::codec::{CodecError, ENVELOPE_BYTES, ObjectKind, decode_record};
use holdfast_engine::ids::ObjectId;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest};
use proptest::sample::Index;

use crate::allocations::bytes_allocated_by;
use crate::samples::{self, NUMBER, VOLUME};

const KINDS: [ObjectKind; 8] = [
    ObjectKind::Segment,
    ObjectKind::Record,
    ObjectKind::Root,
    ObjectKind::Page,
    ObjectKind::Pack,
    ObjectKind::Index,
    ObjectKind::SnapshotMap,
    ObjectKind::Journal,
];
const LZ4: u16 = 2;

/// A decoder's allocations, over its whole run, in bytes for each byte of the object: each entry becomes a value a few
/// times its size, lists grow by doubling, and overlapping chunks are resolved block by block.
const MEMORY_FACTOR: usize = 32;

/// An unencrypted object with this body and these chunks, written as `docs/format.md` says and not by the engine.
pub fn forge(kind: ObjectKind, version: u16, flags: u16, body: &[u8], data: &[u8]) -> Bytes {
    let id = samples::id(1);
    let body_bytes = body.len() + 8;
    let mut object = kind.magic().to_vec();
    object.extend(version.to_le_bytes());
    object.extend(flags.to_le_bytes());
    object.extend((body_bytes as u32).to_le_bytes());
    object.extend(((ENVELOPE_BYTES + body_bytes + data.len()) as u32).to_le_bytes());
    object.extend(VOLUME.0);
    object.extend(id);
    object.extend(samples::SESSION.0);
    object.extend(crc_fast::crc32_iscsi(&object).to_le_bytes());
    let mut checksum = Digest::new(CrcAlgorithm::Crc64Nvme);
    checksum.update(&VOLUME.0);
    checksum.update(&id);
    checksum.update(kind.magic());
    checksum.update(&(ENVELOPE_BYTES as u64).to_le_bytes());
    checksum.update(&object);
    checksum.update(body);
    object.extend(body);
    object.extend(checksum.finalize().to_le_bytes());
    object.extend(data);
    object.into()
}

fn read(kind: ObjectKind, bytes: &Bytes) -> Result<(), CodecError> {
    samples::read(kind, bytes, VOLUME, ObjectId(samples::id(1)), NUMBER, None)
}

/// The parts of the unencrypted samples: kind, flags, body, chunks.
pub fn parts() -> Vec<(ObjectKind, u16, Vec<u8>, Vec<u8>)> {
    let split = |(_, kind, bytes): (_, _, Bytes)| {
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let body_end = ENVELOPE_BYTES + usize::from(short(12)) - 8;
        (kind, short(10), bytes[ENVELOPE_BYTES..body_end].to_vec(), bytes[body_end + 8..].to_vec())
    };
    samples::objects(None).into_iter().map(split).collect()
}

#[test]
fn an_object_forged_from_its_parts_is_the_object() {
    for ((kind, flags, body, data), (name, _, bytes)) in parts().into_iter().zip(samples::objects(None)) {
        assert_eq!(forge(kind, 1, flags, &body, &data), bytes, "{name}");
    }
}

#[test]
fn a_newer_version_is_called_that() {
    let newer = |result: Result<(), CodecError>| matches!(result, Err(CodecError::NewerVersion { .. }));
    for (kind, flags, body, data) in parts() {
        assert!(newer(read(kind, &forge(kind, 2, flags, &body, &data))), "version 2 of a {kind}");
        assert!(newer(read(kind, &forge(kind, 1, flags | 4, &body, &data))), "an unknown flag of a {kind}");
    }
    // The first operation of the sample record is a Maintain, of five bytes without a value.
    let (kind, flags, mut body, data) = parts().swap_remove(3);
    let op = body.windows(5).position(|bytes| bytes == [7, 0, 0, 0, 0]).unwrap();
    body[op] = 99;
    let error = read(kind, &forge(kind, 1, flags, &body, &data)).unwrap_err();
    assert!(error.to_string().contains("operation 99"), "{error}");
}

#[test]
fn a_compressed_page_cannot_claim_more_than_a_page() {
    let mut body = u32::MAX.to_le_bytes().to_vec();
    body.extend(lz4_flex::block::compress(&[0; 70_000]));
    let forged = forge(ObjectKind::Page, 1, LZ4, &body, &[]);
    let allocated = bytes_allocated_by(|| {
        assert!(matches!(read(ObjectKind::Page, &forged), Err(CodecError::TooLarge { .. })));
    });
    assert!(allocated < 4096, "{allocated}");
}

/// A sealed page for the place `offset` in a pack.
fn forge_page(offset: u32, content: &[u8]) -> Vec<u8> {
    let mut checksum = Digest::new(CrcAlgorithm::Crc64Nvme);
    for part in [&VOLUME.0[..], &samples::id(1), b"HOLDPACK", &u64::from(offset).to_le_bytes(), content] {
        checksum.update(part);
    }
    [content, &checksum.finalize().to_le_bytes()].concat()
}

/// A pack of empty pages at `places`, each where it should begin and how long it is called to be, and its table. Between
/// pages lies `gap`.
fn forge_pack(count: u32, places: &[(u16, u16)], gap: u8) -> Bytes {
    let mut table = count.to_le_bytes().to_vec();
    places.iter().for_each(|(at, len)| table.extend([len.to_le_bytes(), at.to_le_bytes()].concat()));
    let begin = ENVELOPE_BYTES + table.len() + 8;
    let mut data = Vec::new();
    for (at, _) in places {
        let offset = usize::from(*at) * 32;
        data.resize(offset.saturating_sub(begin).max(data.len()), gap);
        data.extend(forge_page(offset as u32, &[0; 9]));
    }
    forge(ObjectKind::Pack, 1, 0, &table, &data)
}

#[test]
fn a_pack_whose_pages_do_not_lie_as_they_should_is_refused() {
    // A page without names and extents is 9 bytes, and 8 of checksum.
    let read = |count, places: &[(u16, u16)], gap| read(ObjectKind::Pack, &forge_pack(count, places, gap));
    let two = [(3, 17), (4, 17)];
    assert_eq!(read(2, &two, 0), Ok(()));
    let refused = |result| matches!(result, Err(CodecError::Malformed { .. }));
    assert!(refused(read(2, &two, 1)), "something lies between the pages");
    assert!(refused(read(2, &[(3, 17), (5, 17)], 0)), "a gap");
    assert!(refused(read(2, &[(3, 17), (3, 17)], 0)), "an overlap");
    assert!(refused(read(2, &[(3, 17), (4, 16)], 0)), "the last page does not end with the pack");
    assert!(refused(read(2, &[(3, 17), (4, 18)], 0)), "the last page ends behind the pack");
    assert!(refused(read(2, &[(3, 17), (0, 17)], 0)), "a page in the envelope");
    assert!(refused(read(2, &[(3, 17), (4, 0)], 0)), "a page of no bytes");
    assert!(refused(read(3, &two, 0)) && refused(read(1, &two, 0)), "another count");
    assert!(refused(read(1, &[(3, 17)], 0)), "a page alone");
    assert!(refused(read(0, &[], 0)), "no page");
    let many = |count: u16| -> Vec<(u16, u16)> { (11..11 + count).map(|at| (at, 17)).collect() };
    assert_eq!(read(64, &many(64), 0), Ok(()));
    assert!(refused(read(65, &many(65), 0)), "more pages than a pack has");
}

#[test]
fn a_page_of_a_pack_in_a_form_that_is_not_known_is_of_a_newer_version() {
    let table = [&2_u32.to_le_bytes()[..], &[17, 0, 3, 0], &[17, 0, 4, 0]].concat();
    let gap = vec![0; 3 * 32 - ENVELOPE_BYTES - table.len() - 8];
    let pages =
        |form: u8| [forge_page(96, &[form, 0, 0, 0, 0, 0, 0, 0, 0]), vec![0; 15], forge_page(128, &[0; 9])];
    let forged = |form| forge(ObjectKind::Pack, 1, 0, &table, &[&gap[..], &pages(form).concat()].concat());
    assert_eq!(read(ObjectKind::Pack, &forged(0)), Ok(()));
    assert!(matches!(read(ObjectKind::Pack, &forged(2)), Err(CodecError::NewerVersion { .. })));
    // Compressed to nothing.
    assert!(matches!(read(ObjectKind::Pack, &forged(1)), Err(CodecError::Malformed { .. })));
}

#[test]
fn a_page_reference_with_half_a_place_is_refused() {
    let reference = |counts: u16, len: u16, at: u16| {
        let names = [&[1, 0, 0, 0][..], &VOLUME.0, &[0; 4]].concat();
        let blocks = [&0_u64.to_le_bytes()[..], &9_u64.to_le_bytes(), &[7; 16]].concat();
        let rest = [counts, len, 0, at].map(u16::to_le_bytes).concat();
        read(ObjectKind::Index, &forge(ObjectKind::Index, 1, 0, &[names, blocks, rest].concat(), &[]))
    };
    assert_eq!(reference(5, 0, 0), Ok(()));
    assert_eq!(reference(5, 100, 3), Ok(()));
    assert_eq!(reference(5 | 15 << 12, 100, 3), Ok(()));
    for (counts, len, at) in [(5, 100, 0), (5, 0, 3), (5 | 1 << 12, 0, 0), (5 | 1 << 12, 100, 0)] {
        let refused = reference(counts, len, at);
        assert!(matches!(refused, Err(CodecError::Malformed { .. })), "{counts} {len} {at}: {refused:?}");
    }
}

#[test]
fn memory_follows_the_input() {
    // Bodies of the shortest entries that become something: operations without a value, empty runs, snapshots
    // without texts, extents, and chunks that all overlap.
    const ENTRIES: u32 = 8000;
    let many = |prefix: &[u8], entry: &dyn Fn(u32) -> Vec<u8>| {
        let entries = (0..ENTRIES).flat_map(entry);
        prefix.iter().copied().chain(entries).collect::<Vec<_>>()
    };
    let count = ENTRIES.to_le_bytes();
    let record_header = [&NUMBER.0.to_le_bytes()[..], &[0; 32]].concat();
    let no_names = [0; 8];
    let noops = many(&[&record_header[..], &no_names].concat(), &|_| vec![19, 0, 0, 0, 0]);
    let control_up_to_readers = [&NUMBER.0.to_le_bytes()[..], &[0; 16 + 8 + 8 + 1 + 1 + 1]].concat();
    let empty_runs = many(&[&control_up_to_readers[..], &[0; 12 + 4], &no_names, &count].concat(), &|_| {
        vec![0, 0, 0, 0, 0]
    });
    let snapshot = |n: u32| [&u64::from(n).to_le_bytes()[..], &[0; 26]].concat();
    let snapshots =
        [many(&[&control_up_to_readers[..], &[0; 4], &count].concat(), &snapshot), vec![0; 20]].concat();
    let hole = |n: u32| [&u64::from(n).to_le_bytes()[..], &[1, 0, 0, 0, 0xff, 0xff], &[0; 10]].concat();
    let holes = many(&no_names, &hole);
    let data_len = (20 + 4 + ENTRIES * 24).to_le_bytes();
    let data_header =
        [&record_header[..], &no_names, &[20], &data_len, &[1, 0, 0, 0], &[0; 16], &count].concat();
    // Sixteen zeroed blocks, two bytes and a checksum long each, all at the same place.
    let chunk = |_| [&[0; 16][..], &[10, 0, 0, 0], &[0, 0, 16, 1]].concat();
    let chunks = many(&data_header, &chunk);

    for (what, kind, body, data_bytes) in [
        ("operations", ObjectKind::Record, noops, 0),
        ("runs", ObjectKind::Root, empty_runs, 0),
        ("snapshots", ObjectKind::Root, snapshots, 0),
        ("extents", ObjectKind::Page, holes, 0),
        ("chunks", ObjectKind::Record, chunks, ENTRIES as usize * 10),
    ] {
        let forged = forge(kind, 1, 0, &body, &vec![0; data_bytes]);
        let allocated = bytes_allocated_by(|| {
            let result = match kind {
                // The table alone: its chunks are no LZ4.
                ObjectKind::Record => decode_record(&forged, VOLUME, NUMBER, None).map(|_| ()),
                _ => read(kind, &forged),
            };
            assert_eq!(result, Ok(()), "{what}");
        });
        let times = allocated / body.len();
        assert!(times <= MEMORY_FACTOR, "{times} times the bytes of {what}");
    }
}

/// A change to a body.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    /// Four bytes: a count or a length becomes huge.
    Fill(Index),
    Cut(Index),
    Insert(Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => any::<Index>().prop_map(Change::Fill),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), vec(any::<u8>(), 1..50)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ]
}

fn apply(body: &mut Vec<u8>, change: &Change) {
    if body.is_empty() {
        return;
    }
    match change {
        Change::Set(at, byte) => *at.get_mut(body) = *byte,
        Change::Fill(at) => {
            let at = at.index(body.len());
            let end = (at + 4).min(body.len());
            body[at..end].fill(0xff);
        }
        Change::Cut(at) => body.truncate(at.index(body.len())),
        Change::Insert(at, bytes) => {
            let at = at.index(body.len());
            body.splice(at..at, bytes.iter().copied());
        }
    }
}

/// Besides what follows the input, a compressed page unpacks to at most 64 KiB, which become extents; so does each of
/// the samples' few chunks.
pub fn allowed(bytes: usize) -> usize {
    MEMORY_FACTOR * bytes + (1 << 20)
}

fn reads_within_bounds(kind: ObjectKind, object: &Bytes) -> bool {
    let allocated = bytes_allocated_by(|| {
        // Whether a changed object still makes sense is not the question here.
        let _ = read(kind, object);
    });
    allocated <= allowed(object.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn arbitrary_bytes(kind in 0..7_usize, bytes in vec(any::<u8>(), 0..300)) {
        let kind = KINDS[kind];
        prop_assert!(read(kind, &Bytes::from(bytes.clone())).is_err());
        prop_assert!(reads_within_bounds(kind, &forge(kind, 1, 0, &bytes, &[])));
        prop_assert!(reads_within_bounds(kind, &forge(kind, 1, LZ4, &bytes, &[])));
    }

    #[test]
    fn a_changed_body(which in any::<Index>(), changes in vec(change(), 1..4)) {
        let (kind, flags, mut body, data) = which.get(&parts()).clone();
        changes.iter().for_each(|change| apply(&mut body, change));
        prop_assert!(reads_within_bounds(kind, &forge(kind, 1, flags, &body, &data)));
    }

    #[test]
    fn arbitrary_data_in_a_compressed_chunk(codec in 1..3_u8, data in vec(any::<u8>(), 0..200)) {
        use holdfast_engine::codec::decode_chunk;
        use holdfast_engine::map::{Location, SegmentKind, SegmentRef};
        let codec = if codec == 1 { holdfast_engine::codec::Codec::Lz4 } else { holdfast_engine::codec::Codec::Zstd };
        let mut checksum = Digest::new(CrcAlgorithm::Crc64Nvme);
        let offset = 500_u32;
        for part in [&VOLUME.0[..], &samples::id(1), b"HOLDSEG1", &u64::from(offset).to_le_bytes(), &data] {
            checksum.update(part);
        }
        let stored = Bytes::from([data.as_slice(), &checksum.finalize().to_le_bytes()].concat());
        let id = ObjectId(samples::id(1));
        let segment = SegmentRef { volume: VOLUME, birth: NUMBER, id, kind: SegmentKind::Object };
        let stored_len = stored.len() as u32;
        let location =
            Location { segment, stored_offset: offset, stored_len, codec, chunk_blocks: 16, chunk_offset: 0 };
        let allocated = bytes_allocated_by(|| {
            assert!(matches!(decode_chunk(stored, &location, None), Err(CodecError::Malformed { .. })));
        });
        prop_assert!(allocated <= 80 << 10, "{}", allocated);
    }
}
