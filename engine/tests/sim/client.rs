//! A node's process: opens the volume and uses it, until it dies or its session is over.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::buffer::{MemoryRegion, Ring};
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::codec::DataKey;
use holdfast_engine::gc::Collector;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, VolumeId};
use holdfast_engine::lineage::{Lineage, Source};
use holdfast_engine::log::Log;
use holdfast_engine::map::{MapError, PageCache, VolumePages};
use holdfast_engine::store::StoreError;
use holdfast_engine::volume::{FetchError, Limits, OpenError, OpenOptions, Over, Volume, VolumeError};
use tokio::time::{Instant, sleep};

use crate::chance::{self, Chance};
use crate::faults::Faults;
use crate::memory::Mapped;
use crate::model::{BLOCKS, Model, SessionRef, bytes_of, differences, marks_in};
use crate::process::Process;
use crate::store::SimStore;
use crate::world::World;

/// How long an opener tries.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Writes and discards of one session: enough for anything that takes many.
const WRITES: usize = 400;

/// One volume, and what all who use it share.
#[derive(Debug)]
pub struct Site {
    pub world: Arc<World>,
    pub model: Model,
    pub volume: VolumeId,
    pub key: Option<DataKey>,
    /// The weather that the run began with.
    pub weather: Faults,
}

/// A node, as one of its processes finds it.
#[derive(Debug, Clone)]
pub struct Place {
    pub process: Arc<Process>,
    pub memory: Arc<MemoryRegion>,
    /// Tells one memory from the one that a node gets when it has lost it.
    pub memory_number: usize,
}

impl Site {
    /// The volume's log, as `process` reaches it.
    pub fn log(&self, process: &Arc<Process>) -> Log {
        let store = SimStore { world: Arc::clone(&self.world), process: Arc::clone(process) };
        let env = chance::env(&self.world.chance, self.world.start);
        Log { store: Arc::new(store), volume: self.volume, key: self.key.clone(), env }
    }

    /// The volume's pages and chunks, as the owner of `log` reaches them.
    pub fn sources(&self, log: &Log) -> (Arc<VolumePages>, Lineage, Arc<MemoryCache>) {
        let lineage = Lineage::default();
        lineage.insert(log.volume, Source { store: Arc::clone(&log.store), key: log.key.clone() });
        let pages = VolumePages::new(PageCache::new(64 << 10), lineage.clone(), log.volume, log.env.clone());
        (pages, lineage, Arc::new(MemoryCache::new(64 << 10)))
    }

    fn limits(chance: &Chance) -> Limits {
        Limits {
            segment_bytes: 16 << chance.among(10..13),
            inline_bytes: chance.among(0..3) * (8 << 10),
            age: chance.delay(50..5_000),
            checkpoint_records: chance.among(1..12),
            // The grace time is only the second line of defence: nothing may depend on it.
            grace: if chance.hits(700) { Duration::ZERO } else { chance.delay(100..30_000) },
            ..Limits::default()
        }
    }

    /// Opens the volume, and reads all of it. `None` if the session is over by then, or a later one was opened.
    pub async fn open(
        &self,
        place: &Place,
        grant: GrantId,
        chance: &Chance,
    ) -> Result<Option<(Volume, SessionRef)>, OpenError> {
        let log = self.log(&place.process);
        let (pages, lineage, cache) = self.sources(&log);
        let region = Mapped {
            memory: Arc::clone(&place.memory),
            process: Arc::clone(&place.process),
            chance: chance.fork(),
        };
        let options = OpenOptions {
            grant,
            endpoint: String::new(),
            buffer: Arc::new(Ring::open(Arc::new(region))?),
            cache,
            pages,
            lineage,
            limits: Self::limits(chance),
        };
        let name = &place.process.name;
        let revoked = self.model.is_revoked(grant);
        let volume = Volume::open(log.clone(), options, Instant::now() + PATIENCE).await?;
        if revoked {
            self.model.violation(format!("{name} opens the volume under a grant that was taken back"));
        }
        let Some(opened) = self.world.number_of(&log, volume.session()) else {
            self.model.violation(format!("{name}: the Open of its session is not in the log"));
            return Ok(None);
        };
        self.world.note(format_args!("{name} has opened the volume at {opened}"));
        let bytes = loop {
            match volume.read(0, BLOCKS * BLOCK_BYTES).await {
                Ok(bytes) => break bytes,
                Err(error) if self.goes_on(&volume, name, "read", &error) => {}
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
        let session = self.model.opened(name.clone(), opened, grant, place.memory_number, blocks);
        Ok(session.map(|session| (volume, session)))
    }

    fn is_reopened(&self, volume: &Volume) -> bool {
        let log = self.log(&Arc::new(Process::new("the world".into())));
        self.world.reopened_since(&log, volume.session())
    }

    /// Whether a client goes on after an error. Errors that no failure of the store explains are violations.
    pub fn goes_on(&self, volume: &Volume, name: &str, what: &str, error: &VolumeError) -> bool {
        self.world.note(format_args!("{name} {what}: {error}"));
        let refuses = self.weather.refused > 0;
        match error {
            // What a session that is over, and does not know it yet, still looks for may have been collected.
            VolumeError::Read { reason: FetchError::Gone { .. }, .. } if self.is_reopened(volume) => {
                return true;
            }
            VolumeError::Map { reason, .. }
                if matches!(**reason, MapError::Store(StoreError::NotFound { .. }))
                    && !self.is_reopened(volume) => {}
            VolumeError::Over { reason: Over::Superseded { .. } | Over::Fenced | Over::Closed, .. } => {
                return false;
            }
            VolumeError::Over { reason: Over::Broken { .. }, .. } if refuses => return false,
            VolumeError::NotCommitted { .. }
            | VolumeError::Read { reason: FetchError::Store(_), .. }
            | VolumeError::Log { .. }
            | VolumeError::Store { .. } => return true,
            VolumeError::Map { reason, .. } if matches!(**reason, MapError::Store(_)) => return true,
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

/// Lives the life of a process on a node.
pub async fn serve(site: Arc<Site>, place: Place, grant: GrantId) {
    let process = Arc::clone(&place.process);
    tokio::select! {
        biased;
        () = process.died() => site.world.note(format_args!("{} is dead", process.name)),
        () = use_volume(&site, &place, grant) => {}
    }
}

async fn use_volume(site: &Arc<Site>, place: &Place, grant: GrantId) {
    let chance = site.world.chance.fork();
    let name = &place.process.name;
    let (volume, session) = match site.open(place, grant, &chance).await {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(error) => {
            site.world.note(format_args!("{name} could not open the volume: {error}"));
            if let OpenError::Buffer(error) = error {
                site.model.violation(format!("{name}: {error}"));
            }
            return;
        }
    };
    let client = Client { site, place, volume: &volume, session };
    let (writer, flusher, collector) = (chance.fork(), chance.fork(), chance.fork());
    // Each ends when the session is over.
    tokio::join!(biased; client.write(&writer), client.flush(&flusher), client.collect(&collector));
}

/// What reads and writes an open volume.
struct Client<'a> {
    site: &'a Site,
    place: &'a Place,
    volume: &'a Volume,
    session: SessionRef,
}

impl Client<'_> {
    fn name(&self) -> &str {
        &self.place.process.name
    }

    fn model(&self) -> &Model {
        &self.site.model
    }

    /// Writes, discards and reads, one after the other.
    async fn write(&self, chance: &Chance) {
        while self.model().count(self.session) < WRITES {
            let blocks = if chance.hits(100) { chance.among(10..60) } else { chance.among(1..6) };
            let from = chance.among(0..BLOCKS - blocks + 1);
            let range = from..from + blocks;
            let (offset, len) = (from * BLOCK_BYTES, blocks * BLOCK_BYTES);
            let (what, outcome) = match chance.among(0..10) {
                0..6 => {
                    let mark = self.model().begins(self.session, range.clone(), true);
                    ("write", self.volume.write(offset, bytes_of(mark, range.clone())).await)
                }
                6 => {
                    self.model().begins(self.session, range.clone(), false);
                    ("discard", self.volume.discard(offset, len).await)
                }
                _ => {
                    let read = self.volume.read(offset, len).await;
                    ("read", read.map(|bytes| self.check_read(range.clone(), &bytes)))
                }
            };
            // The process may have died while it copied into its buffer: then nobody has the answer.
            self.place.process.live().await;
            match outcome {
                Ok(()) => self.model().answered(self.session),
                Err(error) => {
                    if !self.site.goes_on(self.volume, self.name(), what, &error) || what != "read" {
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
        let expected = &self.model().expected(self.session)[range.start as usize..range.end as usize];
        match marks_in(bytes, range.start) {
            Ok(found) if found == expected => {}
            Ok(found) => {
                let what = differences(expected, &found);
                self.model().violation(format!("{} reads {range:?} from its first: {what}", self.name()));
            }
            Err(what) => self.model().violation(format!("{}: {what}", self.name())),
        }
    }

    /// Flushes, and takes snapshots.
    async fn flush(&self, chance: &Chance) {
        for number in 0.. {
            sleep(chance.delay(1..6_000)).await;
            let outcome = if chance.hits(150) {
                let name = format!("{}.{number}", self.name());
                self.model().cut_begins(self.session, name.clone());
                let taken = self.volume.snapshot(&name, "").await;
                self.place.process.live().await;
                taken.map(|_| self.model().cut_taken(self.session, &name))
            } else {
                let writes = self.model().count(self.session);
                let flushed = self.volume.flush().await;
                self.place.process.live().await;
                flushed.map(|()| self.model().acknowledged(self.session, writes))
            };
            match outcome {
                Ok(()) => self.site.world.note(format_args!("{} is flushed", self.name())),
                Err(error) if self.site.goes_on(self.volume, self.name(), "flush", &error) => {}
                Err(_) => return,
            }
        }
    }

    /// Collects garbage.
    async fn collect(&self, chance: &Chance) {
        let mut collector = Collector::new(self.volume.clone());
        while self.volume.check().is_ok() {
            sleep(chance.delay(10..10_000)).await;
            let round = collector.round().await;
            self.place.process.live().await;
            self.site.world.note(format_args!("{} collects: {round:?}", self.name()));
        }
    }
}
