//! A volume in a real store that has faults: `cargo xtask test --only stores` starts Ceph and makes them.
//!
//! `HOLDFAST_TEST_FAULTS` is a directory: `pool.yaml` says where the store is, `loaded` is made here when the load runs
//! and the faults may begin, and `done` is made by who makes them when the last is mended.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::ALONE;
use crate::load::Load;
use crate::site::{MIB, Site};

/// The longest that all faults may take.
const FAULTS_LIMIT: Duration = Duration::from_secs(900);

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_through_the_faults_of_a_real_store() {
    let Some(faults) = std::env::var_os("HOLDFAST_TEST_FAULTS").map(PathBuf::from) else {
        eprintln!("skipped: `cargo xtask test --only stores` runs it");
        return;
    };
    let _alone = ALONE.lock().await;
    let pool = fs::read_to_string(faults.join("pool.yaml")).unwrap();
    let mut site = Site::start_over(&pool).await;
    let mut node = site.node("n1").await;
    let load = Load::start(&mut site, &mut node, 64 * MIB).await;
    fs::write(faults.join("loaded"), "").unwrap();
    let begun = Instant::now();
    while !faults.join("done").exists() {
        assert!(load.goes_on(), "a fault of the store was noticed");
        assert!(begun.elapsed() < FAULTS_LIMIT, "the faults do not end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = load.end();
    println!(
        "faults of the store for {:?}: fio made {} writes and {} verifying reads, the ledger {} fsyncs; no error; the \
         longest stall was {:?}",
        begun.elapsed(),
        ended.seen.writes,
        ended.seen.verifying_reads,
        ended.ledger.acknowledged(),
        ended.seen.stall,
    );
    ended.detach_and_check(&mut site, &mut node).await;
}
