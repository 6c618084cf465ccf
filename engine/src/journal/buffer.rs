//! A dirty buffer whose flushes end in a journal.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::Journal;
use crate::buffer::{BufferError, DirtyBuffer, Mutation};
use crate::ids::GrantId;

/// A dirty buffer, and a journal of the same entries that survives a loss of power.
///
/// # Guarantees
/// - Entries have one number in both. What the buffer has lost with the node's memory is taken from the journal when it
///   is bound to the same grant again, before anything newer; what both have is taken from the buffer.
/// - Flushes can begin to end in a journal, and cease to, while the buffer is in use.
#[derive(Debug)]
pub struct JournaledBuffer {
    inner: Arc<dyn DirtyBuffer>,
    /// Held while an entry is appended, so that both get entries in the same order.
    slot: Mutex<Slot>,
}

#[derive(Debug)]
struct Slot {
    journal: Option<Arc<Journal>>,
    /// Whether flushes are to end in a journal, also if there is none.
    wanted: bool,
    /// Entries up to this number are in the log.
    freed: u64,
}

impl JournaledBuffer {
    /// The buffer `inner`, and the journal in which flushes are to end, if it could be made.
    pub fn new(inner: Arc<dyn DirtyBuffer>, journal: Option<Journal>) -> Self {
        Self { inner, slot: Mutex::new(Slot { journal: journal.map(Arc::new), wanted: true, freed: 0 }) }
    }

    /// From now on flushes end in `journal`, which is new and of the grant that the buffer is bound to, or in the one
    /// that is there already.
    pub fn join(&self, journal: Option<Journal>) -> Result<(), BufferError> {
        let mut slot = self.slot();
        slot.wanted = true;
        if let Some(journal) = journal {
            slot.journal = Some(Arc::new(journal));
        }
        if let Some(journal) = &slot.journal {
            journal.begin(slot.freed, self.inner.recover()?);
            journal.resume();
        }
        Ok(())
    }

    /// From now on flushes wait for the log; what lies in the journal is still replayed until the log has it.
    pub fn leave(&self) {
        let mut slot = self.slot();
        slot.wanted = false;
        if let Some(journal) = &slot.journal {
            journal.retire();
        }
    }

    /// Whether flushes end in a journal; none if they are not to.
    pub fn works(&self) -> Option<bool> {
        let slot = self.slot();
        slot.wanted.then(|| slot.journal.as_ref().is_some_and(|journal| journal.works()))
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The journal.
    pub fn journal(&self) -> Option<Arc<Journal>> {
        self.slot().journal.clone()
    }

    /// Takes the journal out; flushes wait for the log from now on. For one that holds nothing any more, or whose
    /// grant is over.
    pub fn take_journal(&self) -> Option<Arc<Journal>> {
        self.slot().journal.take()
    }
}

#[async_trait]
impl DirtyBuffer for JournaledBuffer {
    fn bind(&self, grant: GrantId, complete: u64) -> Result<usize, BufferError> {
        let mut slot = self.slot();
        let dropped = self.inner.bind(grant, complete)?;
        slot.freed = complete;
        let Some(journal) = &slot.journal else { return Ok(dropped) };
        if journal.grant() != grant {
            return Err(BufferError::OtherGrant { grant, found: journal.grant() });
        }
        let mut last = self.inner.recover()?.last().map_or(complete, |(number, _)| *number);
        for (number, mutation) in journal.take_found() {
            if number <= last {
                continue;
            }
            if number != last + 1 {
                return Err(BufferError::Missing { first: last + 1, found: number });
            }
            last = self.inner.append(&mutation).map_err(|error| match error {
                BufferError::Full | BufferError::TooLarge { .. } => BufferError::Outgrown { number },
                other => other,
            })?;
        }
        journal.begin(complete, self.inner.recover()?);
        Ok(dropped)
    }

    fn recover(&self) -> Result<Vec<(u64, Mutation)>, BufferError> {
        self.inner.recover()
    }

    fn append(&self, mutation: &Mutation) -> Result<u64, BufferError> {
        let slot = self.slot();
        let number = self.inner.append(mutation)?;
        if let Some(journal) = &slot.journal {
            journal.append(number, mutation);
        }
        Ok(number)
    }

    fn free(&self, sequence: u64) {
        self.inner.free(sequence);
        let mut slot = self.slot();
        slot.freed = slot.freed.max(sequence);
        if let Some(journal) = &slot.journal {
            journal.free(sequence);
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }

    async fn persist(&self, sequence: u64) -> bool {
        match self.journal() {
            Some(journal) => journal.persist(sequence).await,
            None => false,
        }
    }
}
