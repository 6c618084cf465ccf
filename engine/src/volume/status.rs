//! What the writer's tasks tell those who wait for them.

use std::sync::Arc;

use tokio::sync::watch;

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
}

/// How far the session has come.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// All mutations of the dirty buffer up to this number are in the log.
    pub committed: u64,
    /// What has been put into the store.
    pub work: Work,
    /// How often an attempt to commit has failed, and why the last time.
    pub failures: (u64, Option<Arc<LogError>>),
    /// Why the session is over, once it is.
    pub over: Option<Over>,
}

/// The status of a session, written by its committer, read by everybody.
#[derive(Debug)]
pub struct StatusBoard {
    volume: VolumeId,
    board: watch::Sender<Status>,
}

impl StatusBoard {
    /// The board of a session that has committed everything up to `committed`.
    pub fn new(volume: VolumeId, committed: u64) -> Self {
        Self { volume, board: watch::Sender::new(Status { committed, ..Status::default() }) }
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
        self.board.send_modify(|status| status.committed = status.committed.max(sequence));
    }

    /// Notes a record that makes so many bytes of data visible.
    pub fn appended(&self, bytes: u64) {
        self.board.send_modify(|status| {
            status.work.records += 1;
            status.work.bytes += bytes;
        });
    }

    /// Waits until `enough` says so of the session's work, or the session ends.
    pub async fn worked(&self, enough: impl Fn(Work) -> bool) -> Result<(), VolumeError> {
        let mut board = self.board.subscribe();
        let _ = board.wait_for(|status| enough(status.work) || status.over.is_some()).await;
        self.check()
    }

    /// Notes that an attempt has failed; who waits for a commit gives up, the data stays.
    pub fn failed(&self, reason: Arc<LogError>) {
        self.board.send_modify(|status| status.failures = (status.failures.0 + 1, Some(reason)));
    }

    /// The present status.
    pub fn now(&self) -> Status {
        self.board.borrow().clone()
    }

    /// Waits until everything up to `sequence` is in the log. Fails when the session ends, or when an attempt to
    /// commit fails from now on.
    pub async fn wait_for(&self, sequence: u64) -> Result<(), VolumeError> {
        let mut board = self.board.subscribe();
        let failures = board.borrow().failures.0;
        let done = |status: &Status| {
            status.committed >= sequence || status.over.is_some() || status.failures.0 > failures
        };
        // The sender lives as long as `self`, so the wait cannot fail for want of one.
        let status = board.wait_for(done).await.map_or_else(|_| Status::default(), |status| status.clone());
        match (status.over, status.failures.1) {
            // What is in the log stays there, whatever became of the session since.
            _ if status.committed >= sequence => Ok(()),
            (Some(reason), _) => Err(VolumeError::Over { volume: self.volume, reason }),
            (None, Some(reason)) => Err(VolumeError::NotCommitted { volume: self.volume, reason }),
            (None, None) => Err(VolumeError::Over { volume: self.volume, reason: Over::Closed }),
        }
    }

    /// Waits until more is in the log than `sequence`, or the session ends.
    pub async fn wait_beyond(&self, sequence: u64) -> Result<(), VolumeError> {
        let mut board = self.board.subscribe();
        let _ = board.wait_for(|status| status.committed > sequence || status.over.is_some()).await;
        self.check()
    }

    /// Waits until the session is over.
    pub async fn wait_over(&self) -> Over {
        let mut board = self.board.subscribe();
        let status = board.wait_for(|status| status.over.is_some()).await;
        status.ok().and_then(|status| status.over.clone()).unwrap_or(Over::Closed)
    }
}
