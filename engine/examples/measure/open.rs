//! Opening a volume of 1 TiB with many extents after a crash, and the memory of its map.
//!
//! The extents name segments that do not exist: an open reads none, and so 10 million of them need no 40 GB of data.

use std::path::Path;
use std::time::Instant;

use holdfast_engine::codec::Codec;
use holdfast_engine::env::Env;
use holdfast_engine::ids::{ObjectId, RecordNumber, VolumeId};
use holdfast_engine::log::Op;
use holdfast_engine::map::{Extent, Location, SegmentKind, SegmentRef};
use serde_json::{Value, json};

use crate::scene;

const SIZE_BYTES: u64 = 1 << 40;
/// Extents in a record.
const BATCH: u64 = 16_384;
/// Extents in a segment: as many as random writes of one block leave in 8 MiB.
const SEGMENT_EXTENTS: u64 = 2_048;
/// Blocks between two extents of a batch.
const STRIDE: u64 = SIZE_BYTES / 4096 / BATCH;

/// One batch of random writes: sorted, spread over the volume, next to nothing of another batch.
fn batch(volume: VolumeId, number: u64) -> Vec<Extent> {
    let env = Env::system();
    let mut segment = ObjectId::NONE;
    (0..BATCH)
        .map(|place| {
            if place % SEGMENT_EXTENTS == 0 {
                segment = ObjectId::random(&*env.entropy);
            }
            let location = Location {
                segment: SegmentRef {
                    volume,
                    birth: RecordNumber(number + 1),
                    id: segment,
                    kind: SegmentKind::Object,
                },
                stored_offset: 72 + (place % SEGMENT_EXTENTS) as u32 * 4112,
                stored_len: 4112,
                codec: Codec::Raw,
                chunk_blocks: 1,
                chunk_offset: 0,
            };
            let lba = place * STRIDE + number * 24 % (STRIDE - 1) + 1;
            Extent { lba, blocks: 1, location: Some(location) }
        })
        .collect()
}

/// Builds the volume, lets its process die, and opens it anew.
pub async fn measure(dir: &Path, extents: u64) -> Value {
    let pool = scene::pool(dir, "open", None).await;
    let host = scene::host(&pool, None);
    let id = scene::create(&host, &pool, "volume", SIZE_BYTES, None).await;
    let grant = scene::grant(&host, &pool, id).await;
    let volume = scene::open(&host, &pool, id, grant).await;
    let batches = extents.div_ceil(BATCH);
    for number in 0..batches {
        volume.append(vec![Op::Write { extents: batch(id, number) }], false).await.unwrap();
    }
    volume.abandon();
    drop((volume, host));

    let before = resident_bytes();
    let host = scene::host(&pool, None);
    let begun = Instant::now();
    let volume = scene::open(&host, &pool, id, grant).await;
    let open = begun.elapsed();
    // Block 0 was never written; to know that, the map has to be looked into.
    volume.read(0, 4096).await.unwrap();
    let first_read = begun.elapsed();

    let Some(map) = volume.frozen() else { unreachable!("a writer's map is a head") };
    let mut found = 0;
    for place in 0..BATCH {
        let from = place * STRIDE;
        let seen = map.lookup(from..from + STRIDE).await.unwrap();
        found += seen.iter().filter(|extent| extent.location.is_some()).count() as u64;
    }
    assert_eq!(found, batches * BATCH, "extents are missing");
    json!({
        "extents": found,
        "open_ms": open.as_secs_f64() * 1e3,
        "open_and_first_read_ms": first_read.as_secs_f64() * 1e3,
        "page_bytes_per_extent": host.pages.bytes() as f64 / found as f64,
        "resident_bytes_per_extent": resident_bytes().saturating_sub(before) as f64 / found as f64,
    })
}

/// Memory of this process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}
