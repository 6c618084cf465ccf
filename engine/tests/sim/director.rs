//! What happens to the volume: which node it is given to, what dies, and what is looked at in the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::buffer::{MemoryBuffer, MemoryRegion};
use holdfast_engine::control::{CreateVolume, PublishError, SourceSnapshot, describe, publish, unpublish};
use holdfast_engine::gc::Collector;
use holdfast_engine::host::OpenAs;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, SnapshotId, VolumeId};
use holdfast_engine::log::{GrantMode, Log, LogError};
use holdfast_engine::map::{MapView, live_blocks};
use holdfast_engine::pool::layout;
use holdfast_engine::snapshot;
use holdfast_engine::volume::{Limits, Volume};
use tokio::time::{Instant, sleep};

use crate::chance::Chance;
use crate::client::{Opened, Place, Site, host, serve};
use crate::faults::Faults;
use crate::memory::{self, MEMORY_BYTES};
use crate::model::{BLOCKS, marks_in};
use crate::process::{Process, Trap};
use crate::run::empty;

const NODES: [&str; 2] = ["a", "b"];
/// How long a controller tries.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rounds after which the collector has nothing left to do: rewriting makes new garbage, but less each time.
const ROUNDS: usize = 20;
/// How long a clone may take to be made.
const CLONE_PATIENCE: Duration = Duration::from_secs(300);

/// A node.
#[derive(Debug)]
struct Node {
    name: &'static str,
    memory: Arc<MemoryRegion>,
    memory_number: usize,
    process: Option<Arc<Process>>,
    grant: Option<GrantId>,
}

/// Decides what happens.
#[derive(Debug)]
pub struct Director {
    site: Arc<Site>,
    chance: Chance,
    nodes: Vec<Node>,
    controllers: [Log; 2],
    lives: usize,
    memories: usize,
    clones: usize,
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Takes the volume back from `node`, which fences it: the model is told.
async fn detach(site: &Site, log: &Log, node: &str) -> Result<(), LogError> {
    let grants = site.model.grants_of(node);
    unpublish(log, node, deadline()).await?;
    site.model.revoked(&grants);
    Ok(())
}

async fn make_clone(site: Arc<Site>, name: String, snapshot: SnapshotId, cut: String) {
    let process = Arc::new(Process::new(name.clone()));
    if site.world.chance.hits(500) {
        process.set_trap("/pins/", Trap::Pause(site.world.chance.delay(100..120_000)));
    }
    let outcome = match host(&site.world, site.pool_key.as_ref(), &process).await {
        Ok((host, pool)) => {
            let source = SourceSnapshot { pool: Arc::clone(&pool), volume: site.volume, snapshot };
            let new = CreateVolume { source: Some(source), ..empty(&name) };
            host.create_volume(&pool, &new, Instant::now() + CLONE_PATIENCE).await
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(clone) => {
            site.world.note(format_args!("{name} of {cut} is made"));
            site.model.cloned(name, clone, cut);
        }
        Err(error) => site.world.note(format_args!("{name} of {cut} is not made: {error}")),
    }
}

impl Director {
    pub fn new(site: Arc<Site>) -> Self {
        let chance = site.world.chance.fork();
        let controllers =
            ["controller 1", "controller 2"].map(|name| site.log(&Arc::new(Process::new(name.into()))));
        let nodes = NODES.iter().enumerate().map(|(memory_number, name)| Node {
            name,
            memory: memory::fresh(),
            memory_number,
            process: None,
            grant: None,
        });
        let nodes = nodes.collect();
        Self { site, chance, nodes, controllers, lives: 0, memories: NODES.len(), clones: 0 }
    }

    /// Lets things happen.
    pub async fn run(&mut self) {
        for _ in 0..self.chance.among(8..30) {
            let node = self.chance.among(0..NODES.len() as u64) as usize;
            match self.chance.among(0..20) {
                0..4 => self.attach(node).await,
                4..7 => {
                    self.detach(node).await;
                    self.attach(1 - node).await;
                }
                7 => self.race(node).await,
                8..11 => self.restart(node),
                11 => {
                    self.nodes[node].memory = memory::fresh();
                    self.nodes[node].memory_number = self.memories;
                    self.memories += 1;
                    self.restart(node);
                }
                12..14 => self.doom(node),
                14..16 => self.pause(node),
                16 => self.detach(node).await,
                17..20 => self.clone_snapshot(),
                _ => {}
            }
            sleep(self.chance.delay(1..20_000)).await;
        }
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.site.world.note(what);
    }

    async fn attach(&mut self, node: usize) {
        let name = self.nodes[node].name;
        let outcome = publish(&self.controllers[0], name, GrantMode::ReadWrite, deadline()).await;
        self.attached(node, outcome);
    }

    fn attached(&mut self, node: usize, outcome: Result<GrantId, PublishError>) {
        let name = self.nodes[node].name;
        match outcome {
            Ok(grant) => {
                self.note(format_args!("published to {name}"));
                self.site.model.granted(grant, name);
                let same = self.nodes[node].grant.replace(grant) == Some(grant);
                let lives = self.nodes[node].process.as_ref().is_some_and(|process| !process.is_dead());
                if !same || !lives {
                    self.restart(node);
                }
            }
            Err(error) => self.note(format_args!("not published to {name}: {error}")),
        }
    }

    async fn detach(&self, node: usize) {
        let name = self.nodes[node].name;
        match detach(&self.site, &self.controllers[0], name).await {
            Ok(()) => self.note(format_args!("unpublished from {name}")),
            Err(error) => self.note(format_args!("not unpublished from {name}: {error}")),
        }
    }

    /// Two controllers move the volume at once, one here, one there.
    async fn race(&mut self, node: usize) {
        let site = &self.site;
        let moves = |log: Log, from: &'static str, to: &'static str, wait: Duration| async move {
            sleep(wait).await;
            detach(site, &log, from).await?;
            publish(&log, to, GrantMode::ReadWrite, deadline()).await
        };
        let (here, there) = (self.nodes[node].name, self.nodes[1 - node].name);
        let [first, second] = self.controllers.clone();
        let wait = self.chance.delay(1..500);
        let (there_outcome, here_outcome) = tokio::join!(
            biased;
            moves(first, here, there, Duration::ZERO),
            moves(second, there, here, wait)
        );
        self.attached(1 - node, there_outcome);
        self.attached(node, here_outcome);
    }

    /// The node's process dies, and another one begins under the grant that the node knows.
    fn restart(&mut self, node: usize) {
        let Node { name, memory, memory_number, process, grant } = &mut self.nodes[node];
        if let Some(process) = process {
            process.kill();
        }
        let Some(grant) = *grant else { return };
        self.lives += 1;
        let life = Arc::new(Process::new(format!("{name}{}", self.lives)));
        if self.chance.hits(200) {
            // Before its Open, when it has looked at everything else.
            life.set_trap("/log/", Trap::Pause(self.chance.delay(1_000..600_000)));
        }
        *process = Some(Arc::clone(&life));
        let place = Place { process: life, memory: Arc::clone(memory), memory_number: *memory_number };
        tokio::spawn(serve(Arc::clone(&self.site), place, grant));
    }

    /// The node's process will die soon, in the middle of something.
    fn doom(&self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        match self.chance.among(0..3) {
            0 => process.kill_at_call(self.chance.among(0..20)),
            1 => process.kill_at_copy(self.chance.among(0..20)),
            _ => process.set_trap("/log/", Trap::Die(self.chance.delay(1..60_000))),
        }
    }

    /// Somebody begins to make a clone of one of the snapshots.
    fn clone_snapshot(&mut self) {
        let mut taken = self.site.model.taken();
        if taken.is_empty() {
            return;
        }
        let (snapshot, cut) = taken.swap_remove(self.chance.among(0..taken.len() as u64) as usize);
        self.clones += 1;
        tokio::spawn(make_clone(Arc::clone(&self.site), format!("clone {}", self.clones), snapshot, cut));
    }

    fn pause(&self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let pause = self.chance.delay(100..2 * 3600 * 1000);
        if self.chance.hits(500) {
            process.set_trap("/log/", Trap::Pause(pause));
        } else {
            self.note(format_args!("{} is paused for {pause:?}", process.name));
            process.pause_until(Instant::now() + pause);
        }
    }

    /// The weather clears up, and somebody new looks at the volume: at once, and again when everything that was late
    /// has come.
    pub async fn settle(&mut self) {
        self.site.world.set_faults(Faults::CALM);
        // Half of the time those who use the volume go on until somebody else takes it from them.
        if self.chance.hits(500) {
            self.kill_all();
        }
        for round in 0..2 {
            sleep(self.chance.delay(1..20_000)).await;
            if let Err(what) = self.look(round).await {
                self.site.model.violation(format!("in calm weather: {what}"));
            }
            self.kill_all();
            sleep(Duration::from_secs(4 * 3600)).await;
        }
    }

    fn kill_all(&self) {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).for_each(|process| process.kill());
    }

    async fn look(&mut self, round: usize) -> Result<(), String> {
        let log = self.controllers[0].clone();
        let control = describe(&log, deadline()).await.map_err(|error| format!("describe: {error}"))?;
        if let Some(grant) = control.grant {
            let detached = detach(&self.site, &log, &grant.node).await;
            detached.map_err(|error| format!("unpublish: {error}"))?;
        }
        let name = format!("witness {round}");
        let grant = publish(&log, &name, GrantMode::ReadWrite, deadline()).await;
        let grant = grant.map_err(|error| format!("publish: {error}"))?;
        self.site.model.granted(grant, &name);
        let process = Arc::new(Process::new(name));
        self.memories += 1;
        let place = Place { process, memory: memory::fresh(), memory_number: self.memories };
        let opened = self.site.open(&place, grant, &self.chance).await;
        let Some(Opened { volume, .. }) = opened.map_err(|error| format!("open: {error}"))? else {
            return Err("somebody has opened the volume who must not".into());
        };
        let mut collector = Collector::new(volume.clone());
        let mut at_rest = false;
        for _ in 0..ROUNDS {
            let collected = collector.round().await.map_err(|error| format!("collect: {error}"))?;
            self.note(format_args!("the witness collects: {collected:?}"));
            sleep(volume.limits().grace + Duration::from_secs(1)).await;
            at_rest = collected.left == 0 && collected.moved_bytes == 0;
            if at_rest {
                break;
            }
        }
        if !at_rest {
            return Err(format!("the collector does not come to rest in {ROUNDS} rounds"));
        }
        // When everything that was late has come, nothing stays that nothing needs.
        if round == 1 {
            self.look_for_garbage(&log, &volume).await?;
        }
        self.look_at_snapshots(&log).await?;
        for (name, clone, cut) in self.site.model.clones() {
            let looked = self.look_at_clone(&place.process, &name, clone, &cut).await;
            looked.map_err(|what| format!("{name} of {cut}: {what}"))?;
        }
        volume.close().await.map_err(|error| format!("close: {error}"))
    }

    /// Every segment in the store is named by the head or by a snapshot.
    async fn look_for_garbage(&self, log: &Log, volume: &Volume) -> Result<(), String> {
        let head = volume.frozen().ok_or("an open volume has no head")?;
        let control = describe(log, deadline()).await.map_err(|error| format!("describe: {error}"))?;
        let mut views = vec![head.clone()];
        for id in control.snapshots.keys() {
            let found = snapshot::find(log, *id, deadline()).await;
            let found = found.map_err(|error| format!("snapshot {id}: {error}"))?;
            views.push(MapView::from_stored(Arc::clone(head.source()), &found.map.map));
        }
        let mut needed = BTreeSet::new();
        for view in views {
            let live = live_blocks(&view).await.map_err(|error| format!("walk: {error}"))?;
            needed.extend(live.into_keys().map(|segment| segment.id));
        }
        let there = self.site.world.list(&layout::segments(log.volume)).into_keys();
        let is_needed = |key: &str| layout::object_id_in(key).is_some_and(|id| needed.contains(&id));
        let garbage: Vec<String> = there.filter(|key| !is_needed(key)).collect();
        if garbage.is_empty() { Ok(()) } else { Err(format!("garbage stays: {garbage:?}")) }
    }

    async fn look_at_clone(
        &self,
        process: &Arc<Process>,
        name: &str,
        clone: VolumeId,
        cut: &str,
    ) -> Result<(), String> {
        let made = host(&self.site.world, self.site.pool_key.as_ref(), process).await;
        let (host, pool) = made.map_err(|error| format!("pool: {error}"))?;
        let log = host.log(&pool, clone, deadline()).await.map_err(|error| format!("log: {error}"))?;
        let grant = publish(&log, &process.name, GrantMode::ReadWrite, deadline()).await;
        let open = OpenAs {
            grant: grant.map_err(|error| format!("publish: {error}"))?,
            endpoint: String::new(),
            buffer: Arc::new(MemoryBuffer::new(MEMORY_BYTES)),
            limits: Limits::default(),
        };
        let volume =
            host.open(&pool, clone, open, deadline()).await.map_err(|error| format!("open: {error}"))?;
        let bytes = volume.read(0, BLOCKS * BLOCK_BYTES).await.map_err(|error| format!("read: {error}"))?;
        self.site.model.check_cut(name, cut, &marks_in(&bytes, 0)?);
        volume.close().await.map_err(|error| format!("close: {error}"))?;
        unpublish(&log, &process.name, deadline()).await.map_err(|error| format!("unpublish: {error}"))
    }

    async fn look_at_snapshots(&self, log: &Log) -> Result<(), String> {
        let control = describe(log, deadline()).await.map_err(|error| format!("describe: {error}"))?;
        let live = control.snapshots.iter().filter(|(_, found)| !found.deleted);
        let found: Vec<(SnapshotId, &str)> = live.map(|(id, found)| (*id, found.name.as_str())).collect();
        let taken = self.site.model.taken();
        for (id, name) in &taken {
            if !found.contains(&(*id, name)) {
                self.site.model.violation(format!("snapshot {name} is gone"));
            }
        }
        for (id, name) in found {
            let (pages, lineage, cache) = self.site.sources(log);
            let reader = snapshot::reader(log, id, pages, lineage, cache, deadline()).await;
            let reader = reader.map_err(|error| format!("snapshot {name}: {error}"))?;
            let mut bytes = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
            let read = reader.read(0, BLOCKS, &mut bytes).await;
            read.map_err(|error| format!("snapshot {name}: {error}"))?;
            match marks_in(&bytes, 0) {
                Ok(blocks) => self.site.model.check_cut("the map", name, &blocks),
                Err(what) => self.site.model.violation(format!("snapshot {name}: {what}")),
            }
        }
        Ok(())
    }
}
