use std::os::unix::fs::{FileExt, symlink};

use super::*;
use crate::ids::ObjectId;

const CAPACITY: u64 = 4 << 20;

fn key(number: u32) -> ChunkKey {
    ChunkKey { segment: ObjectId([9; 16]), stored_offset: number }
}

/// A chunk of 32 KiB that no other has.
fn chunk(number: u32) -> Bytes {
    number.to_le_bytes().repeat(8 << 10).into()
}

async fn fill(cache: &DiskCache, numbers: std::ops::Range<u32>) {
    for number in numbers {
        cache.insert(key(number), chunk(number));
        if number.is_multiple_of(32) {
            cache.drained().await;
        }
    }
    cache.drained().await;
}

async fn held(cache: &DiskCache, numbers: std::ops::Range<u32>) -> Vec<u32> {
    let mut held = Vec::new();
    for number in numbers {
        if let Some(found) = cache.get(key(number)).await {
            assert_eq!(found, chunk(number));
            held.push(number);
        }
    }
    held
}

fn bytes_on_disk(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[tokio::test(start_paused = true)]
async fn chunks_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    fill(&cache, 0..50).await;
    assert_eq!(held(&cache, 0..50).await.len(), 50);
    drop(cache);
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    assert_eq!(held(&cache, 0..50).await.len(), 50);
    assert_eq!((cache.stats().entries, cache.stats().bytes, cache.stats().hits), (50, 50 * (32 << 10), 50));
}

#[tokio::test(start_paused = true)]
async fn a_full_cache_stays_within_its_capacity_and_keeps_the_newest_and_the_used() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    fill(&cache, 0..100).await;
    for number in 100..1000 {
        assert_eq!(held(&cache, 3..4).await, [3], "the chunk in use was thrown out before {number}");
        fill(&cache, number..number + 1).await;
    }
    let stats = cache.stats();
    assert!(bytes_on_disk(dir.path()) <= CAPACITY + (512 << 10), "{} bytes", bytes_on_disk(dir.path()));
    assert!(stats.bytes <= CAPACITY && stats.bytes > CAPACITY / 2, "{stats:?}");
    assert_eq!(held(&cache, 950..1000).await.len(), 50);
    assert_eq!(held(&cache, 4..100).await, [0u32; 0]);
    assert_eq!(stats.insertions - stats.evictions, stats.entries);
    drop(cache);
    let smaller = DiskCache::open(dir.path(), CAPACITY / 4).unwrap();
    fill(&smaller, 1000..1020).await;
    assert!(bytes_on_disk(dir.path()) <= CAPACITY / 4 + (512 << 10));
}

#[tokio::test(start_paused = true)]
async fn a_cache_full_of_used_chunks_still_takes_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    for round in 0..20 {
        fill(&cache, round * 100..(round + 1) * 100).await;
        held(&cache, 0..(round + 1) * 100).await;
    }
    assert_eq!(held(&cache, 1990..2000).await.len(), 10);
    assert!(bytes_on_disk(dir.path()) <= CAPACITY + (512 << 10));
}

#[tokio::test(start_paused = true)]
async fn damage_on_the_disk_is_a_miss_that_the_next_insert_mends() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    fill(&cache, 0..4).await;
    let file = File::options().write(true).open(dir.path().join(format!("{:020}.chunks", 0))).unwrap();
    file.write_all_at(b"damage", (32 << 10) + 77).unwrap();
    assert_eq!(held(&cache, 0..4).await, [0, 2, 3]);
    assert_eq!(cache.stats().errors, 1);
    fill(&cache, 1..2).await;
    assert_eq!(held(&cache, 0..4).await, [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_torn_shelf_yields_its_whole_entries() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    fill(&cache, 0..4).await;
    drop(cache);
    let rows = dir.path().join(format!("{:020}.rows", 0));
    let whole = std::fs::read(&rows).unwrap();
    for (bytes, entries) in [(whole.len() - 1, 3), (8 + 36, 1), (20, 0), (5, 0)] {
        std::fs::write(&rows, &whole[..bytes]).unwrap();
        let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
        assert_eq!(held(&cache, 0..4).await, (0..entries).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_truncated_file_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    fill(&cache, 0..2).await;
    let file = File::options().write(true).open(dir.path().join(format!("{:020}.chunks", 0))).unwrap();
    file.set_len(40 << 10).unwrap();
    assert_eq!(cache.get(key(1)).await, None);
    assert_eq!(cache.get(key(0)).await, None, "a failure leaves the next request out");
    assert_eq!(held(&cache, 0..2).await, [0]);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_a_miss_until_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    // The first shelf's chunks go where every write finds the disk full.
    symlink("/dev/full", dir.path().join(format!("{:020}.chunks", 0))).unwrap();
    fill(&cache, 0..1).await;
    let stats = cache.stats();
    assert_eq!((stats.errors, stats.rejections, stats.insertions, stats.entries), (1, 1, 0, 0));
    assert_eq!(held(&cache, 0..1).await, [0u32; 0]);
    fill(&cache, 1..2).await;
    assert_eq!(cache.stats().rejections, 2, "a failure leaves the next request out");
    fill(&cache, 2..4).await;
    assert_eq!(held(&cache, 0..4).await, [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_takes_no_files_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    for number in 0..100 {
        fill(&cache, number..number + 1).await;
    }
    assert_eq!(held(&cache, 0..100).await, [0u32; 0]);
    let stats = cache.stats();
    assert_eq!((stats.insertions, stats.rejections), (0, 100));
    assert!(stats.errors < 10, "{} errors: the disk is not left alone", stats.errors);
}

#[tokio::test(start_paused = true)]
async fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(dir.path(), CAPACITY).unwrap();
    assert!(matches!(DiskCache::open(dir.path(), CAPACITY), Err(CacheError::InUse { .. })));
    drop(cache);
    assert!(DiskCache::open(dir.path(), CAPACITY).is_ok());
}
