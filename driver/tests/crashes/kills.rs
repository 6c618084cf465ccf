//! SIGKILL of node plugin and keeper, by turns and both at once.

use std::time::{Duration, Instant};

use crate::common::eventually;
use crate::ledger::Ledger;
use crate::load::Load;
use crate::site::{MIB, Site, block};
use crate::{ALONE, for_a_while};

const KILLS: usize = 60;
const KILLS_OF_BOTH: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn sixty_kills_of_node_plugin_and_keeper_cause_no_error_and_lose_nothing() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let load = Load::start(&mut site, &mut node, 256 * MIB).await;
    let (mut plugin_kills, mut keeper_kills, mut takeover) = (0, 0, Duration::ZERO);
    for kill in 0..KILLS {
        for_a_while(kill).await;
        if kill % 3 == 2 {
            node.restart_keeper();
            keeper_kills += 1;
        } else {
            let killed = Instant::now();
            node.restart().await;
            takeover = takeover.max(killed.elapsed());
            plugin_kills += 1;
        }
        assert!(load.goes_on(), "kill {kill} was noticed");
    }
    let ended = load.end();
    println!(
        "{plugin_kills} kills of the node plugin and {keeper_kills} of the keeper, 0 errors; {ended}, longest takeover \
         {takeover:?}"
    );
    ended.check(1_000);
    ended.detach_and_check(&mut site, &mut node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_plugin_and_keeper_dead_at_once_lose_nothing_that_was_acknowledged() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let volume = site.create_sized("booked", Ledger::BYTES as i64).await;
    let context = site.attach(&volume, &node, &block()).await.unwrap();
    let device = node.publish(&volume, &context, &block()).await.unwrap();
    let ledger = Ledger::new(&device);
    for kill in 0..KILLS_OF_BOTH {
        let before = ledger.acknowledged();
        let writers = ledger.write();
        eventually("an fsync", || ledger.acknowledged() > before);
        for_a_while(kill).await;
        if kill % 2 == 0 {
            node.keeper.kill();
            node.process.kill();
        } else {
            node.process.kill();
            node.keeper.kill();
        }
        // As documented: errors, until the volume is staged again.
        let outcomes = writers.end();
        assert!(outcomes.iter().any(Result::is_err), "{outcomes:?}");
        node.power_on().await;
        node.unpublish(&volume).await.unwrap();
        node.publish(&volume, &context, &block()).await.unwrap();
        ledger.check();
    }
    println!("{KILLS_OF_BOTH} kills of both at once; {} fsyncs, none lost", ledger.acknowledged());
    node.unpublish(&volume).await.unwrap();
    site.detach(&volume, &node).await;
}
