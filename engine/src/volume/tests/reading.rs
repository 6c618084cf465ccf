//! What reads of an open volume ask the store for, and when.

use std::ops::Range;

use super::*;
use crate::cache::MemoryCache;
use crate::ids::BLOCK_BYTES;
use crate::store::{Listed, StoreError};
use crate::testing::content;

const WRITTEN: u64 = 64 * MIB;
/// What a request of the store takes.
const DELAY: Duration = Duration::from_millis(10);
/// What sealing adds to a chunk.
const TRAILER_BYTES: u64 = 16;

/// A store that takes its time, and counts the gets of segments.
#[derive(Debug)]
struct Slow {
    inner: Memory,
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    requests: u64,
    bytes: u64,
    bytes_under_way: u64,
    most_under_way: u64,
}

impl Slow {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

#[async_trait]
impl Store for Slow {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.inner.put_if_absent(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if !key.contains("/seg/") {
            return self.inner.get_range(key, range).await;
        }
        let bytes = range.end - range.start;
        {
            let mut seen = self.seen();
            seen.requests += 1;
            seen.bytes += bytes;
            seen.bytes_under_way += bytes;
            seen.most_under_way = seen.most_under_way.max(seen.bytes_under_way);
        }
        tokio::time::sleep(DELAY).await;
        self.seen().bytes_under_way -= bytes;
        self.inner.get_range(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
}

fn data(offset: u64, len: u64) -> Bytes {
    let blocks = offset / BLOCK_BYTES..(offset + len) / BLOCK_BYTES;
    blocks.flat_map(|lba| content(lba, 1)).collect::<Vec<u8>>().into()
}

/// A volume full of data that were written in order, with nothing in its cache.
async fn written(cache_bytes: u64) -> (Arc<Slow>, Volume) {
    let mut scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let writer = scene.open(grant).await;
    for at in (0..WRITTEN).step_by(MIB as usize) {
        writer.write(at, data(at, MIB)).await.unwrap();
    }
    writer.close().await.unwrap();
    let slow = Arc::new(Slow { inner: scene.store.clone(), seen: Mutex::default() });
    scene.log.store = Arc::clone(&slow) as Arc<dyn Store>;
    let cache = Arc::new(MemoryCache::new(cache_bytes));
    let options = OpenOptions { cache, ..scene.options(grant, buffer()) };
    let volume = Volume::open(scene.log.clone(), options, deadline()).await.unwrap();
    *slow.seen() = Seen::default();
    (slow, volume)
}

async fn read_all(volume: &Volume, at_once: u64) -> Duration {
    let begun = Instant::now();
    for at in (0..WRITTEN).step_by(at_once as usize) {
        assert_eq!(volume.read(at, at_once).await.unwrap(), data(at, at_once), "at {at}");
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_needs_next_is_got_meanwhile_in_large_requests_and_once() {
    let (slow, volume) = written(128 * MIB).await;
    let reads = WRITTEN / (MIB / 8);
    let waited = read_all(&volume, MIB / 8).await;
    assert!(waited < DELAY * reads as u32 / 10, "{reads} reads took {waited:?}");
    let seen = *slow.seen();
    assert!(seen.requests < reads / 5, "{seen:?}");
    assert!(seen.bytes < WRITTEN + WRITTEN / 100, "{seen:?}");
    assert!(seen.most_under_way <= 33 * MIB, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_through_a_cache_without_room_asks_for_each_chunk_when_it_is_read() {
    let (slow, volume) = written(MIB).await;
    read_all(&volume, MIB / 2).await;
    let seen = *slow.seen();
    assert!(seen.bytes < WRITTEN + WRITTEN / 100, "{seen:?}");
    assert!(seen.most_under_way < MIB, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_random_read_gets_its_chunk_and_nothing_else() {
    let (slow, volume) = written(128 * MIB).await;
    let chunk = 16 * BLOCK_BYTES;
    for round in 0..2 {
        for n in 0..200u64 {
            // 389 is prime to the number of chunks: no chunk is met twice.
            let at = n * 389 % (WRITTEN / chunk) * chunk + n % 16 * BLOCK_BYTES;
            assert_eq!(volume.read(at, BLOCK_BYTES).await.unwrap(), data(at, BLOCK_BYTES), "round {round}");
        }
        let seen = *slow.seen();
        assert_eq!((seen.requests, seen.bytes), (200, 200 * (chunk + TRAILER_BYTES)));
    }
}
