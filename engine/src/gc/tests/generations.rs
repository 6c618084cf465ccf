//! Snapshots whose maps are rewritten, so that room is given back while they are held.

use std::sync::Arc;

use super::scene::{BLOCKS, Gate, Scene, deadline};
use crate::gc::Collector;
use crate::ids::{BLOCK_BYTES, SnapshotId, VolumeId};
use crate::log::Snapshot;
use crate::map::MapView;
use crate::pool::layout;
use crate::snapshot;
use crate::store::Store;
use crate::volume::{BlockReader, Blocks, Fetcher, Volume};

/// A snapshot that needs little of many segments.
struct Held {
    scene: Scene,
    volume: Volume,
    id: SnapshotId,
    /// What it holds.
    then: Vec<u64>,
}

impl Held {
    async fn new() -> Self {
        let scene = Scene::new().await;
        let store: Arc<dyn Store> = Arc::new(scene.store.clone());
        Self::through(scene, store).await
    }

    async fn through(mut scene: Scene, store: Arc<dyn Store>) -> Self {
        let volume = scene.open_through(store, scene.grant("a").await).await;
        scene.write(&volume, 0..BLOCKS).await;
        volume.flush().await.unwrap();
        for lba in (0..BLOCKS).step_by(4) {
            scene.write(&volume, lba..lba + 3).await;
        }
        let id = volume.snapshot("held", "").await.unwrap();
        let then = scene.model.clone();
        scene.write(&volume, 0..BLOCKS).await;
        volume.flush().await.unwrap();
        Self { scene, volume, id, then }
    }

    async fn state(&self) -> Snapshot {
        self.scene.control().await.snapshots[&self.id].clone()
    }

    async fn check(&self, volume: &Volume) {
        self.scene.check(volume).await;
        self.scene.check_snapshot(self.id, &self.then).await;
    }

    async fn pin(&self) -> String {
        let pin = layout::pin(self.scene.log.volume, VolumeId([9; 16]), self.id);
        self.scene.store.put_if_absent(&pin, "{}".into()).await.unwrap();
        pin
    }

    /// Reads the snapshot as whoever looked its map up before.
    async fn old_reader(&self) -> BlockReader {
        let options = self.scene.options(Arc::new(self.scene.store.clone()), crate::ids::ObjectId::NONE);
        let state = snapshot::find(&self.scene.log, self.id, deadline()).await.unwrap();
        let view = MapView::from_stored(options.pages, &state.map.map);
        let fetcher = Fetcher::new(options.lineage, options.cache, self.scene.log.env.clone());
        BlockReader::new(self.scene.log.volume, Blocks::Moment(view), fetcher)
    }

    async fn rounds(&self, collector: &mut Collector, rounds: usize) {
        for _ in 0..rounds {
            collector.round().await.unwrap();
        }
    }
}

async fn read(reader: &BlockReader) -> Option<Vec<u8>> {
    let mut read = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
    reader.read(0, BLOCKS, &mut read).await.ok().map(|()| read)
}

fn expected(versions: &[u64]) -> Vec<u8> {
    let blocks = versions.iter().enumerate();
    blocks.flat_map(|(lba, version)| super::scene::content(lba as u64, *version)).collect()
}

#[tokio::test]
async fn room_is_given_back_under_a_held_snapshot() {
    let held = Held::new().await;
    let needed = 2 * BLOCKS * BLOCK_BYTES;
    assert!(held.scene.stored_bytes().await > needed * 5 / 4);
    let mut collector = Collector::new(held.volume.clone());
    held.rounds(&mut collector, 5).await;
    let stored = held.scene.stored_bytes().await;
    assert!(stored <= needed * 5 / 4, "{stored} bytes are stored for {needed}");
    assert!(held.state().await.generation > 0);
    held.check(&held.volume).await;
    held.volume.abandon();
    let again = held.scene.take_over("a", "b").await;
    held.check(&again).await;
}

#[tokio::test]
async fn what_a_pinned_snapshot_names_stays_where_it_is() {
    let held = Held::new().await;
    let pin = held.pin().await;
    let (before, reader) = (held.state().await, held.old_reader().await);
    let mut collector = Collector::new(held.volume.clone());
    held.rounds(&mut collector, 5).await;
    assert_eq!(held.state().await, before);
    assert_eq!(read(&reader).await.unwrap(), expected(&held.then));
    held.scene.store.delete(&pin).await.unwrap();
    held.rounds(&mut collector, 5).await;
    assert!(held.state().await.generation > 0);
    held.check(&held.volume).await;
}

#[tokio::test]
async fn a_pin_from_before_the_switch_keeps_the_old_generation() {
    let mut held = Held::new().await;
    let (old, reader) = (held.state().await, held.old_reader().await);
    let mut collector = Collector::new(held.volume.clone());
    while held.state().await.generation == 0 {
        collector.round().await.unwrap();
    }
    // Put after that round had listed the pins, by a cloner who saw the old generation.
    let pin = held.pin().await;
    held.rounds(&mut collector, 3).await;
    held.volume.abandon();
    // Also for a session that knows nothing of the switch.
    let volume = held.scene.take_over("a", "b").await;
    let mut collector = Collector::new(volume.clone());
    for _ in 0..4 {
        held.scene.write(&volume, 0..BLOCKS / 2).await;
        collector.round().await.unwrap();
    }
    assert_eq!(read(&reader).await.unwrap(), expected(&held.then));
    held.check(&volume).await;

    held.scene.store.delete(&pin).await.unwrap();
    held.rounds(&mut collector, 3).await;
    let maps = held.scene.keys(&layout::maps(held.scene.log.volume)).await;
    assert!(!maps.contains(&layout::map(held.scene.log.volume, old.map.unwrap())));
    held.check(&volume).await;
}

#[tokio::test]
async fn who_reads_an_old_generation_goes_on_in_the_present_one() {
    let held = Held::new().await;
    let old = held.old_reader().await;
    let options = held.scene.options(Arc::new(held.scene.store.clone()), crate::ids::ObjectId::NONE);
    let (pages, lineage, cache) = (options.pages, options.lineage, options.cache);
    let reader = snapshot::reader(&held.scene.log, held.id, pages, lineage, cache, deadline()).await.unwrap();
    let mut collector = Collector::new(held.volume.clone());
    held.rounds(&mut collector, 5).await;
    assert!(read(&old).await.is_none(), "the old generation is still there");
    assert_eq!(read(&reader).await.unwrap(), expected(&held.then));
}

#[tokio::test]
async fn a_collector_that_dies_anywhere_leaves_the_snapshot_whole() {
    let begun = async |stop_at: usize| {
        let scene = Scene::new().await;
        let gate = Gate::new(&scene.store, stop_at, "");
        let held = Held::through(scene, gate.clone()).await;
        (held, gate)
    };
    let (held, gate) = begun(usize::MAX).await;
    let begin = gate.calls();
    let mut collector = Collector::new(held.volume.clone());
    while held.state().await.generation == 0 {
        collector.round().await.unwrap();
    }
    held.rounds(&mut collector, 2).await;
    let end = gate.calls();
    assert!(end - begin > 100, "{} calls", end - begin);
    for stop_at in (begin..end).step_by(7) {
        let (held, gate) = begun(stop_at).await;
        let mut collector = Collector::new(held.volume.clone());
        let rounds = tokio::spawn(async move {
            for _ in 0..6 {
                if collector.round().await.is_err() {
                    break;
                }
            }
        });
        gate.arrived.notified().await;
        let volume = held.scene.take_over("a", "b").await;
        held.check(&volume).await;
        gate.go.notify_one();
        rounds.await.unwrap();
        held.check(&volume).await;
        let mut collector = Collector::new(volume.clone());
        held.rounds(&mut collector, 4).await;
        held.check(&volume).await;
    }
}
