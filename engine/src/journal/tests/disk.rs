//! A disk that does what disks do when a process is killed or the power fails.

use std::cmp::Ordering;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;

use crate::journal::JournalDisk;

const SECTOR_BYTES: usize = 512;

/// How many of the sectors that a crash leaves unsynced are new afterwards.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Torn {
    /// The first so many, of one more the first half.
    Prefix(usize),
    /// The last so many, of one more the first half.
    Suffix(usize),
    /// Each by chance old, new, or a mixture.
    Scattered(u64),
}

/// What the disk does with the next writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It writes nothing, and says so.
    Fails,
    /// It never answers.
    Hangs,
}

#[derive(Debug)]
struct State {
    /// What a loss of power leaves.
    durable: Vec<u8>,
    /// What reads show.
    seen: Vec<u8>,
    /// Whether these differ.
    unsynced: bool,
    /// Writes that are still answered; the one after them meets the crash.
    writes_left: u64,
    torn: Torn,
    fault: Option<Fault>,
    writes: u64,
}

/// See the module. Clones are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct FakeDisk {
    state: Arc<Mutex<State>>,
    crashed: watch::Sender<bool>,
}

impl FakeDisk {
    pub(crate) fn new(len_bytes: u64) -> Self {
        let zeros = vec![0; len_bytes as usize];
        let state = State {
            durable: zeros.clone(),
            seen: zeros,
            unsynced: false,
            writes_left: u64::MAX,
            torn: Torn::Prefix(0),
            fault: None,
            writes: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), crashed: watch::Sender::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The process dies in the middle of the write after `writes` more, of which `torn` says what gets to the disk.
    pub(crate) fn crash_at(&self, writes: u64, torn: Torn) {
        self.crashed.send_replace(false);
        let mut state = self.state();
        (state.writes_left, state.torn) = (writes, torn);
    }

    /// Waits for the crash.
    pub(crate) async fn crashed(&self) {
        let mut crashed = self.crashed.subscribe();
        crashed.wait_for(|crashed| *crashed).await.expect("the sender is self");
    }

    /// The power fails: of what was not synced, `torn` says what stays.
    pub(crate) fn lose_power(&self, torn: Torn) {
        let mut state = self.state();
        let (mut durable, seen) = (state.durable.clone(), state.seen.clone());
        tear(&mut durable, &seen, torn);
        state.seen.clone_from(&durable);
        state.durable = durable;
        state.unsynced = false;
        state.writes_left = u64::MAX;
    }

    /// A new process finds what the system's memory has.
    pub(crate) fn revive(&self) {
        self.state().writes_left = u64::MAX;
    }

    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// How many writes it has taken.
    pub(crate) fn writes(&self) -> u64 {
        self.state().writes
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().durable.clone()
    }

    pub(crate) fn overwrite(&self, at: usize, bytes: &[u8]) {
        let mut state = self.state();
        state.durable[at..at + bytes.len()].copy_from_slice(bytes);
        state.seen[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Makes some of the sectors in which `old` differs from `new` like those of `new`.
fn tear(old: &mut [u8], new: &[u8], torn: Torn) {
    let mut chance = ChaCha8Rng::seed_from_u64(match torn {
        Torn::Prefix(_) | Torn::Suffix(_) => 0,
        Torn::Scattered(seed) => seed,
    });
    let sectors = old.chunks_mut(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES));
    let mut differing: Vec<_> = sectors.filter(|(old, new)| old != new).collect();
    if matches!(torn, Torn::Suffix(_)) {
        differing.reverse();
    }
    for (place, (old, new)) in differing.into_iter().enumerate() {
        let half = old.len() / 2;
        match torn {
            Torn::Prefix(whole) | Torn::Suffix(whole) => match place.cmp(&whole) {
                Ordering::Less => old.copy_from_slice(new),
                Ordering::Equal => old[..half].copy_from_slice(&new[..half]),
                Ordering::Greater => {}
            },
            Torn::Scattered(_) => match chance.random_range(0..5u8) {
                0 | 1 => old.copy_from_slice(new),
                2 => chance.fill(old),
                3 => old[half..].copy_from_slice(&new[half..]),
                _ => {}
            },
        }
    }
}

fn apply(to: &mut [u8], writes: &[(u64, Bytes)]) {
    for (at, bytes) in writes {
        to[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
}

#[async_trait]
impl JournalDisk for FakeDisk {
    fn len_bytes(&self) -> u64 {
        self.state().seen.len() as u64
    }

    async fn read(&self, at: u64, len: usize) -> io::Result<Bytes> {
        Ok(Bytes::copy_from_slice(&self.state().seen[at as usize..at as usize + len]))
    }

    async fn write(&self, writes: Vec<(u64, Bytes)>) -> io::Result<()> {
        let answered = {
            let mut state = self.state();
            let fault = state.fault;
            if fault == Some(Fault::Fails) {
                return Err(io::Error::from_raw_os_error(5));
            }
            state.writes += 1;
            if fault.is_some() {
                false
            } else if state.writes_left == 0 {
                let mut new = state.seen.clone();
                apply(&mut new, &writes);
                let torn = state.torn;
                tear(&mut state.seen, &new, torn);
                state.unsynced = true;
                self.crashed.send_replace(true);
                false
            } else {
                state.writes_left -= 1;
                if std::mem::take(&mut state.unsynced) {
                    state.durable = state.seen.clone();
                }
                apply(&mut state.seen, &writes);
                apply(&mut state.durable, &writes);
                true
            }
        };
        if answered { Ok(()) } else { std::future::pending().await }
    }
}
