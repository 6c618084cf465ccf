//! What the collector has learned from old records: which of them are kept for ever, and which sessions there were.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use tokio::time::Instant;

use super::GcError;
use crate::ids::{RecordNumber, SessionId};
use crate::log::{Log, LogError, Op, Record};
use crate::volume::Cut;

/// Records read in one sweep at most; the rest waits for the next.
const READ_MAX: usize = 4096;
/// Records read at once.
const PARALLEL: usize = 16;

/// Knowledge of records that are still there.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Records read, and whether they are kept for ever.
    read: BTreeMap<RecordNumber, bool>,
    sessions: BTreeSet<SessionId>,
    /// Whether all records were read that may open a session.
    complete: bool,
}

impl History {
    /// Learns from `idle`, the records that are there and have no live data. A record that opens a session has none.
    pub async fn learn(
        &mut self,
        log: &Log,
        cut: &Cut,
        idle: &[RecordNumber],
        deadline: Instant,
    ) -> Result<(), GcError> {
        let there: BTreeSet<RecordNumber> = idle.iter().copied().collect();
        self.read.retain(|number, _| there.contains(number));
        // Of what the session has seen itself only the kept ones are of interest.
        let unread = |number: &RecordNumber| {
            (*number <= cut.seen_after || cut.kept.contains(number)) && !self.read.contains_key(number)
        };
        let unread: Vec<RecordNumber> = idle.iter().copied().filter(unread).collect();
        for batch in unread[..unread.len().min(READ_MAX)].chunks(PARALLEL) {
            let reads: Vec<_> = batch.iter().map(|number| log.get(*number, deadline)).collect();
            for (number, record) in batch.iter().zip(join_all(reads).await) {
                self.note(log, *number, record)?;
            }
        }
        self.complete = unread.len() <= READ_MAX;
        Ok(())
    }

    fn note(
        &mut self,
        log: &Log,
        number: RecordNumber,
        record: Result<Option<Record>, LogError>,
    ) -> Result<(), GcError> {
        match record {
            Ok(Some(record)) => {
                if record.ops.iter().any(|op| matches!(op, Op::Open { .. })) {
                    self.sessions.insert(record.id);
                }
                self.read.insert(number, record.is_kept());
            }
            Ok(None) => {}
            // What cannot be read may be one that has to stay.
            Err(LogError::Codec(error)) => {
                tracing::warn!(volume = %log.volume, record = %number, %error, "a record is kept unread");
                self.read.insert(number, true);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether the record is known to be none of those that are kept for ever.
    pub fn may_go(&self, cut: &Cut, number: RecordNumber) -> bool {
        match self.read.get(&number) {
            Some(kept) => !kept,
            None => number > cut.seen_after && !cut.kept.contains(&number),
        }
    }

    /// Whether a session of this id was opened; none if that is not known yet.
    pub fn opened(&self, session: SessionId) -> Option<bool> {
        let known = self.sessions.contains(&session);
        if known || self.complete { Some(known) } else { None }
    }
}
