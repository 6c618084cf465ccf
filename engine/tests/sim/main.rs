//! A simulation of volumes on an object store that fails in every way the engine claims to survive.
//!
//! One seed is one run: nodes open a volume, write, flush and snapshot it; processes die at any call to the store or in
//! the middle of a copy into the dirty buffer, come back, or are paused for hours and go on; controllers move the
//! volume, also two at a time; requests are slow, dropped, answered by nobody, applied twice or very late; listings
//! are torn. Some volumes have journals, on disks that fail, tear what was not synced when the power goes, and get lost;
//! nodes look after those that nobody serves.
//! Time is virtual and every choice comes from the seed, so a seed replays exactly. A plain model says what
//! each opener, each reader and each snapshot may show.
//!
//! `HOLDFAST_SEED=n` runs one seed and prints what happens; `HOLDFAST_SEEDS=n` sets how many are run.

mod chance;
mod client;
mod crashes;
mod director;
mod disk;
mod estate;
mod faults;
mod garbage;
mod journal;
mod marks;
mod memory;
mod model;
mod node;
mod process;
mod run;
mod scene;
mod scripted;
mod session;
mod settle;
mod store;
mod world;

use run::{SEEDS, run, run_many};

#[test]
fn no_acknowledged_write_is_lost() {
    match std::env::var("HOLDFAST_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("HOLDFAST_SEED is a number");
            let report = run(seed, true);
            assert_eq!(report.violations, [""; 0], "seed {seed}");
        }
        Err(_) => run_many(run::count("HOLDFAST_SEEDS", SEEDS)),
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 1..6 {
        let (first, second) = (run(seed, false), run(seed, false));
        assert!(first.events > 100, "seed {seed} does nothing: {first:?}");
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run(1, false).trace, run(2, false).trace);
}
