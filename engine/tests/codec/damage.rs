//! Damage is found, wherever it is.

use bytes::Bytes;
use holdfast_engine::codec::{CodecError, DataKey, ObjectKind};
use holdfast_engine::ids::ObjectId;

use crate::samples::{self, NUMBER, VOLUME};

fn read(kind: ObjectKind, bytes: Vec<u8>, key: Option<&DataKey>) -> Result<(), CodecError> {
    samples::read(kind, &Bytes::from(bytes), VOLUME, ObjectId(samples::id(1)), NUMBER, key)
}

fn with_and_without_key(check: impl Fn(&str, ObjectKind, &Bytes, Option<&DataKey>)) {
    let key = samples::data_key();
    for key in [None, Some(&key)] {
        for (name, kind, bytes) in samples::objects(key) {
            check(name, kind, &bytes, key);
        }
    }
}

#[test]
fn undamaged_objects_are_read() {
    with_and_without_key(|name, kind, bytes, key| {
        let result = read(kind, bytes.to_vec(), key);
        assert_eq!(result, Ok(()), "{name}");
    });
}

#[test]
fn every_flipped_bit_is_found() {
    with_and_without_key(|name, kind, bytes, key| {
        // The long stretch of a raw chunk's data is all alike: some of it will do.
        let places = (0..bytes.len()).filter(|at| *at < 2000 || at % 97 == 0 || bytes.len() - at < 100);
        for at in places {
            for bit in 0..8 {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= 1 << bit;
                assert!(read(kind, damaged, key).is_err(), "{name}: bit {bit} of byte {at} went unnoticed");
            }
        }
    });
}

#[test]
fn every_truncation_is_found() {
    with_and_without_key(|name, kind, bytes, key| {
        for len in (0..bytes.len()).filter(|len| *len < 2000 || len % 97 == 0) {
            let error = read(kind, bytes[..len].to_vec(), key).expect_err("an end is missing");
            assert!(matches!(error, CodecError::Truncated { .. }), "{name} of {len} bytes: {error}");
        }
    });
}

#[test]
fn bytes_behind_the_end_are_found() {
    with_and_without_key(|name, kind, bytes, key| {
        if kind != ObjectKind::Segment {
            let longer = [bytes.as_ref(), &[0]].concat();
            assert!(read(kind, longer, key).is_err(), "{name}");
        }
    });
}

#[test]
fn an_error_names_the_object_and_what_to_do() {
    let (_, kind, bytes) = samples::objects(None).swap_remove(0);
    let mut damaged = bytes.to_vec();
    damaged[80] ^= 1;
    let error = read(kind, damaged, None).expect_err("a bit is flipped").to_string();
    assert!(error.contains(&ObjectId(samples::id(1)).to_string()), "{error}");
    assert!(error.contains(&VOLUME.to_string()), "{error}");
    assert!(error.contains("restore it"), "{error}");
}
