//! A node's process: opens the volume and uses it, until it dies or its session is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::buffer::{Budget, DirtyBuffer, MemoryRegion, Ring};
use holdfast_engine::cache::{ChunkCache, MemoryCache, Tiers};
use holdfast_engine::codec::{Codec, DataKey, UserKey};
use holdfast_engine::gc::{self, Rhythm};
use holdfast_engine::host::Host;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, RecordNumber, SnapshotId, VolumeId};
use holdfast_engine::journal::{JournalName, JournaledBuffer, Journals, Owner, Patience};
use holdfast_engine::lineage::{Lineage, Source};
use holdfast_engine::log::{Log, Op};
use holdfast_engine::map::{MapError, PageCache, PageLimits, VolumePages};
use holdfast_engine::pool::{Access, Pool, PoolError, PoolKind, PoolSet};
use holdfast_engine::store::StoreError;
use holdfast_engine::volume::{
    AheadLimits, FetchError, Hydrate, Hydration, Limits, OpenError, OpenOptions, Over, Volume, VolumeError,
    hydrate,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};

use crate::chance::{self, Chance};
use crate::disk::LocalDisk;
use crate::faults::Faults;
use crate::journal::{JournalSpace, NodeJournals, Reached, SessionBuffer};
use crate::marks::{BLOCKS, bytes_of, differences, marks_in};
use crate::memory::Mapped;
use crate::model::{Model, Opening, SessionRef};
use crate::process::Process;
use crate::session::InJournal;
use crate::store::SimStore;
use crate::world::{Bucket, World};

/// How long an opener tries.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Writes and discards of one session: enough for anything that takes many.
const WRITES: usize = 250;
/// Flushes, snapshots and deletions of one session.
const FLUSHES: usize = 150;

/// The keys of the places in the store, of those that are encrypted.
#[derive(Debug, Default)]
pub struct Keys {
    pub pool: Option<UserKey>,
    pub target: Option<UserKey>,
}

/// One volume in the pool, and what all who use it share.
#[derive(Debug)]
pub struct Site {
    pub name: String,
    pub world: Arc<World>,
    pub model: Model,
    pub volume: VolumeId,
    pub key: Option<DataKey>,
    /// The volumes that it descends from.
    pub ancestors: Vec<Ancestor>,
    pub keys: Arc<Keys>,
    /// The weather that the run began with.
    pub weather: Faults,
}

/// A volume that others descend from.
#[derive(Debug, Clone)]
pub struct Ancestor {
    pub bucket: Bucket,
    pub volume: VolumeId,
    pub key: Option<DataKey>,
}

/// A session.
#[derive(Debug)]
pub struct Opened {
    pub volume: Volume,
    pub session: SessionRef,
    /// Where its Open lies in the log.
    pub at: RecordNumber,
    buffer: Arc<SessionBuffer>,
    process: Arc<Process>,
}

impl Opened {
    /// Flushes, and says in `model` what is acknowledged, and by what.
    pub async fn flush(&self, model: &Model) -> Result<(), VolumeError> {
        let (writes, began) = (model.count(self.session), Instant::now());
        let flushed = self.volume.flush().await;
        self.process.live().await;
        flushed?;
        match self.buffer.journaled() {
            true => model.journaled(self.session, writes, began),
            false => model.stored(self.session, writes),
        }
        Ok(())
    }

    /// The buffer and the journal in which flushes end.
    pub fn buffer(&self) -> Arc<JournaledBuffer> {
        Arc::clone(&self.buffer.inner)
    }

    /// Puts everything into the store.
    pub async fn drain(&self, model: &Model) -> Result<(), VolumeError> {
        let writes = model.count(self.session);
        let drained = self.volume.drain().await;
        self.process.live().await;
        drained.map(|()| model.stored(self.session, writes))
    }

    /// Closes the volume. Everything is in the store then, and nothing waits in the journal.
    pub async fn close(&self, model: &Model) -> Result<(), VolumeError> {
        let writes = model.count(self.session);
        self.volume.close().await?;
        model.stored(self.session, writes);
        if let Some(waiting) = self.buffer.inner.journal().map(|journal| journal.waiting())
            && waiting.entries > 0
        {
            model.violation(format!("{} is closed, and its journal has {waiting:?}", self.process.name));
        }
        Ok(())
    }
}

/// A node, as one of its processes finds it.
#[derive(Debug, Clone)]
pub struct Place {
    pub process: Arc<Process>,
    pub memory: Arc<MemoryRegion>,
    /// Tells one memory from the one that a node gets when it has lost it.
    pub memory_number: usize,
    /// Where it keeps chunks; in memory only if it has no disk.
    pub disk: Option<Arc<LocalDisk>>,
    /// Where the volume's journals lie, if its durability is that.
    pub journal: Option<Arc<JournalSpace>>,
}

/// What a process brings to volumes, and the two places in the store.
#[derive(Debug, Clone)]
pub struct Visitor {
    pub host: Host,
    pub pool: Arc<Pool>,
    pub target: Arc<Pool>,
}

impl Visitor {
    /// What `process` brings.
    pub async fn new(world: &Arc<World>, keys: &Keys, process: &Arc<Process>) -> Result<Self, PoolError> {
        let env = chance::env(&world.chance, world.start);
        let open = async |name, bucket, key: &Option<UserKey>| {
            let store = SimStore { world: Arc::clone(world), process: Arc::clone(process), bucket };
            Pool::over(name, "simulated", Arc::new(store), key.as_ref(), Access::ReadWrite, env.clone()).await
        };
        let pool = open("pool", Bucket::Pool, &keys.pool).await?;
        let target = open("target", Bucket::Target, &keys.target).await?;
        let both = [(PoolKind::Pool, Arc::clone(&pool)), (PoolKind::Target, Arc::clone(&target))];
        let pools = PoolSet::of(both, env);
        let (pages, cache) = (page_cache(), MemoryCache::new(64 << 10));
        Ok(Self { host: Host { pools: Arc::new(pools), pages, cache: Arc::new(cache) }, pool, target })
    }
}

/// Volumes of a hundred blocks, with maps of several pages, packs and indexes.
fn page_cache() -> Arc<PageCache> {
    let limits = PageLimits { page_bytes: 240, pack_pages: 3, index_pages: 4, inline_pages: 3 };
    PageCache::for_pages(limits, 64 << 10)
}

impl Site {
    /// The volume's log, as `process` reaches it.
    pub fn log(&self, process: &Arc<Process>) -> Log {
        let env = chance::env(&self.world.chance, self.world.start);
        let store = self.store(process, Bucket::Pool);
        Log { store: Arc::new(store), volume: self.volume, key: self.key.clone(), env }
    }

    fn store(&self, process: &Arc<Process>, bucket: Bucket) -> SimStore {
        SimStore { world: Arc::clone(&self.world), process: Arc::clone(process), bucket }
    }

    /// What `process` brings to the volumes.
    pub async fn visitor(&self, process: &Arc<Process>) -> Result<Visitor, PoolError> {
        Visitor::new(&self.world, &self.keys, process).await
    }

    /// The ancestors whose blocks are copied into the pool.
    pub fn foreign(&self) -> BTreeSet<VolumeId> {
        let foreign = self.ancestors.iter().filter(|ancestor| ancestor.bucket == Bucket::Target);
        foreign.map(|ancestor| ancestor.volume).collect()
    }

    /// The volume's pages and where its chunks lie, as the owner of `log`, which is `process`, reaches them.
    pub fn sources(&self, process: &Arc<Process>, log: &Log) -> (Arc<VolumePages>, Lineage) {
        let lineage = Lineage::default();
        lineage.insert(log.volume, Source { store: Arc::clone(&log.store), key: log.key.clone() });
        for Ancestor { bucket, volume, key } in &self.ancestors {
            let store = Arc::new(self.store(process, *bucket));
            lineage.insert(*volume, Source { store, key: key.clone() });
        }
        let pages = VolumePages::new(page_cache(), lineage.clone(), log.volume, log.env.clone());
        (pages, lineage)
    }

    fn limits(chance: &Chance, has_journal: bool) -> Limits {
        Limits {
            segment_bytes: 16 << chance.among(10..13),
            inline_bytes: chance.among(0..3) * (8 << 10),
            // Longer with a journal, so that more of what it has acknowledged is nowhere else.
            age: if has_journal { chance.delay(500..60_000) } else { chance.delay(50..5_000) },
            checkpoint_records: chance.among(1..12),
            // An entry takes some 40 bytes: often so few that appends wait for checkpoints.
            checkpoint_map_bytes: 256 << chance.among(0..8),
            replay_map_bytes: 512 << chance.among(0..8),
            // The grace time is only the second line of defence: nothing may depend on it.
            outage: Duration::from_secs(30),
            codec: [Codec::Raw, Codec::Lz4, Codec::Zstd][chance.among(0..3) as usize],
            grace: if chance.hits(700) { Duration::ZERO } else { chance.delay(100..30_000) },
            ahead: AheadLimits {
                jump_blocks: chance.among(0..16),
                long_blocks: chance.among(2..8),
                window_blocks: 16 << chance.among(0..3),
                step_blocks: chance.among(1..32),
            },
        }
    }

    /// The name of the volume's journal under a grant.
    pub fn journal_name(&self, grant: GrantId) -> JournalName {
        JournalName { volume: self.volume.to_string(), grant }
    }

    /// The journals on the disk `space` of a node.
    pub fn journals(&self, place: &Place, space: &Arc<JournalSpace>, chance: &Chance) -> NodeJournals {
        let reached = Reached {
            space: Arc::clone(space),
            process: Arc::clone(&place.process),
            chance: chance.fork(),
            world: Arc::clone(&self.world),
            model: self.model.clone(),
            log: self.log(&place.process),
        };
        let patience = Patience { log: chance.delay(300..20_000), ..Patience::default() };
        let journals = Journals::over(Arc::new(reached.clone()), space.len_bytes, patience);
        NodeJournals { journals, lies: InJournal { disk: space.number, patience: patience.log }, reached }
    }

    /// The volume's dirty buffer on a node. `None` if the node does not give back a journal that is there.
    async fn buffer(
        &self,
        place: &Place,
        grant: GrantId,
        chance: &Chance,
    ) -> Result<Option<SessionBuffer>, OpenError> {
        let region = Mapped {
            memory: Arc::clone(&place.memory),
            process: Arc::clone(&place.process),
            chance: chance.fork(),
        };
        // Memory is always tight, so that what is freed is given back.
        let ring = Arc::new(Ring::open(Arc::new(region), &Budget::new(0))?);
        // Now and then the volume's durability is remote at first; what a journal has counts all the same.
        let remote = chance.hits(150);
        let Some(space) = &place.journal else {
            return Ok(Some(SessionBuffer::new(Arc::new(JournaledBuffer::new(ring, None)), None)));
        };
        let node = self.journals(place, space, chance);
        node.reached.try_with(grant).await;
        let (name, owner) = (self.journal_name(grant), Owner::of(&node.reached.log, grant));
        match node.journals.buffer(&name, owner, ring, !remote).await {
            Ok(buffer) => {
                let lies = buffer.journal().map(|_| node.lies);
                if lies.is_some() {
                    node.reached.opened(&name);
                }
                Ok(Some(SessionBuffer::new(Arc::new(buffer), lies)))
            }
            Err(error) => {
                node.failed(&error);
                Ok(None)
            }
        }
    }

    /// Opens the volume, and reads all of it. `None` if the session is over by then, or a later one was opened.
    pub async fn open(
        &self,
        place: &Place,
        grant: GrantId,
        chance: &Chance,
    ) -> Result<Option<Opened>, OpenError> {
        let log = self.log(&place.process);
        let (pages, lineage) = self.sources(&place.process, &log);
        // With room for nothing, or for some of what is read ahead.
        let memory =
            Arc::new(MemoryCache::new([0, 64 << 10, 256 << 10, 1 << 20][chance.among(0..4) as usize]));
        let disk = place.disk.as_ref().map(|disk| Arc::new(disk.open(&place.process, chance)));
        let cache: Arc<dyn ChunkCache> = Arc::new(Tiers { memory, disk });
        let Some(buffer) = self.buffer(place, grant, chance).await? else { return Ok(None) };
        let buffer = Arc::new(buffer);
        let options = OpenOptions {
            grant,
            endpoint: String::new(),
            buffer: Arc::clone(&buffer) as Arc<dyn DirtyBuffer>,
            cache,
            pages,
            lineage,
            limits: Self::limits(chance, buffer.journal().is_some()),
        };
        let name = &place.process.name;
        let revoked = self.model.is_revoked(grant);
        let volume = Volume::open(log.clone(), options, Instant::now() + PATIENCE).await?;
        if revoked {
            self.model.violation(format!("{name} opens the volume under a grant that was taken back"));
        }
        let Some(opened) = self.world.number_of(self.volume, volume.session()) else {
            self.model.violation(format!("{name} has opened the volume, and its Open has no effect"));
            return Ok(None);
        };
        self.world.note(format_args!("{name} has opened the volume at {opened}"));
        let bytes = loop {
            match volume.read(0, BLOCKS * BLOCK_BYTES).await {
                Ok(bytes) => break bytes,
                Err(error) if self.goes_on(name, opened, "read", &error) => {}
                Err(_) => return Ok(None),
            }
        };
        let blocks = match marks_in(&bytes, 0) {
            Ok(blocks) => blocks,
            Err(what) => {
                self.model.violation(format!("{name}: {what}"));
                return Ok(None);
            }
        };
        let (memory, journal) = (place.memory_number, buffer.journal());
        let session =
            self.model.opened(Opening { name: name.clone(), opened, grant, memory, journal, blocks });
        let process = Arc::clone(&place.process);
        Ok(session.map(|session| Opened { volume, session, at: opened, buffer, process }))
    }

    /// Whether a client goes on after an error. Errors that no failure of the store explains are violations.
    pub fn goes_on(&self, name: &str, opened: RecordNumber, what: &str, error: &VolumeError) -> bool {
        self.world.note(format_args!("{name} {what}: {error}"));
        let refuses = self.weather.refused > 0;
        // Whoever owns the volume now may have collected what this session still names, and does not know it yet.
        let superseded = || self.world.ended_since(self.volume, opened);
        match error {
            VolumeError::Over { reason: Over::Superseded { .. }, .. } if superseded() => return false,
            VolumeError::Over { reason: Over::Fenced | Over::Closed, .. } => return false,
            VolumeError::Over { reason: Over::Broken { .. }, .. } if refuses => return false,
            VolumeError::NotCommitted { .. }
            | VolumeError::Read { reason: FetchError::Store(_), .. }
            | VolumeError::Log { .. }
            | VolumeError::Store { .. }
            | VolumeError::NoAnswer { .. } => return true,
            VolumeError::Map { reason, .. } if is_outage(reason) => return true,
            VolumeError::Read { reason: FetchError::Gone { .. }, .. } | VolumeError::Map { .. }
                if superseded() =>
            {
                return false;
            }
            VolumeError::Over { reason: Over::Broken { .. }, .. } if superseded() => return false,
            VolumeError::Over { .. }
            | VolumeError::Read { .. }
            | VolumeError::Map { .. }
            | VolumeError::Buffer { .. }
            | VolumeError::Codec { .. }
            | VolumeError::OutOfRange { .. }
            | VolumeError::Illegal { .. } => {}
        }
        self.model.violation(format!("{name} {what}: {error}"));
        false
    }
}

/// Whether the map could not be read because of the weather.
fn is_outage(error: &MapError) -> bool {
    match error {
        MapError::Store(StoreError::NotFound { .. }) => false,
        MapError::Store(_) => true,
        _ => false,
    }
}

/// Uses a volume as long as its session lasts, or until the process is asked to let go of it. Whether it has it open in
/// the end.
pub async fn use_volume(site: &Arc<Site>, place: &Place, grant: GrantId, chance: &Chance) -> Option<Opened> {
    let name = &place.process.name;
    let opened = match site.open(place, grant, chance).await {
        Ok(opened) => opened?,
        Err(error) => {
            // One that died in the middle of a copy may find its own torn entry, and tells nobody.
            place.process.live().await;
            site.world.note(format_args!("{name} could not open the volume: {error}"));
            if let OpenError::Buffer(error) = error {
                site.model.violation(format!("{name}: {error}"));
            }
            return None;
        }
    };
    let client = Client { site, place, grant, opened: &opened };
    let (writer, flusher) = (chance.fork(), chance.fork());
    let rhythm = Rhythm { bytes: chance.among(1..8) << 15, records: chance.among(2..24) };
    let uses = async {
        // Each ends when the session is over.
        tokio::join!(
            biased;
            client.write(&writer),
            client.flush(&flusher),
            client.collect(rhythm),
            client.hydrate()
        );
    };
    tokio::select! {
        biased;
        () = uses => {}
        () = place.process.asked_to_leave() => {}
    }
    Some(opened)
}

/// What reads and writes an open volume.
struct Client<'a> {
    site: &'a Site,
    place: &'a Place,
    grant: GrantId,
    opened: &'a Opened,
}

impl Client<'_> {
    fn goes_on(&self, what: &str, error: &VolumeError) -> bool {
        self.site.goes_on(self.name(), self.opened.at, what, error)
    }

    /// Collects garbage.
    async fn collect(&self, rhythm: Rhythm) {
        let turns = Arc::new(Semaphore::new(1));
        let over = gc::maintain(self.volume().clone(), rhythm, turns).await;
        self.place.process.live().await;
        self.goes_on("collect", &over);
    }

    /// Copies what still lies in the archive.
    async fn hydrate(&self) {
        let foreign = self.site.foreign();
        if foreign.is_empty() {
            return;
        }
        let (progress, seen) = watch::channel(Hydration::default());
        let hydrated = hydrate(self.volume().clone(), Hydrate::unlimited(foreign), progress).await;
        self.place.process.live().await;
        let seen = *seen.borrow();
        match hydrated {
            Ok(()) => self.site.world.note(format_args!("{} is hydrated: {seen:?}", self.name())),
            Err(over) => {
                self.goes_on("hydrate", &over);
            }
        }
    }

    fn volume(&self) -> &Volume {
        &self.opened.volume
    }

    fn name(&self) -> &str {
        &self.place.process.name
    }

    fn model(&self) -> &Model {
        &self.site.model
    }

    /// Writes, discards and reads, one after the other.
    async fn write(&self, chance: &Chance) {
        // Where somebody reads on who reads the volume from one end to the other.
        let mut reads_on = 0;
        while self.model().count(self.opened.session) < WRITES {
            let blocks = if chance.hits(100) { chance.among(10..60) } else { chance.among(1..6) };
            let kind = chance.among(0..10);
            let from = match kind {
                0..8 => chance.among(0..BLOCKS - blocks + 1),
                _ => reads_on,
            };
            let range = from..BLOCKS.min(from + blocks);
            let (offset, len) = (from * BLOCK_BYTES, (range.end - from) * BLOCK_BYTES);
            let (what, outcome) = match kind {
                0..6 => {
                    let mark = self.model().begins(self.opened.session, range.clone(), true);
                    ("write", self.volume().write(offset, bytes_of(mark, range.clone())).await)
                }
                6 => {
                    self.model().begins(self.opened.session, range.clone(), false);
                    ("discard", self.volume().discard(offset, len).await)
                }
                _ => {
                    if kind > 7 {
                        reads_on = range.end % BLOCKS;
                    }
                    let read = self.volume().read(offset, len).await;
                    ("read", read.map(|bytes| self.check_read(range.clone(), &bytes)))
                }
            };
            // The process may have died while it copied into its buffer: then nobody has the answer.
            self.place.process.live().await;
            match outcome {
                Ok(()) => self.model().answered(self.opened.session),
                Err(error) => {
                    if !self.goes_on(what, &error) || what != "read" {
                        return;
                    }
                }
            }
            self.site.world.note(format_args!("{} {what} {range:?}", self.name()));
            if chance.hits(200) {
                sleep(chance.delay(1..8_000)).await;
            }
        }
    }

    fn check_read(&self, range: std::ops::Range<u64>, bytes: &[u8]) {
        let expected = &self.model().expected(self.opened.session)[range.start as usize..range.end as usize];
        match marks_in(bytes, range.start) {
            Ok(found) if found == expected => {}
            Ok(found) => {
                let what = differences(expected, &found);
                self.model().violation(format!("{} reads {range:?} from its first: {what}", self.name()));
            }
            Err(what) => self.model().violation(format!("{}: {what}", self.name())),
        }
    }

    /// Lets flushes wait for the store from now on, or end in the volume's journal.
    async fn change_durability(&self, chance: &Chance) -> Result<(), VolumeError> {
        let (Some(space), buffer) = (&self.place.journal, &self.opened.buffer) else { return Ok(()) };
        if chance.hits(300) {
            buffer.inner.leave();
            return Ok(());
        }
        let journal = match buffer.inner.journal() {
            Some(_) => None,
            None => {
                let node = self.site.journals(self.place, space, chance);
                let (name, owner) =
                    (self.site.journal_name(self.grant), Owner::of(&node.reached.log, self.grant));
                match node.journals.open(&name, owner).await {
                    Ok(journal) => {
                        node.reached.opened(&name);
                        Some((journal, node.lies))
                    }
                    // Its durability stays what it was.
                    Err(error) => {
                        node.failed(&error);
                        return Ok(());
                    }
                }
            }
        };
        let (journal, lies) = journal.unzip();
        let joined = buffer.inner.join(journal);
        joined.map_err(|reason| VolumeError::Buffer { volume: self.volume().id(), reason })?;
        if let Some(lies) = lies {
            buffer.joined(lies);
            self.model().joined(self.opened.session, lies);
        }
        Ok(())
    }

    /// Flushes, takes snapshots and deletes them.
    async fn flush(&self, chance: &Chance) {
        let mut taken: Vec<(SnapshotId, String)> = Vec::new();
        // What puts everything into the store is rare where a journal has it.
        let kinds = if self.place.journal.is_some() { 80 } else { 20 };
        for number in 0..FLUSHES {
            sleep(chance.delay(1..6_000)).await;
            let outcome = match chance.among(0..kinds) {
                0..3 => {
                    let name = format!("{}.{number}", self.name());
                    self.model().cut_begins(self.opened.session, name.clone());
                    let snapshot = self.volume().snapshot(&name, "").await;
                    self.place.process.live().await;
                    snapshot.map(|id| {
                        self.model().cut_taken(self.opened.session, &name, id);
                        taken.push((id, name));
                    })
                }
                3..5 if !taken.is_empty() => {
                    let (snapshot, name) = taken.remove(chance.among(0..taken.len() as u64) as usize);
                    self.model().cut_deleted(&name);
                    let deleted = self.volume().append(vec![Op::DeleteSnapshot { snapshot }], false).await;
                    self.site.world.note(format_args!("{name} is deleted: {}", deleted.is_ok()));
                    deleted.map(|_| ())
                }
                5 => self.opened.drain(self.model()).await,
                6 => self.change_durability(chance).await,
                _ => self.opened.flush(self.model()).await,
            };
            match outcome {
                Ok(()) => {
                    let journaled = self.opened.buffer.journaled();
                    self.site.world.note(format_args!("{} is flushed, journaled: {journaled}", self.name()));
                }
                Err(error) if self.goes_on("flush", &error) => {}
                Err(_) => return,
            }
        }
    }
}
