//! Running seeds.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_engine::codec::{Codec, UserKey};
use holdfast_engine::control::{ControlError, CreateVolume};
use holdfast_engine::ids::BLOCK_BYTES;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::client::{Keys, Site, Visitor};
use crate::director::Director;
use crate::estate::Estate;
use crate::faults::Faults;
use crate::marks::BLOCKS;
use crate::model::Model;
use crate::process::Process;
use crate::settle::settle;
use crate::world::World;

/// How many seeds are run unless somebody says otherwise: what is quick. `cargo xtask test` runs more.
pub const SEEDS: u64 = 300;

/// Seeds that fail until no more are run.
const FAILURES: u64 = 3;

/// What one seed did.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// A hash over everything that happened.
    pub trace: u64,
    pub events: u64,
    pub violations: Vec<String>,
}

thread_local! {
    /// Panics on this thread: a run stays on one, and the runtime swallows those of tasks.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            print(panic);
        }));
    });
}

/// Runs one seed.
pub fn run(seed: u64, prints: bool) -> Report {
    count_panics();
    PANICS.set(0);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime starts");
    let mut report = runtime.block_on(live(seed, prints));
    if PANICS.get() > 0 {
        report.violations.push(format!("{} panics", PANICS.get()));
    }
    report
}

async fn live(seed: u64, prints: bool) -> Report {
    let chance = Chance::new(seed);
    let weather = Faults::choose(&chance);
    let key = || chance.hits(300).then(|| UserKey::random(&chance));
    let keys = Keys { pool: key(), target: key() };
    let archives = chance.hits(300);
    let world = Arc::new(World::new(chance, Faults::CALM, prints));
    let model = Model::default();
    match found(&world, keys, model.clone(), weather).await {
        Ok(site) => {
            let site = Arc::new(site);
            let estate = Arc::new(Estate::new(Arc::clone(&site), archives));
            let mut director = Director::new(Arc::clone(&estate), site);
            world.set_faults(weather);
            director.run(8..30).await;
            settle(&estate, director).await;
        }
        Err(error) => model.violation(format!("the volume could not be created: {error}")),
    }
    let (trace, events) = world.trace();
    Report { trace, events, violations: [model.violations(), world.violations()].concat() }
}

/// Makes the two pools, and a volume.
pub async fn found(
    world: &Arc<World>,
    keys: Keys,
    model: Model,
    weather: Faults,
) -> Result<Site, ControlError> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let founder = Arc::new(Process::new("founder".into()));
    let Visitor { host, pool, .. } = Visitor::new(world, &keys, &founder).await?;
    let volume = host.create_volume(&pool, &empty("volume"), deadline).await?;
    let key = pool.data_key(volume, deadline).await?;
    world.watch(volume, key.clone());
    Ok(Site {
        name: "volume".into(),
        world: Arc::clone(world),
        model,
        volume,
        key,
        ancestors: Vec::new(),
        keys: Arc::new(keys),
        weather,
    })
}

/// A new volume.
pub fn empty(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        size_bytes: BLOCKS * BLOCK_BYTES,
        source: None,
        codec: Codec::Lz4,
        parameters: BTreeMap::new(),
    }
}

/// A number from the environment.
pub fn count(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Runs the seeds up to `seeds` on all processors; fails with the first few that violate the model.
pub fn run_many(seeds: u64) {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut failures = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds || failed.load(Ordering::Relaxed) >= FAILURES {
                return failures;
            }
            let report = run(seed, false);
            if !report.violations.is_empty() {
                println!("seed {seed}: {}", report.violations.join("\n    "));
                failures.push(seed);
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let mut failures: Vec<u64> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a seed does not panic")).collect()
    });
    failures.sort_unstable();
    assert!(
        failures.is_empty(),
        "seeds {failures:?} of {seeds} violate the model; HOLDFAST_SEED={} shows the first",
        failures[0]
    );
}
