//! How much a replay would have to read.

use tokio::sync::mpsc;

use super::faults::{Kind, Trouble};
use super::*;
use crate::map::{Extent, Location, SegmentKind, SegmentRef};
use crate::pool::layout;

/// Map entries of one append, none next to another.
const ENTRIES: u64 = 1000;
const APPENDS: u64 = 64;
/// Bytes in memory that the entries of some ten appends take.
const BOUND: usize = 512 << 10;

fn entries(volume: VolumeId, append: u64) -> Vec<Extent> {
    let segment = SegmentRef {
        volume,
        birth: RecordNumber(append + 1),
        id: ObjectId([append as u8; 16]),
        kind: SegmentKind::Object,
    };
    let location = Location {
        segment,
        stored_offset: 72,
        stored_len: 4104,
        codec: Codec::Raw,
        chunk_blocks: 1,
        chunk_offset: 0,
    };
    let lba = |n: u64| 2 * (n * APPENDS + append);
    (0..ENTRIES).map(|n| Extent { lba: lba(n), blocks: 1, location: Some(location) }).collect()
}

/// A volume whose checkpoints meet trouble, to which something appends on and on and tells of each append.
async fn appending(kind: Kind) -> (Scene, GrantId, Arc<Trouble>, mpsc::UnboundedReceiver<u64>, Volume) {
    let mut scene = Scene::new().await;
    let roots = layout::roots(scene.log.volume);
    let trouble = Trouble::new(&mut scene, kind, roots);
    let grant = scene.grant("a").await;
    let mut options = scene.options(grant, buffer());
    options.limits = Limits { replay_map_bytes: BOUND, ..options.limits };
    let volume = Volume::open(scene.log.clone(), options, deadline()).await.unwrap();
    trouble.on.send_replace(true);
    let (tell, told) = mpsc::unbounded_channel();
    let appender = volume.clone();
    tokio::spawn(async move {
        for append in 0..APPENDS {
            let ops = vec![Op::Write { extents: entries(appender.id(), append) }];
            appender.append(ops, false).await.unwrap();
            tell.send(append).unwrap();
        }
    });
    (scene, grant, trouble, told, volume)
}

fn count(told: &mut mpsc::UnboundedReceiver<u64>) -> u64 {
    std::iter::from_fn(|| told.try_recv().ok()).count() as u64
}

#[tokio::test(start_paused = true)]
async fn appends_wait_for_a_checkpoint_while_a_replay_would_take_long() {
    let (scene, grant, trouble, mut told, volume) = appending(Kind::HoldPuts).await;
    trouble.was_met().await;
    // Time passes only when nothing else can happen.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = count(&mut told);
    assert!((4..APPENDS / 2).contains(&before), "{before} appends");
    trouble.on.send_replace(false);
    for _ in before..APPENDS {
        told.recv().await.unwrap();
    }
    volume.abandon();
    let again = scene.open(grant).await;
    let found = again.frozen().unwrap().lookup(0..2 * ENTRIES * APPENDS).await.unwrap();
    let found = found.iter().filter(|extent| extent.location.is_some()).count() as u64;
    assert_eq!(found, ENTRIES * APPENDS);
}

#[tokio::test(start_paused = true)]
async fn appends_go_on_after_a_checkpoint_that_failed() {
    let (_scene, _grant, trouble, mut told, _volume) = appending(Kind::Refuse).await;
    trouble.was_met().await;
    for _ in 0..APPENDS {
        let waited = tokio::time::timeout(Duration::from_secs(3600), told.recv()).await;
        assert!(waited.unwrap().is_some());
    }
}
