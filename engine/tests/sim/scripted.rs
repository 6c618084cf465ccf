//! Interleavings too rare for chance, played on purpose.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::control::{publish, unpublish};
use holdfast_engine::gc::Collector;
use holdfast_engine::ids::{GrantId, RecordNumber};
use holdfast_engine::log::GrantMode;
use holdfast_engine::pool::layout;
use holdfast_engine::volume::OpenError;
use tokio::time::{Instant, sleep};

use crate::chance::Chance;
use crate::client::{Opened, Place, Site};
use crate::faults::Faults;
use crate::memory;
use crate::model::{Model, bytes_of};
use crate::process::{Process, Trap};
use crate::run::found;
use crate::world::World;

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn place(name: &str, memory_number: usize) -> Place {
    Place { process: Arc::new(Process::new(name.into())), memory: memory::fresh(), memory_number }
}

/// Writes the first block and flushes it.
async fn write(site: &Site, opened: &Opened) {
    let mark = site.model.begins(opened.session, 0..1, true);
    opened.volume.write(0, bytes_of(mark, 0..1)).await.expect("a write is answered");
    site.model.answered(opened.session);
    let writes = site.model.count(opened.session);
    opened.volume.flush().await.expect("a flush is answered in calm weather");
    site.model.acknowledged(opened.session, writes);
}

/// The last record that a dead process has sent lands after its successor has found the log's end there. By the time
/// the successor puts its Open, the volume has moved to another node, whose collector has emptied that number.
#[tokio::test(start_paused = true)]
async fn an_open_at_an_emptied_number_does_not_count() {
    let world = Arc::new(World::new(Chance::new(1), Faults::CALM, false));
    let site =
        found(&world, None, Model::default(), Faults::CALM).await.expect("a volume is made in calm weather");
    let site = Arc::new(site);
    let chance = world.chance.fork();
    let controller = site.log(&Arc::new(Process::new("controller".into())));
    let to = |node| publish(&controller, node, GrantMode::ReadWrite, deadline());

    let grant = to("a").await.expect("published");
    let first = place("first", 0);
    let opened = open(&site, &first, grant, &chance).await.expect("opened");
    write(&site, &opened).await;
    first.process.set_trap("/log/", Trap::Die(Duration::from_secs(20)));
    let dying = {
        let site = Arc::clone(&site);
        tokio::spawn(async move { write(&site, &opened).await })
    };
    first.process.died().await;

    let paused = Place { process: place("paused", 0).process, ..first.clone() };
    paused.process.set_trap("/log/", Trap::Pause(Duration::from_secs(240)));
    let opening = {
        let (site, paused, chance) = (Arc::clone(&site), paused.clone(), chance.fork());
        tokio::spawn(async move { open(&site, &paused, grant, &chance).await })
    };
    sleep(Duration::from_secs(30)).await;
    dying.abort();

    unpublish(&controller, "a", deadline()).await.expect("unpublished");
    let other = open(&site, &place("other", 1), to("b").await.expect("published"), &chance).await;
    let other = other.expect("opened");
    write(&site, &other).await;
    let mut collector = Collector::new(other.volume.clone());
    for _ in 0..4 {
        collector.round().await.expect("garbage is collected in calm weather");
        sleep(Duration::from_secs(20)).await;
    }
    // Create, Grant, the first Open and its first write come before it.
    let emptied = layout::record(site.volume, RecordNumber(5));
    assert!(world.get(&emptied).is_err(), "the collector has left the record of the dead process");

    let outcome = opening.await.expect("the opener does not panic");
    assert!(world.get(&emptied).is_ok(), "the Open has not landed at the emptied number");
    assert!(matches!(outcome, Err(OpenError::NotGranted { .. })), "{outcome:?}");
    assert_eq!(site.model.violations(), [""; 0]);
}

async fn open(site: &Site, place: &Place, grant: GrantId, chance: &Chance) -> Result<Opened, OpenError> {
    Ok(site.open(place, grant, chance).await?.expect("nobody has opened the volume since"))
}
