//! One story after the other, in calm weather, told again and again by a process that dies at each of its calls to
//! the store in turn: before the call, and while it is under way. Whoever comes after it must find everything right.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::archive::list_points;
use holdfast_engine::gc::Collector;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, SnapshotId};
use holdfast_engine::log::Op;
use holdfast_engine::pool::layout;
use holdfast_engine::volume::Limits;
use tokio::time::sleep;

use crate::client::{Place, Visitor};
use crate::estate::{Handled, Order, archive_cut, archive_name};
use crate::garbage;
use crate::journal::JournalSpace;
use crate::marks::{BLOCKS, marks_in};
use crate::node::settle_journals;
use crate::process::Process;
use crate::scene::{Scene, cut, deadline, place, process, write};
use crate::settle::read_all;
use crate::world::Bucket;

/// More calls than any story has.
const CALLS_MAX: u64 = 2_000;

/// Does `story` in a new world for every call of its process, which dies before the call or when it is sent: the one at
/// even calls, the other at odd ones, or both at each with `HOLDFAST_CRASHES=all`. Ends when the process has lived to the
/// story's end.
fn at_every_call(story: impl AsyncFn(&Arc<Process>, u64)) {
    let all = std::env::var("HOLDFAST_CRASHES").is_ok_and(|which| which == "all");
    let mut lived = [false; 2];
    for call in 0..CALLS_MAX {
        for sent in [0, 1] {
            if lived[sent] || !(all || call % 2 == sent as u64) {
                continue;
            }
            let process = process("doomed");
            match sent {
                0 => process.kill_at_call(call),
                _ => process.kill_after_call(call),
            }
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.expect("a runtime starts").block_on(story(&process, call));
            lived[sent] = !process.is_dead();
        }
        if lived == [true; 2] {
            return;
        }
    }
    panic!("the story does not end in {CALLS_MAX} calls");
}

/// Lets `work` be done by `process`, until it dies.
async fn until_dead<T>(process: &Arc<Process>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = process.died() => None,
        done = work => Some(done),
    }
}

/// What a node does with a volume from the first to the last day.
async fn use_volume(scene: &Scene, place: &Place, grant: GrantId) {
    let site = &scene.site;
    let Ok(Some(opened)) = site.open(place, grant, &scene.chance).await else { return };
    let mut collector = Collector::new(opened.volume.clone());
    let steps = async {
        write(site, &opened, 0, true).await?;
        write(site, &opened, 1, true).await?;
        let first = cut(site, &opened, &format!("first cut of {}", place.process.name)).await?;
        write(site, &opened, 0, true).await?;
        write(site, &opened, 1, false).await?;
        site.model.cut_deleted(&format!("first cut of {}", place.process.name));
        opened.volume.append(vec![Op::DeleteSnapshot { snapshot: first }], false).await?;
        for _ in 0..3 {
            // It fails when the session is over, which the next step tells.
            let _ = collector.round().await;
            sleep(opened.volume.limits().grace).await;
        }
        cut(site, &opened, &format!("second cut of {}", place.process.name)).await?;
        write(site, &opened, 2, true).await?;
        opened.close(&site.model).await
    };
    if let Err(error) = steps.await {
        site.model.violation(format!("in calm weather: {error}"));
    }
}

#[test]
fn a_session_loses_nothing() {
    sessions(false);
}

#[test]
fn a_session_with_a_journal_loses_nothing() {
    sessions(true);
}

/// One process after the other uses a volume, on a node that gives it a journal or none.
fn sessions(journals: bool) {
    at_every_call(async |doomed, call| {
        let scene = Scene::new(call).await;
        let grant = scene.grant(&scene.site, "a").await;
        let journal = journals.then(|| JournalSpace::fresh(0, &scene.chance));
        let first = Place { journal, ..place(doomed, 0) };
        until_dead(doomed, use_volume(&scene, &first, grant)).await;
        // Every other time, the node loses power.
        let second = process("successor");
        let second = match call / 2 % 2 {
            0 => {
                first.journal.iter().for_each(|journal| journal.lose_power(&scene.chance));
                Place { journal: first.journal, ..place(&second, 1) }
            }
            _ => Place { process: second, ..first },
        };
        use_volume(&scene, &second, grant).await;
        scene.detach(&scene.site, "a").await;
        let grant = scene.grant(&scene.site, "b").await;
        scene.open(&scene.site, &place(&process("witness"), 2), grant).await;
        scene.check(&format!("call {call}"));
    });
}

/// A node that comes back after a loss of power settles its journal, of a volume that it still has, or that was taken
/// from it.
#[test]
fn a_journal_that_nobody_uses_is_settled() {
    at_every_call(async |doomed, call| {
        let scene = Scene::new(call).await;
        let site = &scene.site;
        let grant = scene.grant(site, "a").await;
        let space = JournalSpace::fresh(0, &scene.chance);
        let node = |process: &Arc<Process>, memory_number| Place {
            journal: Some(Arc::clone(&space)),
            ..place(process, memory_number)
        };
        let first = process("first");
        let opened = scene.open(site, &node(&first, 0), grant).await;
        for block in 0..3 {
            write(site, &opened, block, true).await.expect("a write is flushed in calm weather");
        }
        first.kill();
        space.lose_power(&scene.chance);
        let is_taken_back = call / 2 % 2 == 1;
        if is_taken_back {
            scene.detach(site, "a").await;
        }
        until_dead(doomed, settle_journals(site, &node(doomed, 1), None, &scene.chance)).await;
        space.lose_power(&scene.chance);
        let second = node(&process("second"), 2);
        assert_eq!(settle_journals(site, &second, None, &scene.chance).await, 0, "call {call}");
        if !is_taken_back {
            scene.detach(site, "a").await;
        }
        let grant = scene.grant(site, "b").await;
        scene.open(site, &place(&process("witness"), 3), grant).await;
        scene.check(&format!("call {call}"));
    });
}

/// A source with three snapshots: a block is written between the first two, and discarded before the third.
async fn archived(scene: &Scene) -> [SnapshotId; 3] {
    let site = &scene.site;
    let grant = scene.grant(site, "a").await;
    let opened = scene.open(site, &place(&process("owner"), 0), grant).await;
    let mut cuts = Vec::new();
    for (name, block, data) in [("one", 0, true), ("two", 1, true), ("three", 1, false)] {
        write(site, &opened, block, data).await.expect("a write is flushed in calm weather");
        cuts.push(cut(site, &opened, name).await.expect("a snapshot is taken in calm weather"));
    }
    opened.volume.close().await.expect("a volume is closed in calm weather");
    let point = archive_cut(site, &process("first job"), "point one", cuts[0]).await;
    site.model.point_begins("point one".into(), "one".into());
    site.model.point_made("point one", point.expect("a snapshot is archived in calm weather"));
    cuts.try_into().expect("three snapshots")
}

/// Every point in the archive is what its snapshot was: one is called as the other.
async fn check_points(scene: &Scene, visitor: &Visitor) -> usize {
    let points =
        list_points(&visitor.host, &visitor.target).await.expect("points are listed in calm weather");
    for point in &points {
        let (volume, id) = (point.handle.volume, point.handle.snapshot.expect("a point is a snapshot"));
        let reader = visitor.host.snapshot_reader(&visitor.target, volume, id, deadline()).await;
        let blocks = read_all(&reader.expect("a point is opened")).await.expect("a point is read");
        let cut = point.name.strip_prefix("point ").expect("points are named after snapshots");
        scene.site.model.check_cut(&point.name, cut, &blocks);
    }
    points.len()
}

#[test]
fn an_archive_run_leaves_its_archive_right() {
    at_every_call(async |doomed, call| {
        let scene = Scene::new(call).await;
        let [_, two, three] = archived(&scene).await;
        until_dead(doomed, archive_cut(&scene.site, doomed, "point two", two)).await;
        let visitor = scene.visitor("witness").await;
        check_points(&scene, &visitor).await;
        // The next run is of another snapshot; what the dead one has left is collected.
        let made = archive_cut(&scene.site, &process("second job"), "point three", three).await;
        made.expect("a snapshot is archived in calm weather");
        let archive = visitor.target.volume_named(&archive_name(&scene.site), deadline()).await;
        let archive = archive.expect("names are read").expect("there is an archive");
        let limits = Limits { grace: Duration::ZERO, ..Limits::default() };
        visitor.host.tend(&visitor.target, archive, None, limits, deadline()).await.expect("it is collected");
        assert!(check_points(&scene, &visitor).await >= 2);
        let again = archive_cut(&scene.site, &process("third job"), "point two", two).await;
        again.expect("a snapshot is archived in calm weather");
        assert_eq!(check_points(&scene, &visitor).await, 3);
        scene.check(&format!("call {call}"));
    });
}

#[test]
fn a_restored_volume_is_made_whole_and_removed_whole() {
    at_every_call(async |doomed, call| {
        let scene = Scene::new(call).await;
        archived(&scene).await;
        let source = scene.site.model.points()[0].handle.expect("the point was made");
        let order = Order {
            name: "restored".into(),
            parent: Arc::clone(&scene.site),
            cut: "one".into(),
            source: Handled::Point(source),
        };
        let story = async {
            let visitor = scene.site.visitor(doomed).await.expect("the pools are opened in calm weather");
            let made = order.make(&visitor).await.expect("it is made in calm weather");
            let host = &visitor.host;
            host.delete_volume(&visitor.pool, made.volume, deadline()).await.expect("it is deleted");
            let limits = Limits::default();
            host.tend(&visitor.pool, made.volume, None, limits, deadline()).await.expect("it is removed");
        };
        until_dead(doomed, story).await;
        // Somebody makes it, whether it was there or half there or gone.
        let visitor = scene.visitor("witness").await;
        let made = order.make(&visitor).await.expect("it is made in calm weather");
        made.world.watch(made.volume, made.key.clone());
        let grant = scene.grant(&made, "a").await;
        let opened = scene.open(&made, &place(&process("reader"), 0), grant).await;
        let bytes = opened.volume.read(0, BLOCKS * BLOCK_BYTES).await.expect("it is read");
        scene.site.model.check_cut("the clone", "one", &marks_in(&bytes, 0).expect("blocks are whole"));
        scene.detach(&made, "a").await;
        visitor.host.delete_volume(&visitor.pool, made.volume, deadline()).await.expect("it is deleted");
        for volume in scene.site.world.volumes(Bucket::Pool) {
            let tended = visitor.host.tend(&visitor.pool, volume, None, Limits::default(), deadline()).await;
            tended.expect("volumes are tended in calm weather");
        }
        let left = garbage::remains(&scene.site.world, Bucket::Pool);
        let stays = layout::volume(scene.site.volume);
        let left: Vec<String> = left.into_iter().filter(|key| !key.starts_with(&stays)).collect();
        assert_eq!(left, [""; 0], "call {call}");
        let pins = visitor.target.pins(source.volume, deadline()).await.expect("pins are listed");
        assert_eq!(pins, [], "call {call}");
        scene.check(&format!("call {call}"));
    });
}
