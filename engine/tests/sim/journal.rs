//! A node's disk with the journals of a volume on it, a file for each grant: it outlives processes, is slow, fails, and
//! loses what was not synced when the power goes. And the dirty buffer whose flushes end there.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_engine::buffer::{Budget, BufferError, DirtyBuffer, MemoryRegion, Mutation, Ring};
use holdfast_engine::ids::GrantId;
use holdfast_engine::journal::{
    Journal, JournalDir, JournalDisk, JournalError, JournalName, JournaledBuffer, Journals, JournalsError,
    Owner, Patience,
};
use holdfast_engine::log::Log;
use tokio::time::sleep;

use crate::chance::Chance;
use crate::memory::MEMORY_BYTES;
use crate::model::Model;
use crate::process::Process;
use crate::session::InJournal;
use crate::world::World;

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It fails, and some of it may be on the disk.
    Fails,
    /// It never ends.
    Hangs,
}

/// A file: it has its content also under another name, and when it has none any more.
#[derive(Debug)]
struct Sectors {
    /// What reads show: the system's memory has it.
    seen: Vec<u8>,
    /// What lay in the sectors that were written since the last sync, by number.
    unsynced: BTreeMap<usize, Vec<u8>>,
    /// Under which grant a journal was opened.
    holder: Option<GrantId>,
    /// Who has it open.
    user: Option<(Weak<()>, Arc<Process>)>,
}

type File = Arc<Mutex<Sectors>>;

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, File>,
    /// What becomes of the next so many writes.
    fault: Option<(Fault, u64)>,
}

fn sectors(file: &File) -> MutexGuard<'_, Sectors> {
    file.lock().expect("no holder panics")
}

impl Sectors {
    /// What is on the disk for sure.
    fn synced(&self) -> Vec<u8> {
        let mut synced = self.seen.clone();
        for (sector, old) in &self.unsynced {
            synced[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES].copy_from_slice(old);
        }
        synced
    }

    /// Writes those sectors of `writes` that `chosen` says.
    fn apply(&mut self, writes: &[(u64, Bytes)], chosen: impl Fn() -> bool) {
        let Self { seen, unsynced, .. } = self;
        for (at, bytes) in writes {
            for (place, new) in (*at as usize..).step_by(SECTOR_BYTES).zip(bytes.chunks(SECTOR_BYTES)) {
                if chosen() {
                    let old = &mut seen[place..place + SECTOR_BYTES];
                    unsynced.entry(place / SECTOR_BYTES).or_insert_with(|| old.to_vec());
                    old[..new.len()].copy_from_slice(new);
                }
            }
        }
    }

    fn lose_power(&mut self, chance: &Chance) {
        for (sector, old) in std::mem::take(&mut self.unsynced) {
            let at = sector * SECTOR_BYTES;
            let torn_at = match chance.among(0..5) {
                0 | 1 => SECTOR_BYTES,
                2 => chance.among(0..SECTOR_BYTES as u64) as usize,
                3 => {
                    chance.fill_bytes(&mut self.seen[at..at + SECTOR_BYTES]);
                    continue;
                }
                _ => 0,
            };
            self.seen[at + torn_at..at + SECTOR_BYTES].copy_from_slice(&old[torn_at..]);
        }
    }
}

/// The disk.
#[derive(Debug)]
pub struct JournalSpace {
    /// Tells it from the one that a node gets when it has lost it.
    pub number: usize,
    /// The size of a journal.
    pub len_bytes: u64,
    state: Mutex<State>,
}

impl JournalSpace {
    /// A disk without a journal, with room in each for one of a few or of many frames.
    pub fn fresh(number: usize, chance: &Chance) -> Arc<Self> {
        let len_bytes = (64 << 10) << chance.among(0..3);
        Arc::new(Self { number, len_bytes, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The power fails: of each sector that was not synced anything may be there.
    pub fn lose_power(&self, chance: &Chance) {
        self.state().files.values().for_each(|file| sectors(file).lose_power(chance));
    }

    /// The disk works again.
    pub fn repair(&self) {
        self.state().fault = None;
    }

    /// The disk fails under the running process, for some writes.
    pub fn fail(&self, chance: &Chance) {
        let fault = if chance.hits(500) { Fault::Fails } else { Fault::Hangs };
        self.state().fault = Some((fault, chance.among(1..4)));
    }

    /// The fault that a write meets.
    fn next_fault(&self) -> Option<Fault> {
        let mut state = self.state();
        let (fault, left) = state.fault?;
        state.fault = (left > 1).then_some((fault, left - 1));
        Some(fault)
    }

    fn file(&self, name: &str) -> io::Result<File> {
        self.state().files.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A failing disk's answer.
fn broken() -> io::Error {
    io::Error::from_raw_os_error(5)
}

/// The disk, as one process reaches it, and whose journals lie there.
#[derive(Debug, Clone)]
pub struct Reached {
    pub space: Arc<JournalSpace>,
    pub process: Arc<Process>,
    pub chance: Chance,
    pub world: Arc<World>,
    pub model: Model,
    pub log: Log,
}

impl Reached {
    fn takes(&self) -> Duration {
        if self.chance.hits(20) { self.chance.delay(100..12_000) } else { self.chance.delay(1..30) }
    }

    fn violation(&self, what: &str) {
        self.model.violation(format!("{}: the journal {what}", self.process.name));
    }

    /// Changes what the names stand for, if the disk lets it. The process may die before and after.
    async fn change_names<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.process.enter().await;
        if self.space.state().fault.is_some() && self.chance.hits(500) {
            return Err(broken());
        }
        let changed = change(&mut self.space.state());
        self.process.sent();
        sleep(self.takes()).await;
        self.process.live().await;
        changed
    }

    /// The entries of the journal `name` that are on the disk for sure and that the log has never had.
    async fn unlogged(&self, name: &JournalName) -> Result<usize, String> {
        let Ok(file) = self.space.file(&name.file()) else { return Ok(0) };
        let disk = Arc::new(Copied(sectors(&file).synced()));
        let owner = Owner::of(&self.log, name.grant);
        let journal = Journal::open(disk, owner, Patience::default()).await;
        let region = Arc::new(MemoryRegion::new(MEMORY_BYTES));
        let ring = Ring::open(region, &Budget::unlimited()).map_err(|error| error.to_string())?;
        let buffer = JournaledBuffer::new(Arc::new(ring), Some(journal.map_err(|error| error.to_string())?));
        let complete = self.world.completed(self.log.volume, name.grant);
        buffer.bind(name.grant, complete).map_err(|error| error.to_string())?;
        Ok(buffer.recover().map_err(|error| error.to_string())?.len())
    }

    /// The journal of this name is open: from now on it is nobody's but its grant's.
    pub fn opened(&self, name: &JournalName) {
        if let Ok(file) = self.space.file(&name.file()) {
            sectors(&file).holder = Some(name.grant);
        }
    }

    /// A journal is given to nobody who comes with another grant than its own.
    pub async fn try_with(&self, grant: GrantId) {
        let files: Vec<File> = self.space.state().files.values().cloned().collect();
        for file in files {
            let holder = sectors(&file).holder;
            if holder.is_none_or(|holder| holder == grant) {
                continue;
            }
            let disk = Arc::new(Copied(sectors(&file).synced()));
            let opened = Journal::open(disk, Owner::of(&self.log, grant), Patience::default()).await;
            if !matches!(opened, Err(JournalError::OtherGrant { .. })) {
                self.violation("is opened under another grant");
            }
        }
    }
}

#[async_trait]
impl JournalDir for Reached {
    fn path(&self) -> &Path {
        Path::new("/simulated")
    }

    async fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.process.live().await;
        let state = self.space.state();
        Ok(state.files.iter().map(|(name, file)| (name.clone(), sectors(file).seen.len() as u64)).collect())
    }

    async fn create(&self, name: &str, len_bytes: u64) -> io::Result<()> {
        let seen = vec![0; len_bytes as usize];
        let new = Sectors { seen, unsynced: BTreeMap::new(), holder: None, user: None };
        self.change_names(|state| {
            state.files.insert(name.into(), Arc::new(Mutex::new(new)));
            Ok(())
        })
        .await
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn JournalDisk>> {
        self.process.live().await;
        let file = self.space.file(name)?;
        let used = Arc::new(());
        {
            let mut sectors = sectors(&file);
            let user = sectors.user.as_ref();
            if user.is_some_and(|(used, process)| used.strong_count() > 0 && !process.is_dead()) {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            sectors.user = Some((Arc::downgrade(&used), Arc::clone(&self.process)));
        }
        Ok(Arc::new(ReachedFile { reached: self.clone(), file, _used: used }))
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let name = JournalName::of_file(from);
        if name.is_some_and(|name| self.world.is_held(self.log.volume, name.grant)) {
            self.violation("is set aside while its grant is in force");
        }
        self.change_names(|state| {
            let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.files.insert(to.into(), file);
            Ok(())
        })
        .await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        if let Some(name) = JournalName::of_file(name) {
            match self.unlogged(&name).await {
                Ok(0) => {}
                Ok(entries) => self.violation(&format!("is removed with {entries} entries that no log has")),
                Err(error) => self.violation(&format!("is removed, and cannot be read: {error}")),
            }
        }
        self.change_names(|state| {
            state.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
            Ok(())
        })
        .await
    }
}

/// The journals on a disk, as one process reaches them.
pub struct NodeJournals {
    pub journals: Journals,
    pub reached: Reached,
    pub lies: InJournal,
}

impl NodeJournals {
    /// A journal could not be used. Only the disk may be why, or that the process has not let go of it yet.
    pub fn failed(&self, error: &JournalsError) {
        let process = &self.reached.process.name;
        self.reached.world.note(format_args!("{process} cannot use the journal: {error}"));
        match error {
            JournalsError::Path { .. } | JournalsError::Journal { source: JournalError::Disk { .. }, .. } => {
            }
            JournalsError::Journal { .. } => self.reached.violation(&format!("cannot be used: {error}")),
        }
    }
}

/// A file, as one process reaches it.
#[derive(Debug)]
struct ReachedFile {
    reached: Reached,
    file: File,
    _used: Arc<()>,
}

#[async_trait]
impl JournalDisk for ReachedFile {
    fn len_bytes(&self) -> u64 {
        sectors(&self.file).seen.len() as u64
    }

    async fn read(&self, at: u64, len: usize) -> io::Result<Bytes> {
        self.reached.process.live().await;
        let at = at as usize;
        Ok(Bytes::copy_from_slice(&sectors(&self.file).seen[at..at + len]))
    }

    /// Some sectors come first; then all of them; then they are synced. A process may die or be paused in between.
    async fn write(&self, writes: Vec<(u64, Bytes)>) -> io::Result<()> {
        let Reached { space, process, chance, .. } = &self.reached;
        process.enter().await;
        let fault = space.next_fault();
        sectors(&self.file).apply(&writes, || chance.hits(500));
        process.sent();
        sleep(self.reached.takes()).await;
        process.live().await;
        match fault {
            Some(Fault::Fails) => return Err(broken()),
            Some(Fault::Hangs) => return std::future::pending().await,
            None => {}
        }
        sectors(&self.file).apply(&writes, || true);
        sleep(self.reached.takes()).await;
        process.live().await;
        sectors(&self.file).unsynced.clear();
        Ok(())
    }
}

/// What lay in a file, to be looked at.
#[derive(Debug)]
struct Copied(Vec<u8>);

#[async_trait]
impl JournalDisk for Copied {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let at = at as usize;
        Ok(Bytes::copy_from_slice(&self.0[at..at + len]))
    }

    /// Nobody looks twice.
    async fn write(&self, _writes: Vec<(u64, Bytes)>) -> io::Result<()> {
        Ok(())
    }
}

/// The dirty buffer of a session, which tells where its flushes end.
#[derive(Debug)]
pub struct SessionBuffer {
    pub inner: Arc<JournaledBuffer>,
    /// Where its journal lies, if it has one.
    journal: Mutex<Option<InJournal>>,
    /// Whether the last flush ended there.
    journaled: AtomicBool,
}

impl SessionBuffer {
    pub fn new(inner: Arc<JournaledBuffer>, journal: Option<InJournal>) -> Self {
        Self { inner, journal: Mutex::new(journal), journaled: AtomicBool::new(false) }
    }

    /// Where its journal lies, if it has one.
    pub fn journal(&self) -> Option<InJournal> {
        *self.journal.lock().expect("no holder panics")
    }

    /// It has one from now on.
    pub fn joined(&self, journal: InJournal) {
        *self.journal.lock().expect("no holder panics") = Some(journal);
    }

    /// Whether the last flush ended in the journal.
    pub fn journaled(&self) -> bool {
        self.journaled.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl DirtyBuffer for SessionBuffer {
    fn bind(&self, grant: GrantId, complete: u64) -> Result<usize, BufferError> {
        self.inner.bind(grant, complete)
    }

    fn recover(&self) -> Result<Vec<(u64, Mutation)>, BufferError> {
        self.inner.recover()
    }

    fn append(&self, mutation: &Mutation) -> Result<u64, BufferError> {
        self.inner.append(mutation)
    }

    fn free(&self, sequence: u64) {
        self.inner.free(sequence);
    }

    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }

    async fn persist(&self, sequence: u64) -> bool {
        let journaled = self.inner.persist(sequence).await;
        self.journaled.store(journaled, Ordering::Relaxed);
        journaled
    }
}
