//! Openers, readers and collectors at once, at every store call.

use std::sync::Arc;

use super::scene::{BLOCKS, Gate, Scene, deadline, host};
use super::source::Source;
use crate::control::ControlError;
use crate::gc::Collector;
use crate::host::Host;
use crate::ids::BLOCK_BYTES;
use crate::pool::{Pool, layout};
use crate::store::Store;

/// A volume with garbage that a first round has found, and its collector, whose calls pass a gate.
async fn prepared(stop_at: usize) -> (Scene, Arc<Gate>, Collector) {
    let mut scene = Scene::new().await;
    // Calls count from here on.
    let idle = Gate::new(&scene.store, usize::MAX, "");
    let volume = scene.open_through(idle.clone(), scene.grant("a").await).await;
    let mut collector = Collector::new(volume.clone());
    for _ in 0..2 {
        scene.write(&volume, 0..64).await;
        scene.scatter(&volume, 12, 3).await;
        scene.write(&volume, 0..64).await;
        volume.flush().await.unwrap();
        collector.round().await.unwrap();
    }
    volume.close().await.unwrap();
    // The same again in a session behind the gate.
    let gate = Gate::new(&scene.store, stop_at, "");
    let grant = scene.grant("a").await;
    let volume = scene.open_through(gate.clone(), grant).await;
    let mut collector = Collector::new(volume.clone());
    scene.write(&volume, 0..48).await;
    volume.flush().await.unwrap();
    collector.round().await.unwrap();
    scene.write(&volume, 0..24).await;
    volume.flush().await.unwrap();
    (scene, gate, collector)
}

#[tokio::test(start_paused = true)]
async fn an_opener_finds_everything_wherever_the_collector_stands() {
    // Where the last round begins and ends.
    let (_, gate, mut collector) = prepared(usize::MAX).await;
    let begin = gate.calls();
    let round = collector.round().await.unwrap();
    assert!(round.deleted > 10, "{round:?}");
    let end = gate.calls();
    assert!(end - begin > 30);
    for stop_at in begin..end {
        let (mut scene, gate, mut collector) = prepared(stop_at).await;
        let round = tokio::spawn(async move { collector.round().await.map(|_| ()) });
        gate.arrived.notified().await;
        // The collector is somewhere in its round, and stays there while the volume moves on.
        let volume = scene.take_over("a", "b").await;
        scene.check(&volume).await;
        scene.write(&volume, 10..40).await;
        volume.flush().await.unwrap();
        gate.go.notify_one();
        let _ = round.await.unwrap();
        scene.check(&volume).await;
        volume.abandon();
        let again = scene.take_over("b", "c").await;
        scene.check(&again).await;
        let mut collector = Collector::new(again.clone());
        for _ in 0..2 {
            collector.round().await.unwrap();
            scene.check(&again).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_whose_segment_is_collected_meanwhile_resolves_again() {
    let mut scene = Scene::new().await;
    let gate = Gate::new(&scene.store, usize::MAX, "");
    let grant = scene.grant("a").await;
    let volume = scene.open_through(gate, grant).await;
    scene.write(&volume, 224..256).await;
    volume.flush().await.unwrap();
    // A reader of the same session whose gets are slow.
    let slow = Gate::new(&scene.store, 0, "/seg/");
    let options = scene.options(slow.clone() as Arc<dyn Store>, grant);
    let fetcher = crate::volume::Fetcher::new(options.lineage, options.cache, scene.log.env.clone());
    let reader = crate::volume::BlockReader::new(scene.log.volume, volume.reader().blocks().clone(), fetcher);
    let read = tokio::spawn(async move {
        let mut out = vec![0; 4 * BLOCK_BYTES as usize];
        reader.read(250, 254, &mut out).await.map(|()| out)
    });
    slow.arrived.notified().await;
    // Its segment is rewritten and collected before its get.
    let before = scene.segments().await;
    scene.write(&volume, 224..250).await;
    volume.flush().await.unwrap();
    let mut collector = Collector::new(volume.clone());
    for _ in 0..5 {
        collector.round().await.unwrap();
    }
    let left = scene.segments().await;
    assert!(!before.iter().any(|key| left.contains(key)), "the first segments are still there");
    slow.go.notify_one();
    let out = read.await.unwrap().unwrap();
    let expected: Vec<u8> =
        (250..254).flat_map(|lba| super::scene::content(lba, scene.model[lba as usize])).collect();
    assert_eq!(out, expected);
}

#[tokio::test(start_paused = true)]
async fn writes_snapshots_and_rounds_at_once_lose_nothing() {
    let mut scene = Scene::new().await;
    let grant = scene.grant("a").await;
    let volume = scene.open(grant).await;
    let mut collector = Collector::new(volume.clone());
    let rounds = tokio::spawn(async move {
        for _ in 0..12 {
            collector.round().await.unwrap();
        }
    });
    let mut snapshots = Vec::new();
    for n in 0..6u64 {
        scene.write(&volume, n * 100..n * 100 + 300).await;
        scene.scatter(&volume, 20, 4).await;
        let id = volume.snapshot(&format!("s{n}"), "").await.unwrap();
        snapshots.push((id, scene.model.clone()));
        tokio::task::yield_now().await;
    }
    rounds.await.unwrap();
    scene.check(&volume).await;
    for (id, model) in &snapshots {
        scene.check_snapshot(*id, model).await;
    }
    assert!(scene.keys(&layout::maps(scene.log.volume)).await.len() < 200);
    assert_eq!(scene.model.len() as u64, BLOCKS);
    volume.abandon();
    scene.check_reopened(grant).await;
}

/// The calls that open the pool.
async fn calls_to_open() -> usize {
    let idle = Gate::new(&Source::new().await.scene.store, usize::MAX, "");
    host(idle.clone()).await;
    idle.calls()
}

#[tokio::test(start_paused = true)]
async fn the_pins_of_a_maker_that_died_anywhere_go_when_its_creation_stands_still() {
    let (mut pinned, mut made) = (0, 0);
    for stop_at in calls_to_open().await.. {
        let source = Source::new().await;
        let gate = Gate::new(&source.scene.store, stop_at, "");
        let (pool, maker) = host(gate.clone()).await;
        let new = source.clone_in(&pool);
        let died = tokio::select! {
            biased;
            outcome = maker.create_volume(&pool, &new, deadline()) => {
                outcome.unwrap();
                false
            }
            () = gate.arrived.notified() => true,
        };
        let (pool, host) = host(Arc::new(source.scene.store.clone())).await;
        let origin = layout::pins(source.scene.log.volume);
        let put = source.scene.keys(&origin).await.len();
        let mut clone = host.volume_after(&pool, None, deadline()).await.unwrap();
        if clone == Some(source.scene.log.volume) {
            clone = host.volume_after(&pool, clone, deadline()).await.unwrap();
        }
        if let Some(clone) = clone {
            let look = |seen| host.tend(&pool, clone, seen, source.scene.limits.clone(), deadline());
            let mut seen = look(None).await.unwrap();
            let exists =
                host.describe(&pool, clone, deadline()).await.is_ok_and(|(_, control)| !control.dead);
            assert_eq!(source.scene.keys(&origin).await.len(), put, "it may be under way: call {stop_at}");
            for _ in 0..3 {
                seen = look(seen).await.unwrap();
            }
            let named = pool.volume_named("clone", deadline()).await.unwrap();
            let left = source.scene.keys(&origin).await.len();
            assert_eq!((named.is_some(), left), (exists, usize::from(exists)), "call {stop_at}");
            made += usize::from(exists);
        }
        pinned += put;
        if !died {
            break;
        }
    }
    assert!(pinned > 3 && made >= 1, "{pinned} pinned, {made} made");
}

#[tokio::test(start_paused = true)]
async fn who_gives_a_creation_up_and_dies_anywhere_leaves_the_rest_to_the_next() {
    // The last call of a maker is the put that makes the clone exist.
    let idle = {
        let source = Source::new().await;
        let gate = Gate::new(&source.scene.store, usize::MAX, "");
        let (pool, maker) = host(gate.clone()).await;
        maker.create_volume(&pool, &source.clone_in(&pool), deadline()).await.unwrap();
        gate
    };
    for stop_at in calls_to_open().await.. {
        let source = Source::new().await;
        let gate = Gate::new(&source.scene.store, idle.calls() - 1, "");
        let (pool, maker) = host(gate.clone()).await;
        let new = source.clone_in(&pool);
        tokio::select! {
            biased;
            made = maker.create_volume(&pool, &new, deadline()) => panic!("{made:?} is to stand still"),
            () = gate.arrived.notified() => {}
        }
        let (plain, next) = host(Arc::new(source.scene.store.clone())).await;
        let clone = plain.volume_named("clone", deadline()).await.unwrap().expect("its name is bound");
        let pins = async || source.scene.keys(&layout::pins(source.scene.log.volume)).await.len();
        assert_eq!(pins().await, 1);
        let looks = async |host: &Host, pool: &Arc<Pool>| {
            let mut seen = None;
            for _ in 0..3 {
                seen = host.tend(pool, clone, seen, source.scene.limits.clone(), deadline()).await.unwrap();
            }
        };
        let gate = Gate::new(&source.scene.store, stop_at, "");
        let (pool, tender) = host(gate.clone()).await;
        let died = tokio::select! {
            biased;
            () = looks(&tender, &pool) => false,
            () = gate.arrived.notified() => true,
        };
        looks(&next, &plain).await;
        let named = plain.volume_named("clone", deadline()).await.unwrap();
        assert_eq!((pins().await, named), (0, None), "call {stop_at}");
        if !died {
            assert!(stop_at > calls_to_open().await + 5, "it gave nothing up");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_has_all_that_its_snapshot_had_or_is_not_made_wherever_its_maker_stands() {
    let (mut made, mut refused) = (0, 0);
    for stop_at in calls_to_open().await.. {
        let mut source = Source::new().await;
        let gate = Gate::new(&source.scene.store, stop_at, "");
        let (pool, maker) = host(gate.clone()).await;
        let new = source.clone_in(&pool);
        let making = tokio::spawn(async move { maker.create_volume(&pool, &new, deadline()).await });
        let arrived = tokio::select! {
            () = gate.arrived.notified() => true,
            () = async { while !making.is_finished() { tokio::task::yield_now().await } } => false,
        };
        // The maker stays where it is while the snapshot is deleted, and goes on afterwards.
        source.forget().await;
        gate.go.notify_one();
        let clone = match making.await.unwrap() {
            Ok(clone) => clone,
            Err(ControlError::NoSuchSnapshot { .. } | ControlError::Busy { .. }) => {
                refused += 1;
                continue;
            }
            Err(error) => panic!("stopped at call {stop_at}: {error}"),
        };
        made += 1;
        let (pool, host) = host(Arc::new(source.scene.store.clone())).await;
        let opened = source.opened(&host, &pool, clone).await;
        source.scene.model = std::mem::take(&mut source.model);
        source.scene.check(&opened).await;
        if !arrived {
            break;
        }
    }
    assert!(made > 3 && refused > 3, "{made} made, {refused} refused");
}
