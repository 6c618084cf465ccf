//! What is encoded decodes to the same.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_engine::codec::{
    Chunks, Codec, CodecError, ENVELOPE_BYTES, EncodedPage, EncodedPages, Envelope, Identity, ObjectKind,
    ObjectName, PACK_BYTES_MAX, PACK_PAGES_MAX, PAGE_BODY_BYTES_MAX, RECORD_DATA_BYTES_MAX,
    RECORD_EXTENTS_MAX, RECORD_MOVES_MAX, SEGMENT_BYTES_MAX, SEGMENT_CHUNKS_MAX, decode_chunk, decode_index,
    decode_pack, decode_page, decode_record, decode_root, decode_segment_table, decode_snapshot_map,
    encode_index, encode_pages, encode_record, encode_root, encode_segment, encode_segment_within,
    encode_snapshot_map, extents_of, fits_pack, page_capacity,
};
use holdfast_engine::ids::{ObjectId, RecordNumber, VolumeId};
use holdfast_engine::log::{Move, Op, Record};
use holdfast_engine::map::{Extent, Location, PackPlace, PageRef, SegmentKind, SegmentRef};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, prop_assume, proptest};

use crate::samples;
use crate::values;
use crate::values::BLOCK;

/// The newest content of every block that `runs` write: of two with the same order, the later one.
fn newest(runs: &[(u64, u64, Vec<u8>)]) -> BTreeMap<u64, &[u8]> {
    let mut in_order: Vec<_> = runs.iter().collect();
    in_order.sort_by_key(|(_, order, _)| *order);
    let blocks = in_order.into_iter().flat_map(|(lba, _, data)| (*lba..).zip(data.chunks(BLOCK)));
    blocks.collect()
}

/// What a reader sees who has the object and its extents.
fn read_back(
    object: &Bytes,
    extents: &[Extent],
    key: Option<&holdfast_engine::codec::DataKey>,
) -> BTreeMap<u64, Vec<u8>> {
    let mut blocks = BTreeMap::new();
    for extent in extents {
        let location = extent.location.expect("data has a place");
        let range = location.stored_offset as usize..(location.stored_offset + location.stored_len) as usize;
        let chunk = decode_chunk(object.slice(range), &location, key).expect("the chunk is intact");
        assert_eq!(chunk.len(), usize::from(location.chunk_blocks) * BLOCK);
        let mine = chunk.chunks(BLOCK).skip(usize::from(location.chunk_offset));
        blocks.extend((extent.lba..extent.end()).zip(mine.map(<[u8]>::to_vec)));
    }
    blocks
}

fn chunks_of(codec: Codec, runs: &[(u64, u64, Vec<u8>)]) -> Chunks {
    let mut chunks = Chunks::new(codec, ObjectId([9; 16]));
    for (lba, order, data) in runs {
        assert_eq!(chunks.push(*lba, *order, data), (data.len() / BLOCK) as u64);
    }
    chunks
}

fn reference(identity: Identity, extents: &[Extent], place: Option<PackPlace>) -> PageRef {
    PageRef {
        first_lba: extents[0].lba,
        end_lba: extents[extents.len() - 1].end(),
        volume: identity.volume,
        id: identity.id,
        place,
        extents: extents.len() as u32,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_segment_gives_back_the_newest_of_what_was_pushed(
        identity in values::identity(), codec in values::codec(), key in values::key(), runs in values::runs(),
    ) {
        let chunks = chunks_of(codec, &runs);
        let segment = encode_segment(identity, &chunks, key.as_ref());
        prop_assert!(segment.bytes.len() <= chunks.stored_bytes());
        let Identity { volume, id, session } = identity;
        let object = ObjectName::ById { kind: ObjectKind::Segment, volume, id };
        let envelope = Envelope::decode(object, &segment.bytes[..ENVELOPE_BYTES]).unwrap();
        let head = segment.bytes.slice(..envelope.body_end() as usize);
        let table = decode_segment_table(&head, volume, id, key.as_ref()).unwrap();
        prop_assert_eq!(table.session, session);
        prop_assert_eq!(&table.chunks, &segment.chunks);
        let birth = RecordNumber(7);
        let extents = extents_of(&table.chunks, SegmentRef { volume, birth, id, kind: SegmentKind::Object });
        let expected: BTreeMap<_, _> = newest(&runs).into_iter().map(|(lba, data)| (lba, data.to_vec())).collect();
        prop_assert_eq!(read_back(&segment.bytes, &extents, key.as_ref()), expected);
    }

    #[test]
    fn a_record_gives_back_what_it_says(record in values::record(), key in values::key()) {
        let encoded = encode_record(record.clone(), None, key.as_ref()).unwrap();
        prop_assert_eq!(&encoded.record, &record);
        let decoded = decode_record(&encoded.bytes, record.volume, record.number, key.as_ref()).unwrap();
        prop_assert_eq!(decoded.record, record);
        prop_assert!(decoded.chunks.is_empty());
    }

    #[test]
    fn a_record_with_data_is_a_segment_too(
        record in values::record(), codec in values::codec(), key in values::key(), runs in values::runs(),
    ) {
        let encoded = encode_record(record.clone(), Some(&chunks_of(codec, &runs)), key.as_ref()).unwrap();
        let decoded = decode_record(&encoded.bytes, record.volume, record.number, key.as_ref()).unwrap();
        prop_assert_eq!(&decoded.record, &encoded.record);
        let Some((Op::Write { extents }, own)) = decoded.record.ops.split_last() else {
            panic!("the data's Write is missing");
        };
        prop_assert_eq!(own, record.ops);
        let expected: BTreeMap<_, _> = newest(&runs).into_iter().map(|(lba, data)| (lba, data.to_vec())).collect();
        prop_assert_eq!(read_back(&encoded.bytes, extents, key.as_ref()), expected);
    }

    #[test]
    fn a_page_gives_back_its_extents(
        identity in values::identity(), extents in values::extents(300), key in values::key(),
    ) {
        prop_assume!(!extents.is_empty());
        let page = EncodedPage::new(&extents).unwrap();
        let EncodedPages { bytes, pages } = encode_pages(identity, &[page], key.as_ref()).unwrap();
        prop_assert_eq!(pages, vec![reference(identity, &extents, None)]);
        prop_assert_eq!(decode_page(&bytes, identity.volume, identity.id, key.as_ref()).unwrap(), extents);
    }

    #[test]
    fn a_pack_gives_back_each_of_its_pages(
        identity in values::identity(), pages in vec(values::extents(60), 2..=PACK_PAGES_MAX), key in values::key(),
    ) {
        prop_assume!(pages.iter().all(|page| !page.is_empty()));
        let encoded: Vec<_> = pages.iter().map(|page| EncodedPage::new(page).unwrap()).collect();
        let pack = encode_pages(identity, &encoded, key.as_ref()).unwrap();
        let Identity { volume, id, .. } = identity;
        let places = decode_pack(&pack.bytes, volume, id, key.as_ref()).unwrap();
        prop_assert_eq!(places.len(), pages.len());
        for ((page, named), place) in pages.iter().zip(&pack.pages).zip(places) {
            prop_assert_eq!(*named, reference(identity, page, Some(place)));
            let read = samples::read_page(&pack.bytes, volume, id, place, key.as_ref());
            prop_assert_eq!(read.as_ref(), Ok(page));
        }
    }

    #[test]
    fn an_index_gives_back_its_pages(
        identity in values::identity(), pages in values::pages(100), key in values::key(),
    ) {
        let bytes = encode_index(identity, &pages, key.as_ref()).unwrap();
        prop_assert_eq!(decode_index(&bytes, identity.volume, identity.id, key.as_ref()).unwrap(), pages);
    }

    #[test]
    fn a_root_gives_back_its_state(
        root in values::root(), session in values::object_id(), key in values::key(),
    ) {
        let bytes = encode_root(session, &root, key.as_ref()).unwrap();
        prop_assert_eq!(decode_root(&bytes, root.volume, root.number, key.as_ref()).unwrap(), root);
    }

    #[test]
    fn a_snapshot_map_gives_back_its_map(
        map in values::snapshot_map(), session in values::object_id(), key in values::key(),
    ) {
        let bytes = encode_snapshot_map(session, &map, key.as_ref()).unwrap();
        prop_assert_eq!(decode_snapshot_map(&bytes, map.volume, map.id, key.as_ref()).unwrap(), map);
    }

    #[test]
    fn encoding_is_deterministic(record in values::record(), runs in values::runs(), key in any::<[u8; 32]>()) {
        let key = holdfast_engine::codec::DataKey::new(key);
        let encode = || encode_record(record.clone(), Some(&chunks_of(Codec::Lz4, &runs)), Some(&key)).unwrap();
        prop_assert_eq!(encode().bytes, encode().bytes);
    }
}

#[test]
fn a_relocated_chunk_keeps_the_session_that_wrote_it() {
    let (mine, theirs) = (ObjectId([1; 16]), ObjectId([2; 16]));
    let mut chunks = Chunks::new(Codec::Lz4, mine);
    assert_eq!(chunks.push(0, 5, &[1; BLOCK]), 1);
    assert_eq!(chunks.push_from(theirs, 9, 3, &[2; BLOCK]), 1);
    let identity = Identity { volume: VolumeId([3; 16]), id: ObjectId([4; 16]), session: mine };
    let segment = encode_segment(identity, &chunks, None);
    let table = decode_segment_table(&segment.bytes, identity.volume, identity.id, None).unwrap();
    let origins: Vec<_> = table.chunks.iter().map(|chunk| (chunk.session, chunk.order)).collect();
    assert_eq!(origins, [(mine, 5), (theirs, 3)]);
}

#[test]
fn chunks_end_at_multiples_of_16_blocks_and_shrink_when_they_can() {
    let mut chunks = Chunks::new(Codec::Lz4, ObjectId([1; 16]));
    let zeros = vec![0; 20 * BLOCK];
    let random: Vec<_> = (0..BLOCK as u64).map(values::noise).collect();
    assert_eq!(chunks.push(10, 1, &zeros), 20);
    assert_eq!(chunks.push(100, 2, &random), 1);
    let identity = Identity { volume: VolumeId([3; 16]), id: ObjectId([4; 16]), session: ObjectId([1; 16]) };
    let segment = encode_segment(identity, &chunks, None);
    let shapes: Vec<_> = segment.chunks.iter().map(|c| (c.lba, c.blocks, c.codec)).collect();
    assert_eq!(shapes, [(10, 6, Codec::Lz4), (16, 14, Codec::Lz4), (100, 1, Codec::Raw)]);
    assert!(segment.chunks[1].stored_len < 1000);
    assert_eq!(segment.chunks[2].stored_len as usize, BLOCK + 8);
}

#[test]
fn a_full_segment_says_how_much_it_took() {
    let random: Vec<_> = (0..(1 << 20)).map(values::noise).collect();
    let mut chunks = Chunks::new(Codec::Lz4, ObjectId([1; 16]));
    let blocks_of_a_push = (random.len() / BLOCK) as u64;
    let mut pushed = 0;
    let short = loop {
        let taken = chunks.push(pushed, 1, &random);
        pushed += taken;
        if taken < blocks_of_a_push {
            break taken;
        }
    };
    assert!(short > 0, "the last push filled what was left");
    let identity = Identity { volume: VolumeId([3; 16]), id: ObjectId([4; 16]), session: ObjectId([1; 16]) };
    let segment = encode_segment(identity, &chunks, None);
    assert!(segment.bytes.len() <= SEGMENT_BYTES_MAX);
    assert!(segment.bytes.len() > SEGMENT_BYTES_MAX - 2 * 16 * BLOCK, "little is left unused");
    assert_eq!(segment.chunks.iter().map(|c| u64::from(c.blocks)).sum::<u64>(), pushed);
}

#[test]
fn well_compressing_data_is_bounded_by_its_chunks() {
    let zeros = vec![0; 16 * BLOCK];
    let mut chunks = Chunks::new(Codec::Lz4, ObjectId([1; 16]));
    let lbas = (0..).map(|n| n * 16);
    let full = lbas.take_while(|lba| chunks.push(*lba, 1, &zeros) == 16).count();
    assert_eq!(full, SEGMENT_CHUNKS_MAX);
}

/// Of a stretch that does not compress a part is tried; what comes after it compresses again.
#[test]
fn data_that_do_not_compress_are_tried_now_and_then() {
    let random: Vec<_> = (0..(16 * BLOCK as u64)).map(values::noise).collect();
    let zeros = vec![0; 16 * BLOCK];
    let mut chunks = Chunks::new(Codec::Lz4, ObjectId([1; 16]));
    for lba in 0..100 {
        assert_eq!(chunks.push(lba * 16, 1, if lba < 50 { &random } else { &zeros }), 16);
    }
    let identity = Identity { volume: VolumeId([3; 16]), id: ObjectId([4; 16]), session: ObjectId([1; 16]) };
    let segment = encode_segment(identity, &chunks, None);
    let raw = segment.chunks.iter().filter(|chunk| chunk.codec == Codec::Raw).count();
    assert_eq!(raw, 56, "chunk 56 was the next to be tried");
    assert!(segment.chunks[56..].iter().all(|chunk| chunk.codec == Codec::Lz4));
}

/// A disk takes a segment as it lies in memory, also in memory that another one had.
#[test]
fn a_segment_is_aligned_in_memory() {
    let random: Vec<_> = (0..(64 * BLOCK as u64)).map(values::noise).collect();
    let mut chunks = Chunks::new(Codec::Lz4, ObjectId([1; 16]));
    assert_eq!(chunks.push(0, 1, &random), 64);
    let identity = Identity { volume: VolumeId([3; 16]), id: ObjectId([4; 16]), session: ObjectId([1; 16]) };
    let plain = encode_segment(identity, &chunks, None).bytes;
    for memory in [Vec::new(), Vec::with_capacity(7), vec![9; 1 << 20]] {
        let segment = encode_segment_within(memory, identity, &chunks, None).bytes;
        assert_eq!(segment.as_ptr().align_offset(4096), 0);
        assert_eq!(segment, plain);
    }
}

fn far_apart(lba: u64) -> Extent {
    let segment = SegmentRef {
        volume: VolumeId([1; 16]),
        birth: RecordNumber(lba),
        id: ObjectId([lba as u8; 16]),
        kind: SegmentKind::Object,
    };
    Extent { lba, blocks: 1, location: Some(at(segment)) }
}

fn at(segment: SegmentRef) -> Location {
    Location {
        segment,
        stored_offset: 100,
        stored_len: 4104,
        codec: Codec::Raw,
        chunk_blocks: 1,
        chunk_offset: 0,
    }
}

fn record(ops: Vec<Op>) -> Record {
    Record {
        volume: VolumeId([1; 16]),
        number: RecordNumber(2),
        id: ObjectId([2; 16]),
        session: ObjectId([3; 16]),
        prev: ObjectId([4; 16]),
        time_ms: 0,
        buffer_complete: 0,
        ops,
    }
}

#[test]
fn a_page_holds_what_its_capacity_says() {
    let dense: Vec<_> = {
        let segment = far_apart(1).location.unwrap().segment;
        (0..5000).map(|lba| Extent { lba, blocks: 1, location: Some(at(segment)) }).collect()
    };
    let sparse: Vec<_> = (0..5000).map(far_apart).collect();
    let identity = Identity { volume: VolumeId([3; 16]), id: ObjectId([4; 16]), session: ObjectId([1; 16]) };
    for (extents, least) in [(&dense, 2700), (&sparse, 1200)] {
        let fits = page_capacity(extents);
        assert!(fits >= least, "{fits}");
        let page = EncodedPage::new(&extents[..fits]).unwrap();
        let bytes = encode_pages(identity, &[page], None).unwrap().bytes;
        assert!(bytes.len() <= PAGE_BODY_BYTES_MAX + ENVELOPE_BYTES + 16);
        let refused = EncodedPage::new(&extents[..fits + 1]).unwrap_err();
        assert!(matches!(refused, CodecError::TooLarge { .. }), "{refused}");
    }
    assert_eq!(page_capacity(&[]), 0);
    assert!(EncodedPage::new(&[]).is_err());
}

#[test]
fn the_largest_packs_are_within_reach_of_their_references() {
    let identity = Identity { volume: VolumeId([3; 16]), id: ObjectId([4; 16]), session: ObjectId([1; 16]) };
    // What does not compress, of about 60 KiB.
    let noisy = |lba: u64| {
        let mut extent = far_apart(lba);
        if let Some(location) = &mut extent.location {
            location.segment.id = ObjectId(std::array::from_fn(|at| values::noise(lba * 16 + at as u64)));
            location.stored_offset = (lba as u32).wrapping_mul(0x9e37_79b9);
        }
        extent
    };
    let large = |n: u64| (n * 1170..(n + 1) * 1170).map(noisy).collect::<Vec<_>>();
    let small = |n: u64| vec![noisy(n)];
    for (page, most) in
        [(&large as &dyn Fn(u64) -> Vec<Extent>, PACK_PAGES_MAX - 1), (&small, PACK_PAGES_MAX)]
    {
        let mut pages: Vec<EncodedPage> = Vec::new();
        let refused = loop {
            let next = EncodedPage::new(&page(pages.len() as u64)).unwrap();
            if !fits_pack(&pages, &next) {
                break next;
            }
            pages.push(next);
        };
        assert!(pages.len() > 30 && pages.len() <= most, "{} pages", pages.len());
        let pack = encode_pages(identity, &pages, None).unwrap();
        assert!(pack.bytes.len() <= PACK_BYTES_MAX, "{} bytes", pack.bytes.len());
        let last = pack.pages[pages.len() - 1].place.unwrap();
        let read = samples::read_page(&pack.bytes, identity.volume, identity.id, last, None).unwrap();
        assert_eq!(read, page(pages.len() as u64 - 1));
        pages.push(refused);
        pages.push(EncodedPage::new(&page(pages.len() as u64)).unwrap());
        let refused = encode_pages(identity, &pages, None).unwrap_err();
        assert!(matches!(refused, CodecError::TooLarge { .. }), "{refused}");
    }
}

#[test]
fn the_documented_numbers_of_extents_and_moves_fit_a_record() {
    let extents: Vec<_> = (0..RECORD_EXTENTS_MAX as u64).map(far_apart).collect();
    encode_record(record(vec![Op::Write { extents }]), None, None).unwrap();
    let from = |lba| far_apart(lba + 1_000_000).location.unwrap();
    let moves =
        (0..RECORD_MOVES_MAX as u64).map(|lba| Move { to: far_apart(lba), from: from(lba) }).collect();
    encode_record(record(vec![Op::Relocate { moves }]), None, None).unwrap();
}

#[test]
fn a_record_refuses_more_than_its_limits() {
    let mut chunks = Chunks::new(Codec::Raw, ObjectId([1; 16]));
    assert_eq!(chunks.push(0, 1, &vec![0; RECORD_DATA_BYTES_MAX]), (RECORD_DATA_BYTES_MAX / BLOCK) as u64);
    let refused = encode_record(record(vec![]), Some(&chunks), None).unwrap_err();
    assert!(matches!(refused, CodecError::TooLarge { .. }), "{refused}");
    let meta = "x".repeat(20_000);
    let snapshot = Op::Snapshot { name: "s".into(), meta };
    let refused = encode_record(record(vec![snapshot]), None, None).unwrap_err();
    assert!(matches!(refused, CodecError::TooLarge { .. }), "{refused}");
}

#[test]
fn what_a_reader_would_refuse_is_not_written() {
    let mut extents = vec![far_apart(5), far_apart(5)];
    let refused =
        encode_record(record(vec![Op::Write { extents: extents.clone() }]), None, None).unwrap_err();
    assert!(matches!(refused, CodecError::Malformed { .. }), "{refused}");
    extents.truncate(1);
    extents[0].blocks = 2;
    let refused = encode_record(record(vec![Op::Write { extents }]), None, None).unwrap_err();
    assert!(matches!(refused, CodecError::Malformed { .. }), "{refused}");
}
