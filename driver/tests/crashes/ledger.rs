//! A ledger on a raw device: blocks that carry numbers, of which some are known to be acknowledged.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

const BLOCK: usize = 4096;
/// Blocks of one writer.
const SLOTS: u64 = 2048;
const WRITERS: u64 = 4;

#[repr(align(4096))]
struct Page([u8; BLOCK]);

impl Page {
    /// The block `slot` as it is after entry `number`: every word says both.
    fn of(slot: u64, number: u64) -> Self {
        let mut page = Page([0; BLOCK]);
        for (at, word) in page.0.chunks_exact_mut(8).enumerate() {
            let text = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (slot << 32) ^ at as u64;
            word.copy_from_slice(&if at == 0 { number } else { text }.to_le_bytes());
        }
        page
    }
}

/// What a writer has done to a block.
#[derive(Default)]
struct Entry {
    /// The number of the newest write that may have happened.
    tried: AtomicU64,
    /// The number of the newest write whose fsync was answered.
    acknowledged: AtomicU64,
}

/// Everything that was written to a device.
pub struct Ledger {
    device: PathBuf,
    entries: Arc<Vec<Entry>>,
}

/// Writers at work.
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Writers {
    /// Whether none has met an error.
    pub fn go_on(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Has them end; what they met.
    pub fn end(self) -> Vec<std::io::Result<()>> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

impl Ledger {
    pub const BYTES: u64 = WRITERS * SLOTS * BLOCK as u64;

    /// An empty one, on a device that is all zeros.
    pub fn new(device: &Path) -> Self {
        let entries = (0..WRITERS * SLOTS).map(|_| Entry::default()).collect();
        Self { device: device.into(), entries: Arc::new(entries) }
    }

    /// Writers that write and fsync block by block, until they are told to end or meet an error.
    pub fn write(&self) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..WRITERS).map(|writer| {
            let (device, entries, stop) = (self.device.clone(), self.entries.clone(), stop.clone());
            std::thread::spawn(move || {
                let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(device)?;
                let newest = |slot: u64| entries[slot as usize].tried.load(Ordering::Relaxed);
                let mine = writer * SLOTS..(writer + 1) * SLOTS;
                let mut number = mine.clone().map(newest).max().unwrap_or_default();
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let slot = mine.start + number.wrapping_mul(0x9e37_79b9) % SLOTS;
                    let entry = &entries[slot as usize];
                    entry.tried.store(number, Ordering::Relaxed);
                    file.write_all_at(&Page::of(slot, number).0, slot * BLOCK as u64)?;
                    file.sync_data()?;
                    entry.acknowledged.store(number, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let threads = threads.collect();
        Writers { stop, threads }
    }

    /// How many writes were acknowledged to be durable: the highest numbers of all writers.
    pub fn acknowledged(&self) -> u64 {
        let newest = |entries: &[Entry]| {
            let numbers = entries.iter().map(|entry| entry.acknowledged.load(Ordering::Relaxed));
            numbers.max().unwrap_or_default()
        };
        self.entries.chunks(SLOTS as usize).map(newest).sum()
    }

    /// Checks that every block is one that was written, and none older than what was acknowledged. What a crash has let
    /// happen or not is known from then on.
    pub fn check(&self) {
        let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(&self.device).unwrap();
        let mut page = Page([0; BLOCK]);
        for (slot, entry) in (0..).zip(self.entries.iter()) {
            file.read_exact_at(&mut page.0, slot * BLOCK as u64).unwrap();
            let found = u64::from_le_bytes(page.0[..8].try_into().unwrap());
            let acknowledged = entry.acknowledged.load(Ordering::Relaxed);
            let tried = entry.tried.load(Ordering::Relaxed);
            assert!(
                (acknowledged..=tried).contains(&found),
                "block {slot} has write {found}; {acknowledged} was acknowledged and {tried} tried"
            );
            let expected = if found == 0 { Page([0; BLOCK]) } else { Page::of(slot, found) };
            assert!(page.0 == expected.0, "block {slot} is torn in write {found}");
            entry.acknowledged.store(found, Ordering::Relaxed);
        }
    }
}
