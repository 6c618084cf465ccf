//! A node's disk with the journal of a volume on it: it outlives processes, is slow, fails, and loses what was not synced
//! when the power goes. And the dirty buffer whose flushes end there.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_engine::buffer::{BufferError, DirtyBuffer, Mutation};
use holdfast_engine::ids::GrantId;
use holdfast_engine::journal::{Journal, JournalDisk, JournalError, JournaledBuffer, Owner, Patience};
use tokio::time::sleep;

use crate::chance::Chance;
use crate::process::Process;
use crate::session::InJournal;

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

#[derive(Debug)]
struct State {
    /// What reads show: the system's memory has it. Nothing if there is no journal.
    seen: Vec<u8>,
    /// What lay in the sectors that were written since the last sync, by number.
    unsynced: BTreeMap<usize, Vec<u8>>,
    /// Under which grant a journal was opened.
    holder: Option<GrantId>,
    /// What becomes of the next so many writes.
    fault: Option<(Fault, u64)>,
}

/// The disk.
#[derive(Debug)]
pub struct JournalSpace {
    /// Tells it from the one that a node gets when it has lost it.
    pub number: usize,
    len_bytes: usize,
    state: Mutex<State>,
}

impl JournalSpace {
    /// A disk without a journal, with room for one of a few or of many frames.
    pub fn fresh(number: usize, chance: &Chance) -> Arc<Self> {
        let len_bytes = (64 << 10) << chance.among(0..3);
        let state = State { seen: Vec::new(), unsynced: BTreeMap::new(), holder: None, fault: None };
        Arc::new(Self { number, len_bytes, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The power fails: of each sector that was not synced anything may be there.
    pub fn lose_power(&self, chance: &Chance) {
        let mut state = self.state();
        for (sector, old) in std::mem::take(&mut state.unsynced) {
            let at = sector * SECTOR_BYTES;
            let torn_at = match chance.among(0..5) {
                0 | 1 => SECTOR_BYTES,
                2 => chance.among(0..SECTOR_BYTES as u64) as usize,
                3 => {
                    chance.fill_bytes(&mut state.seen[at..at + SECTOR_BYTES]);
                    continue;
                }
                _ => 0,
            };
            state.seen[at + torn_at..at + SECTOR_BYTES].copy_from_slice(&old[torn_at..]);
        }
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

    /// Writes those sectors of `writes` that `chosen` says.
    fn apply(&self, writes: &[(u64, Bytes)], chosen: impl Fn() -> bool) {
        let mut state = self.state();
        let State { seen, unsynced, .. } = &mut *state;
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

    /// Whether there is a journal.
    pub fn is_there(&self) -> bool {
        !self.state().seen.is_empty()
    }

    /// The journal as `process` opens it; it is made if there is none. `None` if it cannot be made: flushes wait for the
    /// store then. An error if one is there that must not be given up.
    pub async fn open(
        self: &Arc<Self>,
        process: &Arc<Process>,
        owner: &Owner,
        patience: Patience,
        chance: &Chance,
    ) -> Result<Option<Journal>, OpenJournalError> {
        let open = || {
            let disk =
                Reached { space: Arc::clone(self), process: Arc::clone(process), chance: chance.fork() };
            Journal::open(Arc::new(disk), owner.clone(), patience)
        };
        if self.is_there() {
            let of_other = self.state().holder.is_some_and(|holder| holder != owner.grant);
            match open().await {
                Ok(_) if of_other => {
                    return Err(OpenJournalError::Wrong("it is opened under another grant".into()));
                }
                Ok(journal) => {
                    self.state().holder = Some(owner.grant);
                    return Ok(Some(journal));
                }
                Err(JournalError::Disk { source, .. }) => return Err(OpenJournalError::Disk(source)),
                // One that was never opened may be anybody's.
                Err(JournalError::OtherGrant { .. }) if self.state().holder != Some(owner.grant) => {}
                Err(error) => return Err(OpenJournalError::Wrong(error.to_string())),
            }
        }
        // It is set aside, or is the first.
        {
            let mut state = self.state();
            state.holder = None;
            state.unsynced.clear();
            state.seen.clear();
            if state.fault.is_some() {
                return Ok(None);
            }
            state.seen = vec![0; self.len_bytes];
        }
        match open().await {
            Ok(journal) => {
                self.state().holder = Some(owner.grant);
                Ok(Some(journal))
            }
            Err(JournalError::Disk { source, .. }) => Err(OpenJournalError::Disk(source)),
            Err(error) => Err(OpenJournalError::Wrong(error.to_string())),
        }
    }
}

/// Why a journal that is there is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenJournalError {
    /// The disk fails.
    #[error("the disk fails: {0}")]
    Disk(io::Error),
    /// What must not be.
    #[error("{0}")]
    Wrong(String),
}

/// The journal, as one process reaches it.
#[derive(Debug)]
struct Reached {
    space: Arc<JournalSpace>,
    process: Arc<Process>,
    chance: Chance,
}

impl Reached {
    fn takes(&self) -> Duration {
        if self.chance.hits(20) { self.chance.delay(100..12_000) } else { self.chance.delay(1..30) }
    }
}

#[async_trait]
impl JournalDisk for Reached {
    fn len_bytes(&self) -> u64 {
        self.space.len_bytes as u64
    }

    async fn read(&self, at: u64, len: usize) -> io::Result<Bytes> {
        self.process.live().await;
        let at = at as usize;
        Ok(Bytes::copy_from_slice(&self.space.state().seen[at..at + len]))
    }

    /// Some sectors come first; then all of them; then they are synced. A process may die or be paused in between.
    async fn write(&self, writes: Vec<(u64, Bytes)>) -> io::Result<()> {
        self.process.enter().await;
        let fault = self.space.next_fault();
        self.space.apply(&writes, || self.chance.hits(500));
        self.process.sent();
        sleep(self.takes()).await;
        self.process.live().await;
        match fault {
            Some(Fault::Fails) => return Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Hangs) => return std::future::pending().await,
            None => {}
        }
        self.space.apply(&writes, || true);
        sleep(self.takes()).await;
        self.process.live().await;
        self.space.state().unsynced.clear();
        Ok(())
    }
}

/// The dirty buffer of a session, which tells where its flushes end.
#[derive(Debug)]
pub struct SessionBuffer {
    pub inner: JournaledBuffer,
    /// Where its journal lies, if it has one.
    journal: Mutex<Option<InJournal>>,
    /// Whether the last flush ended there.
    journaled: AtomicBool,
}

impl SessionBuffer {
    pub fn new(inner: JournaledBuffer, journal: Option<InJournal>) -> Self {
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
