//! Databases that flush after every block: thousands of records with a little data each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::gc::{Rhythm, maintain};
use holdfast_engine::ids::BLOCK_BYTES;
use holdfast_engine::log::Op;
use tokio::sync::Semaphore;

use crate::model::{Model, Pattern, check};
use crate::volume::Site;

const BLOCKS: u64 = 4096;
const FLUSHES: usize = 12_000;
/// After so many flushes nothing grows any more.
const STEADY: usize = 4_000;
/// After so many there is a snapshot, of which two are held.
const SNAPSHOT: usize = 1_500;

/// Records are gathered into segments and deleted, so that there are never more objects, and never more to read for
/// who opens the volume, than at the beginning.
#[tokio::test(start_paused = true)]
async fn neither_objects_nor_opening_grow_with_the_number_of_flushes() {
    let site = Site::new(BLOCKS, 1 << 20).await;
    let grant = site.grant().await;
    let volume = site.open(grant).await;
    let rhythm = Rhythm { bytes: 1 << 20, records: 1000 };
    let collecting = tokio::spawn(maintain(volume.clone(), rhythm, Arc::new(Semaphore::new(1))));
    let mut model = Model::new(Pattern::Skewed, BLOCKS);
    let mut snapshots = VecDeque::new();
    let mut objects = 0;
    for n in 1..=FLUSHES {
        let lba = model.choose();
        let data = model.write(lba);
        volume.write(lba * BLOCK_BYTES, data).await.unwrap();
        volume.flush().await.unwrap();
        if n % SNAPSHOT == 0 {
            snapshots.push_back((volume.snapshot(&format!("s{n}"), "").await.unwrap(), model.head.clone()));
            if snapshots.len() > 2 {
                let (snapshot, _) = snapshots.pop_front().unwrap();
                volume.append(vec![Op::DeleteSnapshot { snapshot }], false).await.unwrap();
            }
        }
        if n % 100 == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            objects = objects.max(site.store.objects().await.len());
        }
        if n == STEADY {
            println!("{objects} objects after {STEADY} flushes");
            assert!(objects < STEADY);
            objects = 0;
        }
    }
    println!("{objects} objects at most after that");
    assert!(objects < 3_000, "{objects} objects");

    collecting.abort();
    volume.abandon();
    let before = site.store.requests();
    let again = site.open(grant).await;
    let requests = site.store.requests() - before;
    println!("{requests} requests to open the volume again");
    assert!(requests < 700, "{requests} requests to open");
    check(&again.read(0, BLOCKS * BLOCK_BYTES).await.unwrap(), &model.head);
    for (id, versions) in &snapshots {
        site.check_snapshot(*id, versions).await;
    }
}
