//! A volume in Ceph under verifying fio, while gateway and OSDs are killed, frozen, and started again.

use std::{fs, thread, time::Duration};

use holdfast_e2e::{
    Error, Named, Result,
    interrupt::{self, Seen},
    report,
    stores::{Ceph, Store},
};

use super::{
    Tally,
    code::{cargo, run_tests},
};

/// Tells the driver's test where store and faults are.
const FAULTS: &str = "HOLDFAST_TEST_FAULTS";
/// How long the test may take to be built and to begin.
const LOAD_LIMIT: Duration = Duration::from_secs(1800);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const ROUNDS: usize = 3;

/// Runs the driver's test and makes the faults.
pub(super) fn check(ceph: &mut Ceph) -> Result<Tally> {
    let files = tempfile::tempdir()
        .map_err(|source| Error::System { what: "making a temporary directory", source })?;
    let [pool, loaded, done] = ["pool.yaml", "loaded", "done"].map(|name| files.path().join(name));
    fs::write(&pool, ceph.location("faults").pool_file()?).named("write", &pool)?;
    let test = cargo()
        .env(FAULTS, files.path())
        .args(["test", "--locked", "--quiet", "--package", "holdfast-driver", "--test", "crashes"])
        .arg("fio_verifies_through_the_faults_of_a_real_store");
    thread::scope(|scope| {
        let test = scope.spawn(|| run_tests(test));
        let begun = interrupt::until("the load of the store", LOAD_LIMIT, LOOK_EVERY, || {
            let begun = loaded.exists() || test.is_finished();
            Ok(if begun { Seen::Reached(()) } else { Seen::NotYet("the test has not begun".into()) })
        });
        let made = begun.and_then(|()| faults(ceph));
        // Also after a failure, so that the test ends.
        let told = fs::write(&done, "").named("write", &done);
        let tally = test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        made.and(told).and(tally)
    })
}

fn faults(ceph: &mut Ceph) -> Result<()> {
    for osd in 0..ROUNDS {
        report::step(&format!("gateway killed and restarted, OSD {osd} killed, OSD {osd} frozen"), || {
            ceph.kill_gateway();
            interrupt::pause(Duration::from_secs(3))?;
            ceph.start_gateway()?;
            ceph.kill_osd(osd);
            interrupt::pause(Duration::from_secs(8))?;
            ceph.start_osd(osd)?;
            ceph.wait_until_healthy()?;
            ceph.freeze_osd(osd)?;
            interrupt::pause(Duration::from_secs(8))?;
            ceph.thaw_osd(osd)?;
            ceph.wait_until_healthy()
        })?;
    }
    // All at once: more than the replicas stand.
    report::step("gateway and all OSDs killed and restarted", || {
        (0..ROUNDS).for_each(|osd| ceph.kill_osd(osd));
        ceph.kill_gateway();
        interrupt::pause(Duration::from_secs(5))?;
        (0..ROUNDS).try_for_each(|osd| ceph.start_osd(osd))?;
        ceph.wait_until_healthy()?;
        ceph.start_gateway()
    })
}
