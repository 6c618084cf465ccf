//! What happens to the volume: which node it is given to, what dies, and what is looked at in the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::buffer::MemoryRegion;
use holdfast_engine::control::{PublishError, describe, publish, unpublish};
use holdfast_engine::gc::Collector;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, ObjectId, SnapshotId};
use holdfast_engine::log::{Control, Decision, GrantMode, Log, LogError, Op};
use holdfast_engine::map::{MapError, MapView, live_blocks};
use holdfast_engine::pool::layout;
use holdfast_engine::snapshot;
use holdfast_engine::volume::Volume;
use tokio::time::{Instant, sleep};

use crate::chance::Chance;
use crate::client::{Place, Site, serve};
use crate::faults::Faults;
use crate::memory::MEMORY_BYTES;
use crate::model::{BLOCKS, marks_in};
use crate::process::Process;

const NODES: [&str; 2] = ["a", "b"];
/// Rounds after which no garbage is left: one finds it, one deletes it, and rewriting makes some anew.
const ROUNDS: usize = 6;
/// How long a controller tries.
const PATIENCE: Duration = Duration::from_secs(60);

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
}

fn memory() -> Arc<MemoryRegion> {
    Arc::new(MemoryRegion::new(MEMORY_BYTES))
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

impl Director {
    pub fn new(site: Arc<Site>) -> Self {
        let chance = site.world.chance.fork();
        let controllers =
            ["controller 1", "controller 2"].map(|name| site.log(&Arc::new(Process::new(name.into()))));
        let nodes = NODES.iter().enumerate().map(|(memory_number, name)| Node {
            name,
            memory: memory(),
            memory_number,
            process: None,
            grant: None,
        });
        let nodes = nodes.collect();
        Self { site, chance, nodes, controllers, lives: 0, memories: NODES.len() }
    }

    /// Creates the volume.
    pub async fn create(&self) -> Result<(), LogError> {
        let create = |control: &Control| {
            Ok(if control.last.is_none() {
                Decision::Append(vec![Op::Create { size_bytes: BLOCKS * BLOCK_BYTES }])
            } else {
                Decision::Answer(())
            })
        };
        self.controllers[0].decide(deadline(), create).await.map(|_| ())
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
                    self.nodes[node].memory = memory();
                    self.nodes[node].memory_number = self.memories;
                    self.memories += 1;
                    self.restart(node);
                }
                12..14 => self.doom(node),
                14..16 => self.pause(node),
                16 => self.detach(node).await,
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
        *process = Some(Arc::clone(&life));
        let place = Place { process: life, memory: Arc::clone(memory), memory_number: *memory_number };
        tokio::spawn(serve(Arc::clone(&self.site), place, grant));
    }

    /// The node's process will die soon, in the middle of something.
    fn doom(&self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        if self.chance.hits(500) {
            process.kill_at_call(self.chance.among(0..20));
        } else {
            process.kill_at_copy(self.chance.among(0..20));
        }
    }

    fn pause(&self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let pause = self.chance.delay(100..2 * 3600 * 1000);
        self.note(format_args!("{} is paused for {pause:?}", process.name));
        process.pause_until(Instant::now() + pause);
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
        let place = Place { process, memory: memory(), memory_number: self.memories };
        let opened = self.site.open(&place, grant, &self.chance).await;
        let Some((volume, session)) = opened.map_err(|error| format!("open: {error}"))? else {
            return Err("somebody has opened the volume who must not".into());
        };
        self.look_at_snapshots(&log).await?;
        self.collect(&volume).await?;
        // When everything that was late has come, nothing is left that nothing needs.
        if round == 1 {
            self.look_for_garbage(&log, &volume).await?;
        }
        let bytes = volume.read(0, BLOCKS * BLOCK_BYTES).await.map_err(|error| format!("read: {error}"))?;
        if marks_in(&bytes, 0)? != self.site.model.expected(session) {
            return Err("a block has changed while garbage was collected".into());
        }
        self.look_at_snapshots(&log).await?;
        volume.close().await.map_err(|error| format!("close: {error}"))
    }

    /// Collects until there is nothing left to do.
    async fn collect(&self, volume: &Volume) -> Result<(), String> {
        let mut collector = Collector::new(volume.clone());
        for _ in 0..ROUNDS {
            let round = collector.round().await.map_err(|error| format!("collect: {error}"))?;
            self.note(format_args!("the witness collects: {round:?}"));
            sleep(Duration::from_secs(60)).await;
        }
        Ok(())
    }

    /// Every segment in the store must be named by the head or by a snapshot.
    async fn look_for_garbage(&self, log: &Log, volume: &Volume) -> Result<(), String> {
        let failed = |error: MapError| format!("walk: {error}");
        let mut needed: BTreeSet<ObjectId> = BTreeSet::new();
        let head = volume.frozen().ok_or("no head")?;
        needed.extend(live_blocks(&head).await.map_err(failed)?.into_keys().map(|segment| segment.id));
        let control = describe(log, deadline()).await.map_err(|error| format!("describe: {error}"))?;
        for id in control.snapshots.keys() {
            let found =
                snapshot::find(log, *id, deadline()).await.map_err(|error| format!("find: {error}"))?;
            let view = MapView::from_stored(head.source().clone(), &found.map.map);
            needed.extend(live_blocks(&view).await.map_err(failed)?.into_keys().map(|segment| segment.id));
        }
        let there = self.site.world.list(&layout::segments(log.volume)).into_keys();
        let garbage: Vec<String> =
            there.filter(|key| layout::object_id_in(key).is_none_or(|id| !needed.contains(&id))).collect();
        if garbage.is_empty() { Ok(()) } else { Err(format!("garbage is left: {garbage:?}")) }
    }

    async fn look_at_snapshots(&self, log: &Log) -> Result<(), String> {
        let control = describe(log, deadline()).await.map_err(|error| format!("describe: {error}"))?;
        let found: Vec<(SnapshotId, &str)> =
            control.snapshots.iter().map(|(id, found)| (*id, found.name.as_str())).collect();
        for name in self.site.model.taken() {
            if found.iter().all(|(_, found)| *found != name) {
                self.site.model.violation(format!("snapshot {name} is gone"));
            }
        }
        for (id, name) in found {
            let (pages, lineage, cache) = self.site.sources(log);
            let reader = match snapshot::reader(log, id, pages, lineage, cache, deadline()).await {
                Ok(reader) => reader,
                // Taken by a session that died before its checkpoint; the session now open writes the map in time.
                Err(snapshot::SnapshotError::Incomplete { .. })
                    if !self.site.model.taken().iter().any(|taken| taken == name) =>
                {
                    continue;
                }
                Err(error) => return Err(format!("snapshot {name}: {error}")),
            };
            let mut bytes = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
            let read = reader.read(0, BLOCKS, &mut bytes).await;
            read.map_err(|error| format!("snapshot {name}: {error}"))?;
            match marks_in(&bytes, 0) {
                Ok(blocks) => self.site.model.check_cut(name, &blocks),
                Err(what) => self.site.model.violation(format!("snapshot {name}: {what}")),
            }
        }
        Ok(())
    }
}
