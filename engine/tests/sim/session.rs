//! What a session has promised: which of its writes whoever opens the volume next must find.
//!
//! - Under the same grant and with the same memory, whatever was answered: the dirty buffer still has it.
//! - Under the same grant and with the same disk, whatever a flush has acknowledged: the journal has what the store has
//!   not.
//! - Else what the store has: what was acknowledged with remote durability, or by a snapshot; and what a journal has
//!   acknowledged, once a later flush ends there that needs a new frame, while the first one is older than the journal's
//!   patience. Such a flush must have waited for the store otherwise.
//!
//! In each case what is found is a prefix of the writes.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use holdfast_engine::ids::{GrantId, RecordNumber};
use tokio::time::Instant;

use crate::marks::Blocks;

/// Where a session's journal lies.
#[derive(Debug, Clone, Copy)]
pub struct InJournal {
    /// Which disk.
    pub disk: usize,
    /// How long the oldest frame may wait for the log until flushes wait for it too.
    pub patience: Duration,
}

#[derive(Debug)]
pub struct Session {
    pub name: String,
    /// Where its Open lies in the log.
    pub opened: RecordNumber,
    pub grant: GrantId,
    /// Which memory its dirty buffer lies in.
    pub memory: usize,
    pub journal: Option<InJournal>,
    /// What there was before its writes.
    pub base: Blocks,
    /// Its writes, behind those that it took over.
    pub writes: Vec<(Range<u64>, u64)>,
    pub answered: usize,
    /// How many a flush has acknowledged.
    pub acknowledged: usize,
    /// How many of those must be in the store.
    pub stored: usize,
    /// When the journal acknowledged how many.
    pub framed: Vec<(Instant, usize)>,
    /// How many writes the journal's frames hold at most.
    pub in_frames: usize,
    /// How many of its writes a later opener has found.
    pub left: Option<usize>,
    /// How many were answered when its grant had been taken back.
    pub fenced: Option<usize>,
}

/// What of a session there still is for its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// Its dirty buffer.
    Buffer,
    /// Its journal, but not its buffer.
    Journal,
    /// What it had put into the store.
    Store,
}

impl Session {
    /// The blocks after so many of its writes.
    pub fn after(&self, writes: usize) -> Blocks {
        let mut blocks = self.base.clone();
        for (range, mark) in &self.writes[..writes] {
            blocks[range.start as usize..range.end as usize].fill(*mark);
        }
        blocks
    }

    /// The largest prefix of its writes, of those that `allowed` says, that yields `blocks`.
    pub fn prefix(&self, allowed: RangeInclusive<usize>, blocks: &[u64]) -> Option<usize> {
        allowed.rev().find(|writes| self.after(*writes) == blocks)
    }

    /// Whether its journal lies where `journal` does.
    fn shares(&self, journal: Option<InJournal>) -> bool {
        let disk = |journal: Option<InJournal>| journal.map(|journal| journal.disk);
        journal.is_some() && disk(self.journal) == disk(journal)
    }

    /// What there is of it for one who opens the volume under `grant`, with this memory and journal.
    pub fn remains(&self, grant: GrantId, memory: usize, journal: Option<InJournal>) -> Remains {
        match self.grant == grant {
            true if self.memory == memory => Remains::Buffer,
            true if self.shares(journal) => Remains::Journal,
            _ => Remains::Store,
        }
    }

    /// How many of its writes must be found.
    pub fn floor(&self, remains: Remains) -> usize {
        match remains {
            Remains::Buffer => self.answered,
            Remains::Journal => self.acknowledged,
            Remains::Store => self.stored,
        }
    }

    /// The session that has found `left` of its writes in buffer or journal, and puts them into the store.
    pub fn successor(
        &self,
        name: String,
        opened: RecordNumber,
        memory: usize,
        left: usize,
        journal: Option<InJournal>,
    ) -> Self {
        let acknowledged = if self.shares(journal) { self.acknowledged } else { self.stored };
        Self {
            name,
            opened,
            grant: self.grant,
            memory,
            journal,
            base: self.base.clone(),
            writes: self.writes[..left].to_vec(),
            answered: left,
            acknowledged,
            stored: self.stored,
            // The journal counts what it has found from its opening on, which was before this.
            framed: vec![(Instant::now(), acknowledged)],
            in_frames: left,
            left: None,
            fenced: None,
        }
    }

    /// So many of its writes must be in the store. An error if they cannot be.
    pub fn in_store(&mut self, writes: usize) -> Result<(), String> {
        self.stored = self.stored.max(writes);
        self.acknowledged = self.acknowledged.max(writes);
        if let Some(left) = self.left.filter(|left| *left < writes) {
            return Err(format!(
                "{} has {writes} writes in the store after a later session had found {left}",
                self.name
            ));
        }
        match self.fenced {
            Some(answered) if answered < writes => Err(format!(
                "{} has {writes} writes in the store, {answered} of them answered before its grant was taken back",
                self.name
            )),
            _ => Ok(()),
        }
    }

    /// The journal acknowledges so many of its writes to a flush that began at `began`.
    pub fn in_journal(&mut self, writes: usize, began: Instant) -> Result<(), String> {
        let Some(InJournal { patience, .. }) = self.journal else {
            return Err(format!("{} has no journal, and one has acknowledged {writes} writes", self.name));
        };
        let needs_frame = writes > self.in_frames;
        self.acknowledged = self.acknowledged.max(writes);
        self.in_frames = self.writes.len();
        let old = self.framed.iter().filter(|(at, _)| began.duration_since(*at) > patience);
        let old = old.map(|(_, writes)| *writes).max().filter(|_| needs_frame);
        self.framed.push((Instant::now(), writes));
        old.map_or(Ok(()), |old| self.in_store(old))
    }
}
