//! What the writer's tasks tell those who wait for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::outage::{Away, Outage};
use super::{Over, VolumeError};
use crate::ids::VolumeId;
use crate::log::LogError;

/// What a session has put into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Records.
    pub records: u64,
    /// Bytes of data, in segments and in records, as stored.
    pub bytes: u64,
    /// Snapshots deleted.
    pub deletions: u64,
}

/// How far the session has come.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// All mutations of the dirty buffer up to this number are in the log.
    pub committed: u64,
    /// What has been put into the store.
    pub work: Work,
    /// Why the session is over, once it is.
    pub over: Option<Over>,
}

/// The status of a session, written by its committer, read by everybody.
#[derive(Debug)]
pub struct StatusBoard {
    volume: VolumeId,
    board: watch::Sender<Status>,
    /// Whether the store takes what is to be committed.
    outage: Outage<Arc<LogError>>,
}

impl StatusBoard {
    /// The board of a session that has committed everything up to `committed`, whose writes wait for a store that is
    /// away at most `limit`.
    pub fn new(volume: VolumeId, committed: u64, limit: Duration) -> Self {
        let board = watch::Sender::new(Status { committed, ..Status::default() });
        Self { volume, board, outage: Outage::new(volume, "writes", limit) }
    }

    /// Fails once the session is over.
    pub fn check(&self) -> Result<(), VolumeError> {
        match &self.board.borrow().over {
            Some(reason) => Err(VolumeError::Over { volume: self.volume, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Ends the session for all who look here. The first reason stays.
    pub fn end(&self, reason: Over) {
        self.board.send_if_modified(|status| {
            let first = status.over.is_none();
            status.over.get_or_insert(reason);
            first
        });
    }

    /// Notes that everything up to `sequence` is in the log.
    pub fn committed(&self, sequence: u64) {
        self.outage.ended();
        self.board.send_modify(|status| status.committed = status.committed.max(sequence));
    }

    /// Notes a record that makes so many bytes of data visible and deletes so many snapshots.
    pub fn appended(&self, bytes: u64, deletions: u64) {
        self.board.send_modify(|status| {
            status.work.records += 1;
            status.work.bytes += bytes;
            status.work.deletions += deletions;
        });
    }

    /// Waits until `enough` says so of the session's work, or the session ends.
    pub async fn worked(&self, enough: impl Fn(Work) -> bool) -> Result<(), VolumeError> {
        let mut board = self.board.subscribe();
        let _ = board.wait_for(|status| enough(status.work) || status.over.is_some()).await;
        self.check()
    }

    /// Notes that an attempt to commit has failed that began at `begun`. It is repeated.
    pub fn failed(&self, begun: Instant, reason: Arc<LogError>) {
        self.outage.failed(begun, reason);
    }

    /// Since when the store takes nothing, if so.
    pub fn away(&self) -> Option<Away<Arc<LogError>>> {
        self.outage.away()
    }

    /// The present status.
    pub fn now(&self) -> Status {
        self.board.borrow().clone()
    }

    /// Waits until everything up to `sequence` is in the log. Fails when the session ends, or when the store has been
    /// away for too long; what is to be committed stays.
    pub async fn wait_for(&self, sequence: u64) -> Result<(), VolumeError> {
        self.wait(|status| status.committed >= sequence).await
    }

    /// Waits until more is in the log than `sequence`. Fails as [`Self::wait_for`] does.
    pub async fn wait_beyond(&self, sequence: u64) -> Result<(), VolumeError> {
        self.wait(|status| status.committed > sequence).await?;
        self.check()
    }

    async fn wait(&self, done: impl Fn(&Status) -> bool) -> Result<(), VolumeError> {
        let mut board = self.board.subscribe();
        tokio::select! {
            biased;
            status = board.wait_for(|status| done(status) || status.over.is_some()) => {
                // What is in the log stays there, whatever became of the session since.
                if status.is_ok_and(|status| done(&status)) {
                    return Ok(());
                }
                self.check()?;
                Err(VolumeError::Over { volume: self.volume, reason: Over::Closed })
            }
            reason = self.outage.outlasts() => Err(VolumeError::NotCommitted { volume: self.volume, reason }),
        }
    }

    /// Waits until the session is over.
    pub async fn wait_over(&self) -> Over {
        let mut board = self.board.subscribe();
        let status = board.wait_for(|status| status.over.is_some()).await;
        status.ok().and_then(|status| status.over.clone()).unwrap_or(Over::Closed)
    }
}
