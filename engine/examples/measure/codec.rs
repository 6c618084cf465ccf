//! What it costs to compress, seal and check a segment's bytes.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use holdfast_engine::codec::{
    Chunks, Codec, DataKey, EncodedSegment, Identity, decode_chunk, encode_segment_within, extents_of,
};
use holdfast_engine::env::Env;
use holdfast_engine::ids::{ObjectId, RecordNumber, SessionId, VolumeId};
use holdfast_engine::map::{SegmentKind, SegmentRef};
use serde_json::{Value, json};

use crate::scene::noise;

const BLOCKS: u64 = 1536;
const ROUNDS: u32 = 40;

/// Half of each block is noise, the rest zeros: LZ4 halves it.
fn data() -> Bytes {
    let mut data = noise(7, (BLOCKS * 4096) as usize).to_vec();
    data.chunks_exact_mut(4096).for_each(|block| block[2048..].fill(0));
    data.into()
}

/// Bytes a second, on one core, of encoding and of decoding with each layer.
pub fn measure() -> Value {
    let key = DataKey::random(&*Env::system().entropy);
    let of = |codec, key: Option<&DataKey>| {
        let (encode, decode) = rates(codec, key);
        json!({"encode_bytes_per_s": encode, "decode_bytes_per_s": decode})
    };
    json!({
        "checksum": of(Codec::Raw, None),
        "checksum_lz4": of(Codec::Lz4, None),
        "aes": of(Codec::Raw, Some(&key)),
        "lz4_aes": of(Codec::Lz4, Some(&key)),
    })
}

fn rates(codec: Codec, key: Option<&DataKey>) -> (f64, f64) {
    let data = data();
    let identity = Identity { volume: VolumeId([1; 16]), id: ObjectId([2; 16]), session: SessionId::NONE };
    let encode = |memory: Vec<u8>| -> EncodedSegment {
        let mut chunks = Chunks::new(codec, SessionId::NONE);
        let mut lba = 0;
        while lba < BLOCKS {
            lba +=
                chunks.push_shared(lba, 0, &data.slice((lba * 4096) as usize..((lba + 16) * 4096) as usize));
        }
        encode_segment_within(memory, identity, &chunks, key)
    };
    let rate = |begun: Instant| (BLOCKS * 4096 * u64::from(ROUNDS)) as f64 / begun.elapsed().as_secs_f64();

    // In memory that is used again, as a volume does: fresh memory would cost more than all that is measured.
    let mut memory = encode(Vec::new()).bytes;
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        memory = black_box(encode(memory.into())).bytes;
    }
    let encoding = rate(begun);

    let EncodedSegment { bytes, chunks } = encode(memory.into());
    let segment = SegmentRef {
        volume: identity.volume,
        birth: RecordNumber(1),
        id: identity.id,
        kind: SegmentKind::Object,
    };
    let sealed: Vec<_> = extents_of(&chunks, segment)
        .into_iter()
        .filter_map(|extent| extent.location)
        .map(|location| {
            let at = location.stored_offset as usize;
            (location, bytes.slice(at..at + location.stored_len as usize))
        })
        .collect();
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        for (location, sealed) in &sealed {
            let blocks: Bytes = decode_chunk(sealed.clone(), location, key).unwrap();
            black_box(blocks);
        }
    }
    (encoding, rate(begun))
}
