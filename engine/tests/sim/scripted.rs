//! Interleavings too rare for chance, played on purpose.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::codec::encode_record;
use holdfast_engine::gc::{Collector, GcError};
use holdfast_engine::ids::{ObjectId, RecordNumber, SessionId};
use holdfast_engine::log::{Op, Record};
use holdfast_engine::pool::layout;
use holdfast_engine::volume::{Hydrate, Hydration, OpenError, Volume, hydrate};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::client::{Place, Site};
use crate::estate::{Handled, Order};
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
