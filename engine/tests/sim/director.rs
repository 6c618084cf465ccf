//! What happens to a volume: which node it is given to, what dies, what is made of it.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::buffer::MemoryRegion;
use holdfast_engine::control::{PublishError, publish, unpublish};
use holdfast_engine::ids::GrantId;
use holdfast_engine::log::{GrantMode, Log, LogError};
use tokio::time::{Instant, sleep};

use crate::chance::Chance;
use crate::client::{Place, Site};
use crate::disk::LocalDisk;
use crate::estate::{Estate, Handled};
use crate::journal::JournalSpace;
use crate::memory;
use crate::node::{serve, settle_journals};
use crate::process::{Process, Trap};

const NODES: [&str; 3] = ["a", "b", "c"];
/// How long a controller tries.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a node looks after its journals in the end.
const ATTEMPTS: usize = 5;

/// A node.
#[derive(Debug)]
struct Node {
    name: &'static str,
    memory: Arc<MemoryRegion>,
    memory_number: usize,
    disk: Option<Arc<LocalDisk>>,
    journal: Option<Arc<JournalSpace>>,
    process: Option<Arc<Process>>,
    grant: Option<GrantId>,
}

/// Decides what happens.
#[derive(Debug)]
pub struct Director {
    estate: Arc<Estate>,
    pub site: Arc<Site>,
    chance: Chance,
    nodes: Vec<Node>,
    controllers: [Log; 2],
    lives: usize,
    /// The node that was given the volume last.
    holder: usize,
    /// Memories and disks that nodes have had.
    numbers: usize,
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Takes the volume back from `node`, which fences it: the model is told.
pub async fn detach(site: &Site, log: &Log, node: &str) -> Result<(), LogError> {
    let grants = site.model.grants_of(node);
    unpublish(log, node, deadline()).await?;
    site.model.revoked(&grants);
    Ok(())
}

impl Director {
    pub fn new(estate: Arc<Estate>, site: Arc<Site>) -> Self {
        let chance = site.world.chance.fork();
        let controllers = ["controller 1", "controller 2"]
            .map(|name| site.log(&Arc::new(Process::new(format!("{name} of {}", site.name)))));
        // Some nodes of some runs have a disk.
        let disks = chance.hits(250);
        // Some volumes have journals.
        let journals = chance.hits(350);
        let nodes = NODES.iter().enumerate().map(|(number, name)| Node {
            name,
            memory: memory::fresh(),
            memory_number: number,
            disk: (disks && chance.hits(700)).then(LocalDisk::fresh),
            journal: journals.then(|| JournalSpace::fresh(number, &chance)),
            process: None,
            grant: None,
        });
        let nodes = nodes.collect();
        Self { estate, site, chance, nodes, controllers, lives: 0, holder: 0, numbers: NODES.len() }
    }

    /// Lets so many things happen.
    pub async fn run(&mut self, steps: std::ops::Range<u64>) {
        for _ in 0..self.chance.among(steps) {
            let node = self.chance.among(0..NODES.len() as u64) as usize;
            match self.chance.among(0..26) {
                0..4 => self.attach(node).await,
                4..7 => {
                    self.detach(node).await;
                    self.attach((node + 1) % NODES.len()).await;
                }
                7 => self.race(node).await,
                8..11 => self.restart(node),
                11 => self.lose_power(node),
                12..14 => self.doom(node),
                14..16 => self.pause(node),
                16 => self.detach(node).await,
                17..20 if self.nodes[node].journal.is_some() && self.chance.hits(500) => {
                    if self.chance.hits(500) {
                        // While a successor has just begun with what a killed process has left unsynced.
                        self.restart(self.holder);
                        sleep(self.chance.delay(1..100)).await;
                    }
                    self.lose_power(self.holder);
                }
                17..20 => self.clone_something(),
                20..24 if self.estate.archives => self.archive_something(),
                24 => self.estate.begin_tending(&self.site),
                25 => self.fail_disk(node),
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
                self.holder = node;
                let same = self.nodes[node].grant.replace(grant) == Some(grant);
                let process = self.nodes[node].process.as_ref();
                let serves = process.is_some_and(|process| !process.is_dead() && !process.leaves());
                if !same || !serves {
                    self.restart(node);
                }
            }
            Err(error) => self.note(format_args!("not published to {name}: {error}")),
        }
    }

    async fn detach(&self, node: usize) {
        let name = self.nodes[node].name;
        if let Some(process) = self.nodes[node].process.as_ref().filter(|_| self.chance.hits(500)) {
            process.ask_to_leave();
            sleep(self.chance.delay(10..30_000)).await;
        }
        match detach(&self.site, &self.controllers[0], name).await {
            Ok(()) => self.note(format_args!("unpublished from {name}")),
            Err(error) => self.note(format_args!("not unpublished from {name}: {error}")),
        }
    }

    /// Two controllers move the volume at once, to two nodes.
    async fn race(&mut self, node: usize) {
        let site = &self.site;
        let moves = |log: Log, from: &'static str, to: &'static str, wait: Duration| async move {
            sleep(wait).await;
            detach(site, &log, from).await?;
            publish(&log, to, GrantMode::ReadWrite, deadline()).await
        };
        let other = (node + 1) % NODES.len();
        let (here, there) = (self.nodes[node].name, self.nodes[other].name);
        let [first, second] = self.controllers.clone();
        let wait = self.chance.delay(1..500);
        let (there_outcome, here_outcome) = tokio::join!(
            biased;
            moves(first, here, there, Duration::ZERO),
            moves(second, there, here, wait)
        );
        self.attached(other, there_outcome);
        self.attached(node, here_outcome);
    }

    /// A number for a memory or a disk that a node has from now on.
    fn next_number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }

    /// The node goes down, and what was in its memory is gone. It may come back without its disk.
    fn lose_power(&mut self, node: usize) {
        if let Some(process) = &self.nodes[node].process {
            process.kill();
        }
        self.nodes[node].memory = memory::fresh();
        self.nodes[node].memory_number = self.next_number();
        if let Some(disk) = &self.nodes[node].disk {
            disk.lose_power(&self.chance);
        }
        if let Some(journal) = &self.nodes[node].journal {
            match self.chance.hits(150) {
                true => self.lose_journal(node),
                false => journal.lose_power(&self.chance),
            }
        }
        self.restart(node);
    }

    /// The node's disk is replaced while no process has it open.
    fn lose_journal(&mut self, node: usize) {
        let number = self.next_number();
        self.note(format_args!("{} has lost its disk", self.nodes[node].name));
        self.nodes[node].journal = Some(JournalSpace::fresh(number, &self.chance));
    }

    fn fail_disk(&mut self, node: usize) {
        if let Some(disk) = &self.nodes[node].disk {
            disk.fail(&self.chance);
        }
        match &self.nodes[node].journal {
            Some(journal) if self.chance.hits(700) => journal.fail(&self.chance),
            Some(_) => {
                if let Some(process) = &self.nodes[node].process {
                    process.kill();
                }
                self.lose_journal(node);
                self.restart(node);
            }
            None => {}
        }
    }

    /// The node's process dies, and another one begins under the grant that the node knows.
    fn restart(&mut self, node: usize) {
        let Node { name, memory, memory_number, disk, journal, process, grant } = &mut self.nodes[node];
        if let Some(process) = process {
            process.kill();
        }
        let Some(grant) = *grant else { return };
        self.lives += 1;
        let life = Arc::new(Process::new(format!("{name}{} of {}", self.lives, self.site.name)));
        if self.chance.hits(200) {
            // Before its Open, when it has looked at everything else.
            life.set_trap("/log/", Trap::Pause(self.chance.delay(1_000..600_000)));
        }
        *process = Some(Arc::clone(&life));
        let place = Place {
            process: life,
            memory: Arc::clone(memory),
            memory_number: *memory_number,
            disk: disk.clone(),
            journal: journal.clone(),
        };
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

    /// Somebody begins to make a clone of one of the snapshots, or of one of the points.
    fn clone_something(&self) {
        let model = &self.site.model;
        let points = model.points().into_iter().filter(|point| !point.removed);
        let points = points.filter_map(|point| Some((Handled::Point(point.handle?), point.cut)));
        let cuts = model.taken().into_iter().map(|(id, cut)| (Handled::Snapshot(id), cut));
        let mut sources: Vec<(Handled, String)> = points.chain(cuts).collect();
        if !sources.is_empty() {
            let (source, cut) = sources.swap_remove(self.chance.among(0..sources.len() as u64) as usize);
            self.estate.begin_clone(&self.site, cut, source);
        }
    }

    /// Somebody begins to archive one of the snapshots, or to remove a point.
    fn archive_something(&self) {
        let points: Vec<_> = self.site.model.points().into_iter().filter(|point| !point.removed).collect();
        if points.len() > 1 && self.chance.hits(300) {
            return self.estate.begin_expiry(&self.site, &points[0]);
        }
        let mut taken = self.site.model.taken();
        if !taken.is_empty() {
            let (id, cut) = taken.swap_remove(self.chance.among(0..taken.len() as u64) as usize);
            self.estate.begin_archive(&self.site, cut, id);
        }
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

    /// When everything else is done, each node settles the journals that are left on it.
    pub async fn settle_journals(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let number = self.next_number();
            let Node { name, journal: Some(space), .. } = &self.nodes[node] else { continue };
            space.repair();
            let process = Arc::new(Process::new(format!("last of {name} of {}", self.site.name)));
            let journal = Some(Arc::clone(space));
            let place =
                Place { process, memory: memory::fresh(), memory_number: number, disk: None, journal };
            // The disk may be slow, so that somebody has to come again.
            let mut wait = 0;
            for _ in 0..ATTEMPTS {
                wait = settle_journals(&self.site, &place, None, &self.chance).await;
                if wait == 0 {
                    break;
                }
                sleep(PATIENCE).await;
            }
            if wait > 0 {
                return Err(format!("{wait} journals are left on {name}"));
            }
        }
        Ok(())
    }

    /// All processes that use the volume die.
    pub fn kill_all(&self) {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).for_each(|process| process.kill());
    }
}
