//! Random histories, with collection, discards, snapshots and new sessions: whatever of the maps is lost, a rebuilt
//! volume has the newest version of every block that was written last, and of a block that was discarded last zeros or
//! a version that it once had.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::MapSource;
use super::scene::{BLOCKS, Scene, content, write};
use crate::gc::Collector;
use crate::ids::{BLOCK_BYTES, RecordNumber, VolumeId};
use crate::pool::layout;
use crate::volume::Volume;

/// Few enough that histories overwrite themselves.
const USED: u64 = 160;

#[derive(Debug, Clone)]
enum Step {
    Write {
        lba: u64,
        blocks: u64,
    },
    Discard {
        lba: u64,
        blocks: u64,
    },
    Checkpoint,
    Snapshot,
    Collect,
    /// Closes the volume and opens it anew, in a new session.
    Reopen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Nothing,
    NewestRoot,
    Roots,
    Maps,
    RootsAndMaps,
    FirstRecordRootsAndMaps,
    Page(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0..USED, 1..40u64).prop_map(|(lba, blocks)| (lba, blocks.min(USED - lba)));
    let step = prop_oneof![
        6 => range.clone().prop_map(|(lba, blocks)| Step::Write { lba, blocks }),
        2 => range.prop_map(|(lba, blocks)| Step::Discard { lba, blocks }),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Snapshot),
        2 => Just(Step::Collect),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

fn losses() -> impl Strategy<Value = Loss> {
    prop_oneof![
        Just(Loss::Nothing),
        Just(Loss::NewestRoot),
        Just(Loss::Roots),
        Just(Loss::Maps),
        Just(Loss::RootsAndMaps),
        Just(Loss::FirstRecordRootsAndMaps),
        (0..8usize).prop_map(Loss::Page),
    ]
}

/// What was written to each block: the version that it has, and those it had.
struct Model {
    now: Vec<u64>,
    had: Vec<BTreeSet<u64>>,
    version: u64,
}

async fn carry_out(scene: &mut Scene, id: VolumeId, steps: &[Step]) -> Model {
    let mut model =
        Model { now: vec![0; USED as usize], had: vec![BTreeSet::new(); USED as usize], version: 0 };
    let mut volume: Volume = scene.open(id).await;
    let mut collector = Collector::new(volume.clone());
    for (at, step) in steps.iter().enumerate() {
        scene.store.set_time_ms(1000 * at as u64);
        match step {
            Step::Write { lba, blocks } => {
                model.version += 1;
                write(&volume, *lba..lba + blocks, model.version).await;
                for block in *lba..lba + blocks {
                    model.now[block as usize] = model.version;
                    model.had[block as usize].insert(model.version);
                }
            }
            Step::Discard { lba, blocks } => {
                volume.discard(lba * BLOCK_BYTES, blocks * BLOCK_BYTES).await.unwrap();
                volume.flush().await.unwrap();
                model.now[*lba as usize..(lba + blocks) as usize].fill(0);
            }
            Step::Checkpoint => {
                volume.append(Vec::new(), true).await.unwrap();
            }
            Step::Snapshot => {
                volume.snapshot(&format!("at-{at}"), "").await.unwrap();
            }
            Step::Collect => {
                collector.round().await.unwrap();
            }
            Step::Reopen => {
                scene.detach(&volume).await;
                volume = scene.open(id).await;
                collector = Collector::new(volume.clone());
            }
        }
    }
    volume.abandon();
    model
}

async fn lose(scene: &Scene, id: VolumeId, loss: Loss) {
    if matches!(loss, Loss::Roots | Loss::RootsAndMaps | Loss::FirstRecordRootsAndMaps) {
        scene.delete_all(&layout::roots(id)).await;
    }
    if matches!(loss, Loss::Maps | Loss::RootsAndMaps | Loss::FirstRecordRootsAndMaps) {
        scene.delete_all(&layout::maps(id)).await;
    }
    match loss {
        Loss::FirstRecordRootsAndMaps => scene.delete(&layout::record(id, RecordNumber(1))).await,
        Loss::NewestRoot => {
            if let Some(root) = scene.keys(&layout::roots(id)).await.pop() {
                scene.flip(&root, 150).await;
            }
        }
        Loss::Page(which) => {
            let pages = scene.keys(&layout::maps(id)).await;
            if !pages.is_empty() {
                scene.delete(&pages[which % pages.len()]).await;
            }
        }
        Loss::Nothing | Loss::Roots | Loss::Maps | Loss::RootsAndMaps => {}
    }
}

async fn check(steps: Vec<Step>, loss: Loss, encrypted: bool) -> Result<(), TestCaseError> {
    let mut scene = Scene::new(encrypted).await;
    scene.limits.checkpoint_records = 4;
    let id = scene.create("data", None).await;
    let model = carry_out(&mut scene, id, &steps).await;
    lose(&scene, id, loss).await;
    scene.forget();
    let rebuilt = scene.host.rebuild(&scene.pool, id, "rebuilt", &|_| {}).await.unwrap();
    prop_assert!(rebuilt.lost.is_empty(), "{:?}", rebuilt);
    prop_assert_eq!(rebuilt.size_bytes, BLOCKS * BLOCK_BYTES);
    let exact = matches!(rebuilt.map, MapSource::Replayed { .. });
    prop_assert!(exact || loss != Loss::Nothing);
    let volume = scene.open(rebuilt.handle.volume).await;
    let read = volume.read(0, USED * BLOCK_BYTES).await.unwrap();
    for (lba, block) in read.chunks(BLOCK_BYTES as usize).enumerate() {
        let is = |version: u64| block == &content(lba as u64, version)[..];
        let now = model.now[lba];
        let may_be_old = now == 0 && !exact && model.had[lba].iter().any(|version| is(*version));
        prop_assert!(is(now) || may_be_old, "block {} should have version {}: {:?}", lba, now, rebuilt);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_newest_version_of_every_block_comes_back(
        steps in steps(),
        loss in losses(),
        encrypted in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(steps, loss, encrypted))?;
    }
}
