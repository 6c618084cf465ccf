//! An intact object, or part of one, in another's place is refused.

use holdfast_engine::codec::{
    Chunks, Codec, CodecError, DataKey, EncodedPage, Identity, ObjectKind, decode_chunk, decode_packed_page,
    encode_pages, encode_segment,
};
use holdfast_engine::ids::{ObjectId, RecordNumber, VolumeId};
use holdfast_engine::map::{Location, SegmentKind, SegmentRef};

use crate::samples::{self, NUMBER, VOLUME};
use crate::values::BLOCK;

fn keys() -> [Option<DataKey>; 2] {
    [None, Some(samples::data_key())]
}

#[test]
fn under_another_name() {
    let other_volume = VolumeId([0xcc; 16]);
    let (id, other_id) = (ObjectId(samples::id(1)), ObjectId(samples::id(20)));
    for key in keys() {
        for (name, kind, bytes) in samples::objects(key.as_ref()) {
            let read = |volume, id, number| samples::read(kind, &bytes, volume, id, number, key.as_ref());
            let wrong = |result| matches!(result, Err(CodecError::WrongObject { .. }));
            assert!(wrong(read(other_volume, id, NUMBER)), "{name} in another volume");
            match kind {
                ObjectKind::Record | ObjectKind::Root | ObjectKind::Journal => {
                    assert!(wrong(read(VOLUME, id, NUMBER.next())), "{name} under another number");
                }
                ObjectKind::Segment
                | ObjectKind::Page
                | ObjectKind::Pack
                | ObjectKind::Index
                | ObjectKind::SnapshotMap => {
                    assert!(wrong(read(VOLUME, other_id, NUMBER)), "{name} under another id");
                }
            }
        }
    }
}

#[test]
fn as_another_kind() {
    let objects = samples::objects(None);
    for (name, kind, bytes) in &objects {
        for (_, other, _) in objects.iter().filter(|(_, other, _)| other != kind) {
            let read = samples::read(*other, bytes, VOLUME, ObjectId(samples::id(1)), NUMBER, None);
            assert!(matches!(read, Err(CodecError::WrongObject { .. })), "{name} read as {other}");
        }
    }
}

#[test]
fn under_another_key() {
    let (key, other) = (samples::data_key(), DataKey::new([9; 32]));
    let id = ObjectId(samples::id(1));
    for (name, kind, bytes) in samples::objects(Some(&key)) {
        let read = |key| samples::read(kind, &bytes, VOLUME, id, NUMBER, key);
        assert!(matches!(read(Some(&other)), Err(CodecError::Unauthentic { .. })), "{name}");
        assert!(matches!(read(None), Err(CodecError::Encrypted { .. })), "{name}");
    }
    for (name, kind, bytes) in samples::objects(None) {
        let read = samples::read(kind, &bytes, VOLUME, id, NUMBER, Some(&key));
        assert!(matches!(read, Err(CodecError::NotEncrypted { .. })), "{name}");
    }
}

#[test]
fn a_chunk_at_another_place() {
    for key in keys() {
        let mut chunks = Chunks::new(Codec::Raw, samples::SESSION);
        assert_eq!(chunks.push(0, 1, &[1; BLOCK]), 1);
        assert_eq!(chunks.push(16, 2, &[1; BLOCK]), 1);
        let segment = encode_segment(samples::identity(), &chunks, key.as_ref());
        let [first, second] = segment.chunks[..] else { panic!("two chunks were pushed") };
        let Identity { volume, id, .. } = samples::identity();
        let itself = SegmentRef { volume, birth: NUMBER, id, kind: SegmentKind::Object };
        let location = |chunk: holdfast_engine::codec::ChunkEntry, segment| Location {
            segment,
            stored_offset: chunk.stored_offset,
            stored_len: chunk.stored_len,
            codec: chunk.codec,
            chunk_blocks: chunk.blocks,
            chunk_offset: 0,
        };
        let stored = segment.bytes.slice(second.stored_offset as usize..);
        let read = |location: Location| decode_chunk(stored.clone(), &location, key.as_ref());
        let out_of_place = |result: Result<_, CodecError>| match key {
            Some(_) => matches!(result, Err(CodecError::Unauthentic { .. })),
            None => matches!(result, Err(CodecError::Damaged { .. })),
        };
        assert_eq!(read(location(second, itself)).unwrap(), vec![1; BLOCK]);
        // The second chunk has the same content and length as the first, and is still not the first.
        assert!(out_of_place(read(location(first, itself))));
        for other in [
            SegmentRef { volume: VolumeId([0xcc; 16]), ..itself },
            SegmentRef { id: ObjectId(samples::id(20)), ..itself },
            SegmentRef { kind: SegmentKind::Record, ..itself },
        ] {
            assert!(out_of_place(read(location(second, other))), "{other:?}");
        }
        // The birth only says where to look for a record; the number of a segment's record is not in the segment.
        assert!(read(location(second, SegmentRef { birth: RecordNumber(1), ..itself })).is_ok());
    }
}

#[test]
fn a_page_at_another_place_in_a_pack() {
    let page = || EncodedPage::new(&samples::extents()).unwrap();
    for key in keys() {
        let key = key.as_ref();
        let pack = encode_pages(samples::identity(), &[page(), page()], key).unwrap();
        let Identity { volume, id, .. } = samples::identity();
        let [first, second] = pack.pages[..] else { panic!("two pages were put") };
        let (first, second) = (first.place.unwrap(), second.place.unwrap());
        let range = second.range().start as usize..second.range().end as usize;
        let stored = pack.bytes.slice(range);
        let read = |volume, id, place| decode_packed_page(stored.clone(), volume, id, place, key);
        let out_of_place = |result: Result<_, CodecError>| match key {
            Some(_) => matches!(result, Err(CodecError::Unauthentic { .. })),
            None => matches!(result, Err(CodecError::Damaged { .. })),
        };
        assert_eq!(read(volume, id, second).unwrap(), samples::extents());
        // Both have the same content and length, and the second is still not the first.
        assert_eq!(first.len, second.len);
        assert!(out_of_place(read(volume, id, first)));
        assert!(out_of_place(read(VolumeId([0xcc; 16]), id, second)));
        assert!(out_of_place(read(volume, ObjectId(samples::id(20)), second)));
        let short = decode_packed_page(stored.slice(1..), volume, id, second, key);
        assert!(matches!(short, Err(CodecError::Truncated { .. })), "{short:?}");
    }
}

#[test]
fn a_chunk_that_is_not_what_the_map_says() {
    let segment = encode_segment(samples::identity(), &samples::chunks(Codec::Lz4), None);
    let Identity { volume, id, .. } = samples::identity();
    let itself = SegmentRef { volume, birth: NUMBER, id, kind: SegmentKind::Object };
    let chunk = segment.chunks[0];
    let true_location = chunk.extent(itself).location.unwrap();
    let stored = segment.bytes.slice(chunk.stored_offset as usize..).slice(..chunk.stored_len as usize);
    assert!(decode_chunk(stored.clone(), &true_location, None).is_ok());
    for wrong in [
        Location { chunk_blocks: 2, ..true_location },
        Location { chunk_blocks: 0, ..true_location },
        Location { codec: Codec::Raw, ..true_location },
        Location { codec: Codec::Zstd, ..true_location },
    ] {
        let read = decode_chunk(stored.clone(), &wrong, None);
        assert!(matches!(read, Err(CodecError::Malformed { .. })), "{wrong:?}: {read:?}");
    }
    let short = decode_chunk(stored.slice(1..), &true_location, None);
    assert!(matches!(short, Err(CodecError::Truncated { .. })), "{short:?}");
}
