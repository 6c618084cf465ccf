//! What goes and what stays.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::scene::{BLOCKS, Scene, content, deadline};
use crate::codec::{self, Chunks, Codec, Identity};
use crate::gc::{Collector, Rhythm, maintain};
use crate::ids::{BLOCK_BYTES, ObjectId, SnapshotId, VolumeId};
use crate::log::Op;
use crate::pool::layout;
use crate::store::Store;
use crate::volume::Over;

const HOUR_MS: u64 = 3_600_000;

/// Puts a segment that nothing names, written by `writer`.
async fn stray(scene: &Scene, writer: ObjectId) -> String {
    let id = ObjectId::random(&*scene.log.env.entropy);
    let mut chunks = Chunks::new(Codec::Raw, writer);
    assert_eq!(chunks.push(0, 1, &content(0, 99)), 1);
    let identity = Identity { volume: scene.log.volume, id, session: writer };
    let body = codec::encode_segment(identity, &chunks, scene.log.key.as_ref()).bytes;
    let key = layout::segment(scene.log.volume, id);
    scene.store.put_if_absent(&key, body).await.unwrap();
    key
}

#[tokio::test]
async fn what_is_overwritten_goes_and_what_is_named_stays() {
    let mut scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    let mut collector = Collector::new(volume.clone());
    scene.write(&volume, 0..BLOCKS).await;
    volume.flush().await.unwrap();
    let first = scene.segments().await;
    assert!(first.len() > 8);
    collector.round().await.unwrap();
    scene.write(&volume, 0..BLOCKS / 2).await;
    volume.flush().await.unwrap();
    for _ in 0..3 {
        collector.round().await.unwrap();
        scene.check(&volume).await;
    }
    let left = scene.segments().await;
    let old = left.iter().filter(|key| first.contains(key)).count();
    assert!((first.len() / 2 - 1..=first.len() / 2 + 1).contains(&old), "{old} of {} stay", first.len());
    assert!(scene.keys(&layout::roots(scene.log.volume)).await.len() <= 4);
    volume.abandon();
    scene.check_reopened(grant).await;
}

#[tokio::test]
async fn records_go_once_covered_but_not_those_that_end_sessions() {
    let mut scene = Scene::new().await;
    for node in ["a", "b", "c"] {
        let volume = scene.open(scene.grant(node).await).await;
        scene.scatter(&volume, 40, 2).await;
        volume.close().await.unwrap();
        scene.detach(node).await;
    }
    let grant = scene.grant("d").await;
    let volume = scene.open(grant).await;
    let mut collector = Collector::new(volume.clone());
    for _ in 0..4 {
        scene.write(&volume, 0..BLOCKS).await;
        volume.flush().await.unwrap();
        collector.round().await.unwrap();
    }
    let records = scene.keys(&layout::records(scene.log.volume)).await;
    let mut kept = 0;
    for key in &records {
        let number = layout::number_in(key).unwrap();
        let record = scene.log.get(number, deadline()).await.unwrap().unwrap();
        kept += usize::from(record.is_kept());
    }
    // Create; Grant, Open, Close and Revoke of three; Grant and Open of the fourth.
    assert_eq!(kept, 1 + 3 * 4 + 2);
    assert!(records.len() < kept + 20, "{} records are left", records.len());
    volume.abandon();
    scene.check_reopened(grant).await;
}

#[tokio::test]
async fn garbage_stays_for_the_grace_time_of_the_stores_clock() {
    let mut scene = Scene::new().await;
    scene.limits.grace = Duration::from_millis(HOUR_MS);
    // No root but the collector's own: one that named the first data would keep them for another round.
    scene.limits.checkpoint_records = 1000;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..BLOCKS).await;
    volume.flush().await.unwrap();
    let first = scene.segments().await;
    scene.write(&volume, 0..BLOCKS).await;
    volume.flush().await.unwrap();
    let mut collector = Collector::new(volume.clone());
    let present = async || {
        let left = scene.segments().await;
        first.iter().filter(|key| left.contains(key)).count()
    };
    for now_ms in [0, HOUR_MS / 2, HOUR_MS - 1] {
        scene.store.set_time_ms(now_ms);
        assert_eq!(collector.round().await.unwrap().deleted, 0);
        assert_eq!(present().await, first.len());
    }
    scene.store.set_time_ms(HOUR_MS);
    collector.round().await.unwrap();
    assert_eq!(present().await, 0);
}

#[tokio::test]
async fn a_pinned_snapshot_keeps_all_it_reaches_though_deleted() {
    let mut scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    scene.write(&volume, 0..BLOCKS).await;
    scene.scatter(&volume, 64, 2).await;
    let snapshot = volume.snapshot("s", "").await.unwrap();
    let then = scene.model.clone();
    let pin = layout::pin(scene.log.volume, VolumeId([9; 16]), snapshot);
    scene.store.put_if_absent(&pin, "{}".into()).await.unwrap();
    volume.append(vec![Op::DeleteSnapshot { snapshot }], false).await.unwrap();

    let mut collector = Collector::new(volume.clone());
    for _ in 0..4 {
        scene.write(&volume, 0..BLOCKS).await;
        scene.scatter(&volume, 64, 2).await;
        collector.round().await.unwrap();
        scene.check_snapshot(snapshot, &then).await;
    }
    assert!(scene.control().await.snapshots.contains_key(&snapshot));
    let before = scene.stored_bytes().await;

    scene.store.delete(&pin).await.unwrap();
    for _ in 0..4 {
        collector.round().await.unwrap();
    }
    assert!(scene.control().await.snapshots.is_empty());
    assert!(scene.stored_bytes().await + (BLOCKS - 100) * BLOCK_BYTES < before, "its data is still there");
    volume.abandon();
    scene.check_reopened(grant).await;
}

#[tokio::test]
async fn what_is_no_pin_stops_the_forgetting() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..8).await;
    let snapshot: SnapshotId = volume.snapshot("s", "").await.unwrap();
    volume.append(vec![Op::DeleteSnapshot { snapshot }], false).await.unwrap();
    let stray = format!("{}stray", layout::pins(scene.log.volume));
    scene.store.put_if_absent(&stray, "{}".into()).await.unwrap();
    assert!(Collector::new(volume).round().await.is_err());
    assert!(scene.control().await.snapshots.contains_key(&snapshot));
}

#[tokio::test]
async fn what_dead_sessions_left_goes() {
    let mut scene = Scene::new().await;
    let first = scene.open(scene.grant("a").await).await;
    scene.write(&first, 0..32).await;
    first.flush().await.unwrap();
    let left = stray(&scene, first.session()).await;
    first.abandon();
    let volume = scene.take_over("a", "b").await;
    let mut collector = Collector::new(volume.clone());
    collector.round().await.unwrap();
    assert!(scene.segments().await.contains(&left));
    collector.round().await.unwrap();
    assert!(!scene.segments().await.contains(&left));
    assert!(scene.control().await.ended_runs.is_empty(), "a session is no run");
    scene.check(&volume).await;
}

#[tokio::test]
async fn a_run_is_ended_before_its_segments_go_but_not_while_it_goes_on() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..32).await;
    let [dead, going] = [[1; 16], [2; 16]].map(ObjectId);
    let (of_dead, of_going) = (stray(&scene, dead).await, stray(&scene, going).await);
    let mut bulk = volume.bulk(going);
    for lba in 100..200 {
        bulk.write(lba, 1, &content(lba, 1)).await.unwrap();
        scene.model[lba as usize] = 1;
    }
    let mut collector = Collector::new(volume.clone());
    for _ in 0..4 {
        scene.scatter(&volume, 8, 8).await;
        scene.model[100..200].fill(1);
        collector.round().await.unwrap();
    }
    let control = scene.control().await;
    assert!(control.ended_runs.contains(&dead) && !control.ended_runs.contains(&going));
    let left = scene.segments().await;
    assert!(!left.contains(&of_dead) && left.contains(&of_going));
    volume.commit_bulk(bulk, vec![Op::RunCommitted { run: going }]).await.unwrap();
    scene.check(&volume).await;
    for _ in 0..2 {
        collector.round().await.unwrap();
    }
    assert!(!scene.segments().await.contains(&of_going));
    scene.check(&volume).await;
}

#[tokio::test]
async fn a_bulk_write_that_was_given_up_is_garbage() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..32).await;
    volume.flush().await.unwrap();
    let before = scene.segments().await;
    let mut collector = Collector::new(volume.clone());
    {
        let mut bulk = volume.bulk(volume.session());
        for lba in 0..200 {
            bulk.write(lba, 1, &content(lba, 7)).await.unwrap();
        }
        collector.round().await.unwrap();
        collector.round().await.unwrap();
        assert!(scene.segments().await.len() > before.len());
    }
    collector.round().await.unwrap();
    collector.round().await.unwrap();
    assert_eq!(scene.segments().await, before);
    scene.check(&volume).await;
}

#[tokio::test]
async fn a_root_that_a_dead_session_puts_late_is_harmless() {
    let mut scene = Scene::new().await;
    let first = scene.open(scene.grant("a").await).await;
    scene.write(&first, 0..BLOCKS).await;
    scene.scatter(&first, 20, 1).await;
    first.append(vec![Op::Noop], true).await.unwrap();
    let root = scene.log.newest_root(deadline()).await.unwrap().unwrap();
    let key = layout::root(scene.log.volume, root);
    let late = scene.store.get(&key).await.unwrap();
    first.abandon();
    // As if the put were still on its way, with all earlier roots.
    for key in scene.keys(&layout::roots(scene.log.volume)).await {
        scene.store.delete(&key).await.unwrap();
    }
    scene.detach("a").await;
    let grant = scene.grant("b").await;
    let volume = scene.open(grant).await;
    let mut collector = Collector::new(volume.clone());
    for _ in 0..3 {
        scene.write(&volume, 0..BLOCKS).await;
        volume.flush().await.unwrap();
        collector.round().await.unwrap();
    }
    scene.store.put_if_absent(&key, late).await.unwrap();
    for _ in 0..2 {
        collector.round().await.unwrap();
        scene.check(&volume).await;
    }
    assert!(!scene.keys(&layout::roots(scene.log.volume)).await.contains(&key));
    volume.abandon();
    scene.check_reopened(grant).await;
}

#[tokio::test]
async fn fences_of_revoked_grants_go() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..4).await;
    volume.flush().await.unwrap();
    let volume = scene.take_over("a", "b").await;
    assert_eq!(scene.keys(&layout::fences(scene.log.volume)).await.len(), 1);
    let mut collector = Collector::new(volume.clone());
    collector.round().await.unwrap();
    collector.round().await.unwrap();
    assert!(scene.keys(&layout::fences(scene.log.volume)).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_round_waits_for_its_turn() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    let turns = Arc::new(Semaphore::new(1));
    let turn = turns.acquire().await.unwrap();
    let rhythm = Rhythm { bytes: 1 << 20, records: 1000 };
    let task = tokio::spawn(maintain(volume.clone(), rhythm, Arc::clone(&turns)));
    for _ in 0..4 {
        scene.write(&volume, 0..BLOCKS).await;
        volume.flush().await.unwrap();
    }
    // Time goes on when nobody has anything to do.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let live = BLOCKS * BLOCK_BYTES;
    assert!(scene.stored_bytes().await > live * 3, "another volume's round is not over");
    drop(turn);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(scene.stored_bytes().await < live * 3 / 2);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_makes_no_requests_once_its_garbage_is_gone() {
    let mut scene = Scene::new().await;
    let gate = super::scene::Gate::new(&scene.store, usize::MAX, "");
    let volume = scene.open_through(gate.clone() as Arc<dyn Store>, scene.grant("a").await).await;
    let rhythm = Rhythm { bytes: 1 << 20, records: 1000 };
    let task = tokio::spawn(maintain(volume.clone(), rhythm, Arc::new(Semaphore::new(1))));
    for _ in 0..4 {
        scene.write(&volume, 0..BLOCKS).await;
        volume.flush().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let calls = gate.calls();
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(gate.calls(), calls);
    let live = BLOCKS * BLOCK_BYTES;
    assert!(scene.stored_bytes().await < live * 3 / 2);
    volume.close().await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
    assert!(matches!(ended, crate::volume::VolumeError::Over { reason: Over::Closed, .. }));
}
