//! Interleavings too rare for chance, played on purpose.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::codec::encode_record;
use holdfast_engine::control::{describe, publish};
use holdfast_engine::gc::{Collector, GcError};
use holdfast_engine::ids::{BLOCK_BYTES, ObjectId, RecordNumber, SessionId};
use holdfast_engine::log::{GrantMode, Op, Record};
use holdfast_engine::pool::layout;
use holdfast_engine::volume::{Hydrate, Hydration, OpenError, Volume, hydrate};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::client::{Place, Site};
use crate::estate::{Handled, Order};
use crate::marks::{BLOCKS, bytes_of};
use crate::process::Trap;
use crate::scene::{Scene, cut, deadline, place, process, write};
use crate::world::Bucket;

/// Some rounds, with more than the grace time between them.
async fn collect(volume: &Volume) {
    let mut collector = Collector::new(volume.clone());
    for _ in 0..5 {
        collector.round().await.expect("garbage is collected in calm weather");
        sleep(Duration::from_secs(35)).await;
    }
}

/// Whether the record is still there.
fn is_there(site: &Site, number: u64) -> bool {
    site.world.get(Bucket::Pool, &layout::record(site.volume, RecordNumber(number))).is_ok()
}

/// The last record that a dead process has sent lands after its successor has found the log's end there. By the time
/// the successor puts its Open, the volume has moved to another node, whose collector has emptied that number.
#[tokio::test(start_paused = true)]
async fn an_open_at_an_emptied_number_does_not_count() {
    let scene = Scene::new(1).await;
    let site = &scene.site;
    let grant = scene.grant(site, "a").await;
    let first = place(&process("first"), 0);
    let opened = scene.open(site, &first, grant).await;
    write(site, &opened, 0, true).await.expect("a flush is answered in calm weather");
    first.process.set_trap("/log/", Trap::Die(Duration::from_secs(20)));
    let dying = {
        let site = Arc::clone(site);
        tokio::spawn(async move { write(&site, &opened, 0, true).await })
    };
    first.process.died().await;

    let paused = Place { process: process("paused"), ..first };
    paused.process.set_trap("/log/", Trap::Pause(Duration::from_secs(240)));
    let opening = {
        let (site, chance) = (Arc::clone(site), scene.chance.fork());
        tokio::spawn(async move { site.open(&paused, grant, &chance).await })
    };
    sleep(Duration::from_secs(30)).await;
    dying.abort();

    scene.detach(site, "a").await;
    let grant = scene.grant(site, "b").await;
    let other = scene.open(site, &place(&process("other"), 1), grant).await;
    write(site, &other, 0, true).await.expect("a flush is answered in calm weather");
    collect(&other.volume).await;
    // Create, Grant, the first Open and its first write come before it.
    assert!(!is_there(site, 5), "the collector has left the record of the dead process");

    let outcome = opening.await.expect("the opener does not panic");
    assert!(is_there(site, 5), "the Open has not landed at the emptied number");
    assert!(matches!(outcome, Err(OpenError::NotGranted { .. })), "{outcome:?}");
    scene.check("in the end");
}

/// The last record of a process that looks after the volume lands after a controller has found the log's end there, to
/// give the volume to a node. By the time the controller puts its Grant, another node has the volume, and has emptied
/// that number.
#[tokio::test(start_paused = true)]
async fn a_grant_at_an_emptied_number_does_not_count() {
    let scene = Scene::new(4).await;
    let site = &scene.site;
    let tender = place(&process("tender"), 0);
    let log = site.log(&tender.process);
    let grant = publish(&log, "tender", GrantMode::Maintenance, deadline()).await.expect("it is granted");
    site.model.granted(grant, "tender");
    let opened = scene.open(site, &tender, grant).await;
    tender.process.set_trap("/log/", Trap::Die(Duration::from_secs(20)));
    let dying = tokio::spawn(async move { opened.volume.append(vec![Op::Noop], false).await });
    tender.process.died().await;

    let controller = process("controller");
    controller.set_trap("/log/", Trap::Pause(Duration::from_secs(240)));
    let publishing = {
        let log = site.log(&controller);
        let deadline = Instant::now() + Duration::from_secs(600);
        tokio::spawn(async move { publish(&log, "a", GrantMode::ReadWrite, deadline).await })
    };
    sleep(Duration::from_secs(30)).await;
    dying.abort();

    let grant = scene.grant(site, "b").await;
    let other = scene.open(site, &place(&process("other"), 1), grant).await;
    write(site, &other, 0, true).await.expect("a flush is answered in calm weather");
    collect(&other.volume).await;
    // Create, Grant and Open come before it.
    assert!(!is_there(site, 4), "the collector has left the record of the dead process");

    let outcome = publishing.await.expect("the controller does not panic");
    assert!(is_there(site, 4), "the Grant has not landed at the emptied number");
    assert!(outcome.is_err(), "two nodes have the volume: {outcome:?}");
    write(site, &other, 1, true).await.expect("the volume is still where it was");
    scene.check("in the end");
}

/// A writer sleeps just before it puts a record, while its volume is taken back, used elsewhere, and collected.
#[tokio::test(start_paused = true)]
async fn a_writer_that_slept_for_hours_meets_what_ended_its_session() {
    let scene = Scene::new(2).await;
    let site = &scene.site;
    let grant = scene.grant(site, "a").await;
    let first = place(&process("first"), 0);
    let opened = scene.open(site, &first, grant).await;
    write(site, &opened, 0, true).await.expect("a flush is answered in calm weather");
    first.process.set_trap("/log/", Trap::Pause(Duration::from_secs(4 * 3600)));
    let late = {
        let site = Arc::clone(site);
        tokio::spawn(async move { write(&site, &opened, 1, true).await })
    };
    sleep(Duration::from_secs(30)).await;

    scene.detach(site, "a").await;
    let grant = scene.grant(site, "b").await;
    let other = scene.open(site, &place(&process("other"), 1), grant).await;
    write(site, &other, 0, true).await.expect("a flush is answered in calm weather");
    collect(&other.volume).await;

    let late = late.await.expect("the writer does not panic");
    assert!(late.is_err(), "a session that was over has acknowledged a write");
    scene.check("in the end");
}

/// A root that lands when the next session has opened shows a map of a snapshot that this session writes a map of as
/// well. Who makes a clone meanwhile begins with the map that no root names for long.
#[test]
fn a_clone_keeps_the_map_that_a_late_root_has_shown() {
    let mut clones = 0;
    for seed in 0..12 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        clones += usize::from(runtime.expect("a runtime starts").block_on(a_root_is_late(seed)));
    }
    assert!(clones > 0, "no late root has shown a snapshot");
}

/// Whether a clone was made.
async fn a_root_is_late(seed: u64) -> bool {
    let calm = "it works in calm weather";
    let scene = Scene::new(seed).await;
    let site = &scene.site;
    let grant = scene.grant(site, "a").await;
    let first = place(&process("first"), 0);
    let opened = scene.open(site, &first, grant).await;
    // So that the map has more pages than its root holds.
    for block in (0..BLOCKS).step_by(2) {
        let mark = site.model.begins(opened.session, block..block + 1, true);
        let data = bytes_of(mark, block..block + 1);
        opened.volume.write(block * BLOCK_BYTES, data).await.expect(calm);
        site.model.answered(opened.session);
    }
    first.process.set_trap("/root/", Trap::Die(Duration::from_secs(20)));
    let dying = {
        let site = Arc::clone(site);
        tokio::spawn(async move { cut(&site, &opened, "cut").await })
    };
    first.process.died().await;
    dying.abort();

    let second = Place { process: process("second"), ..first };
    second.process.set_trap("/root/", Trap::Pause(Duration::from_secs(120)));
    let collecting = {
        let (site, chance) = (Arc::clone(site), scene.chance.fork());
        tokio::spawn(async move {
            let opened = site.open(&second, grant, &chance).await.expect(calm).expect(calm);
            collect(&opened.volume).await;
            opened
        })
    };
    sleep(Duration::from_secs(30)).await;
    let control = describe(&site.log(&process("controller")), deadline()).await.expect(calm);
    let Some((id, _)) = control.snapshots.iter().find(|(_, found)| found.map.is_some()) else { return false };
    let visitor = scene.visitor("controller").await;
    let order = Order {
        name: "child".into(),
        parent: Arc::clone(site),
        cut: "cut".into(),
        source: Handled::Snapshot(*id),
    };
    let child = order.make(&visitor).await.expect(calm);
    child.world.watch(child.volume, child.key.clone());
    collecting.await.expect("the collector does not panic");

    let grant = scene.grant(&child, "b").await;
    scene.open(&child, &place(&process("its owner"), 1), grant).await;
    scene.check(&format!("seed {seed}"));
    true
}

/// A record without effect lies where a session puts its next one, which then goes to the number after it. All that it
/// lacks is the right predecessor.
#[tokio::test(start_paused = true)]
async fn a_record_that_moves_has_a_new_id() {
    let scene = Scene::new(3).await;
    let site = &scene.site;
    let grant = scene.grant(site, "a").await;
    let opened = scene.open(site, &place(&process("owner"), 0), grant).await;
    write(site, &opened, 0, true).await.expect("a flush is answered in calm weather");
    let next = site.world.list(Bucket::Pool, &layout::records(site.volume)).len() as u64 + 1;
    let stray = Record {
        volume: site.volume,
        number: RecordNumber(next),
        id: ObjectId([7; 16]),
        session: SessionId::NONE,
        prev: ObjectId([8; 16]),
        time_ms: 0,
        buffer_complete: 0,
        ops: vec![Op::Revoke { grant }],
    };
    let body = encode_record(stray, None, site.key.as_ref()).expect("a record within its limits").bytes;
    let key = layout::record(site.volume, RecordNumber(next));
    site.world.put(Bucket::Pool, &key, &body).expect("the number is free");
    write(site, &opened, 1, true).await.expect("a flush is answered in calm weather");
    assert!(is_there(site, next + 1), "the record has not moved");
    scene.check("in the end");
}

/// A listing of the pins on a volume takes so long that a grandchild pins it after the listing has passed that place.
/// The grandchild needs nothing of the child any more, the child is deleted, and everything is done to remove it, before
/// the listing has come to the child's pin.
#[test]
fn a_child_keeps_its_pins_as_long_as_a_grandchild_needs_the_same() {
    for seed in 0..12 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime starts").block_on(a_generation_goes(seed));
    }
}

async fn a_generation_goes(seed: u64) {
    let calm = "it works in calm weather";
    let scene = Scene::new(seed).await;
    let site = &scene.site;
    let visitor = scene.visitor("controller").await;
    let grant = scene.grant(site, "a").await;
    let owner = place(&process("owner"), 0);
    let opened = scene.open(site, &owner, grant).await;
    write(site, &opened, 0, true).await.expect(calm);
    let of_site = cut(site, &opened, "of the volume").await.expect(calm);
    // From now on only the snapshot has what the block held.
    write(site, &opened, 0, true).await.expect(calm);
    let order = |name: &str, parent: &Arc<Site>, cut: &str, source| Order {
        name: name.into(),
        parent: Arc::clone(parent),
        cut: cut.into(),
        source: Handled::Snapshot(source),
    };
    let child = order("child", site, "of the volume", of_site).make(&visitor).await.expect(calm);
    child.world.watch(child.volume, child.key.clone());
    let grant = scene.grant(&child, "b").await;
    let of_child = {
        let opened = scene.open(&child, &place(&process("owner of the child"), 0), grant).await;
        write(&child, &opened, 1, true).await.expect(calm);
        let of_child = cut(&child, &opened, "of the child").await.expect(calm);
        opened.volume.close().await.expect(calm);
        of_child
    };
    scene.detach(&child, "b").await;
    opened.volume.append(vec![Op::DeleteSnapshot { snapshot: of_site }], false).await.expect(calm);

    // The listing has begun, and shows the child's pin so far.
    owner.process.set_trap("/pins/", Trap::Pause(Duration::from_secs(3600)));
    let collecting = {
        let volume = opened.volume.clone();
        tokio::spawn(async move { collect(&volume).await })
    };
    sleep(Duration::from_secs(5)).await;
    let grandchild = order("grandchild", &child, "of the child", of_child).make(&visitor).await.expect(calm);
    grandchild.world.watch(grandchild.volume, grandchild.key.clone());
    let grant = scene.grant(&grandchild, "b").await;
    {
        let opened = scene.open(&grandchild, &place(&process("its owner"), 0), grant).await;
        let (progress, _) = watch::channel(Hydration::default());
        hydrate(opened.volume.clone(), Hydrate::unlimited([child.volume].into()), progress)
            .await
            .expect(calm);
        opened.volume.close().await.expect(calm);
    }
    scene.detach(&grandchild, "b").await;
    let (host, pool) = (&visitor.host, &visitor.pool);
    host.release_pins(pool, grandchild.volume, deadline()).await.expect(calm);
    host.delete_volume(pool, child.volume, deadline()).await.expect(calm);
    host.delete_snapshot(pool, child.volume, of_child, deadline()).await.expect(calm);
    let reclaimed = host.reclaim(pool, child.volume, deadline()).await;
    assert!(matches!(reclaimed, Err(GcError::Needed { .. })), "{reclaimed:?}");
    let pins = pool.pins(site.volume, deadline()).await.expect(calm);
    assert!(pins.contains(&(child.volume, of_site)), "{pins:?}");

    collecting.await.expect("the collector does not panic");
    let grant = scene.grant(&grandchild, "c").await;
    scene.open(&grandchild, &place(&process("witness"), 1), grant).await;
    scene.check(&format!("seed {seed}"));
}
