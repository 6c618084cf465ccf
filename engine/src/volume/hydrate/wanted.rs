//! Where a volume is being read, for who copies it behind its readers' backs.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Reads kept in mind; of more, the oldest are forgotten.
const READS: usize = 64;

/// The last reads of a volume, while somebody wants to know them.
#[derive(Debug, Default)]
pub struct Wanted {
    watched: Mutex<Option<Watched>>,
}

#[derive(Debug, Default)]
struct Watched {
    /// First blocks, the newest last.
    reads: VecDeque<u64>,
    /// Whether something was read since that was asked last.
    is_read: bool,
}

/// Ends the watching when it is dropped.
#[derive(Debug)]
pub struct Watching<'a>(&'a Wanted);

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        *self.0.watched() = None;
    }
}

impl Wanted {
    fn watched(&self) -> MutexGuard<'_, Option<Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps reads in mind from now on.
    pub fn watch(&self) -> Watching<'_> {
        *self.watched() = Some(Watched::default());
        Watching(self)
    }

    /// Notes a read that begins at block `lba`.
    pub fn read(&self, lba: u64) {
        if let Some(Watched { reads, is_read }) = &mut *self.watched() {
            *is_read = true;
            if reads.back() == Some(&lba) {
                return;
            }
            if reads.len() == READS {
                reads.pop_front();
            }
            reads.push_back(lba);
        }
    }

    /// Whether something was read since this was asked last.
    pub fn is_read(&self) -> bool {
        self.watched().as_mut().is_some_and(|watched| std::mem::take(&mut watched.is_read))
    }

    /// The first block of the newest read that was not taken yet.
    pub fn take(&self) -> Option<u64> {
        self.watched().as_mut()?.reads.pop_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_reads_come_first_and_old_ones_are_forgotten() {
        let wanted = Wanted::default();
        wanted.read(7);
        assert_eq!(wanted.take(), None, "nobody wanted to know");
        let watching = wanted.watch();
        (0..100).for_each(|lba| wanted.read(lba));
        assert!(wanted.is_read() && !wanted.is_read());
        let taken: Vec<u64> = std::iter::from_fn(|| wanted.take()).collect();
        assert_eq!(taken, (100 - READS as u64..100).rev().collect::<Vec<_>>());
        wanted.read(7);
        drop(watching);
        assert_eq!((wanted.take(), wanted.is_read()), (None, false));
    }
}
