//! Writing more than a segment: what is put, and when.

use tokio::task::JoinHandle;

use super::faults::{Kind, Trouble};
use super::*;
use crate::pool::layout;
use crate::testing::content;

/// As many as a segment surely holds when nothing compresses.
const SEGMENT_BLOCKS: u64 = 3000;

/// Visits each block of the volume once, in no order.
fn scattered(number: u64) -> u64 {
    number * 7919 % (SIZE / BLOCK_BYTES) * BLOCK_BYTES
}

async fn write_scattered(volume: &Volume, numbers: std::ops::Range<u64>) {
    for number in numbers {
        volume.write(scattered(number), content(number, 1).into()).await.unwrap();
    }
}

async fn check_scattered(volume: &Volume, blocks: u64) {
    for number in 0..blocks {
        let read = volume.read(scattered(number), BLOCK_BYTES).await.unwrap();
        assert!(read == content(number, 1), "block {number}");
    }
}

fn flush_meanwhile(volume: &Volume) -> JoinHandle<Result<(), VolumeError>> {
    let volume = volume.clone();
    tokio::spawn(async move { volume.flush().await })
}

#[tokio::test(start_paused = true)]
async fn scattered_writes_are_little_more_puts_than_segments() {
    let scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let options = OpenOptions { limits: Limits::default(), ..scene.options(grant, buffer()) };
    let volume = Volume::open(scene.log.clone(), options, deadline()).await.unwrap();
    let before = scene.keys("").await.len();
    let blocks = 5 * SEGMENT_BLOCKS;
    write_scattered(&volume, 0..blocks).await;
    volume.flush().await.unwrap();
    let puts = scene.keys("").await.len() - before;
    // Five segments, and a record for every three that the buffer holds.
    assert!(puts <= 7, "{puts} puts");
    volume.abandon();
    check_scattered(&scene.open(grant).await, blocks).await;
}

#[tokio::test(start_paused = true)]
async fn segments_land_while_a_record_is_on_its_way() {
    let mut scene = Scene::new().await;
    let prefix = layout::records(scene.log.volume);
    let trouble = Trouble::new(&mut scene, Kind::HoldPuts, prefix);
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    write_scattered(&volume, 0..1).await;
    trouble.on.send_replace(true);
    let flush = flush_meanwhile(&volume);
    trouble.was_met().await;
    let blocks = 3 * SEGMENT_BLOCKS;
    write_scattered(&volume, 1..blocks).await;
    let segments = layout::segments(scene.log.volume);
    // Time passes only when nothing else can happen.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.keys(&segments).await.len(), 2, "full segments wait for nothing");
    assert!(!flush.is_finished());
    trouble.on.send_replace(false);
    flush.await.unwrap().unwrap();
    volume.flush().await.unwrap();
    volume.abandon();
    check_scattered(&scene.open(grant).await, blocks).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_all_segments_before_its_record() {
    let mut scene = Scene::new().await;
    let prefix = layout::segments(scene.log.volume);
    let trouble = Trouble::new(&mut scene, Kind::HoldPuts, prefix);
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    trouble.on.send_replace(true);
    write_scattered(&volume, 0..SEGMENT_BLOCKS + 100).await;
    let records = scene.keys(&layout::records(scene.log.volume)).await.len();
    let flush = flush_meanwhile(&volume);
    trouble.was_met().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!flush.is_finished());
    assert_eq!(scene.keys(&layout::records(scene.log.volume)).await.len(), records);
    trouble.on.send_replace(false);
    flush.await.unwrap().unwrap();
    volume.abandon();
    check_scattered(&scene.open(grant).await, SEGMENT_BLOCKS + 100).await;
}
