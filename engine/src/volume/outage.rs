//! Waiting for a store that is away.
//!
//! A file system whose disk fails a flush gives up its journal, and a database stops. So I/O that needs a store waits
//! for it, as that of a disk behind a network does, for as long as a whole outage may last.
//!
//! # Guarantees
//! - What waits goes on when the store answers again, and nothing of it is lost.
//! - The limit is one of the outage, not of each request: once the store has been away so long, everything that waits
//!   fails, and what comes later fails soon, until the store answers. So whoever takes the volume away then does not
//!   wait again with every block.
//!
//! # Assumptions
//! Who asks is bounded: writes by the dirty buffer, requests by the front end.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{BlockReader, VolumeError};
use crate::env::Env;
use crate::ids::VolumeId;
use crate::store::Backoff;

/// An outage that has lasted so long is worth a line in the log.
const NOTICE: Duration = Duration::from_secs(10);
/// What a request that comes after the limit is given to find the store back.
const LATE: Duration = Duration::from_secs(10);

/// A store that does not do what it is asked.
#[derive(Debug, Clone)]
pub struct Away<E> {
    /// When the first of the attempts began that have failed without interruption.
    pub since: Instant,
    /// What the last one met.
    pub error: E,
    is_noted: bool,
}

/// Whether a volume's store is away, for one kind of its requests.
#[derive(Debug)]
pub struct Outage<E> {
    volume: VolumeId,
    what: &'static str,
    limit: Duration,
    away: watch::Sender<Option<Away<E>>>,
}

impl<E: Clone + Display> Outage<E> {
    /// For `what` of a volume, which wait at most `limit`.
    pub fn new(volume: VolumeId, what: &'static str, limit: Duration) -> Self {
        Self { volume, what, limit, away: watch::Sender::new(None) }
    }

    /// The outage, if there is one that has lasted for more than some seconds.
    pub fn away(&self) -> Option<Away<E>> {
        self.away.borrow().clone().filter(|away| away.is_noted)
    }

    /// Notes that an attempt has failed that began at `begun`.
    pub fn failed(&self, begun: Instant, error: E) {
        self.away.send_modify(|away| {
            let before = away.as_ref();
            let since = before.map_or(begun, |away| away.since.min(begun));
            let mut is_noted = before.is_some_and(|away| away.is_noted);
            if !is_noted && since.elapsed() >= NOTICE {
                is_noted = true;
                let (volume, what, limit_s) = (self.volume, self.what, self.limit.as_secs());
                tracing::warn!(%volume, %error, limit_s, "the store is away; {what} of the volume wait for it");
            }
            *away = Some(Away { since, error, is_noted });
        });
    }

    /// Notes that the store has done what it was asked.
    pub fn ended(&self) {
        self.away.send_if_modified(|away| {
            let Some(ended) = away.take() else { return false };
            if ended.is_noted {
                let (volume, what, seconds) = (self.volume, self.what, ended.since.elapsed().as_secs());
                tracing::info!(%volume, seconds, "the store is back; {what} of the volume go on");
            }
            true
        });
    }

    /// Waits until the store has been away for longer than the limit; says what the last attempt met.
    pub async fn outlasts(&self) -> E {
        let mut changes = self.away.subscribe();
        loop {
            let ends = match &*changes.borrow_and_update() {
                Some(away) if away.since + self.limit <= Instant::now() => return away.error.clone(),
                Some(away) => Some(away.since + self.limit),
                None => None,
            };
            tokio::select! {
                biased;
                // The sender is ours, so there is always somebody who may still change it.
                _ = changes.changed() => {}
                () = super::sleep_until(ends) => {}
            }
        }
    }
}

impl Outage<VolumeError> {
    /// Reads as [`BlockReader::pieces`] does, again and again until the store has answered, or has been away for too
    /// long.
    pub async fn read(
        &self,
        reader: &BlockReader,
        (from, to): (u64, u64),
        env: &Env,
    ) -> Result<Vec<Bytes>, VolumeError> {
        let (begun, answers) = (Instant::now(), reader.fetcher().answers());
        let mut backoff = Backoff::default();
        loop {
            let since = self.away.borrow().as_ref().map_or(begun, |away| away.since.min(begun));
            let ends = (since + self.limit).max(begun + LATE);
            match tokio::time::timeout_at(ends, reader.pieces(from, to)).await {
                Ok(Err(error)) if error.may_pass() => {
                    self.failed(begun, error.clone());
                    if Instant::now() >= ends {
                        return Err(error);
                    }
                    backoff.pause(env).await;
                }
                Ok(outcome) => {
                    // What comes from the cache says nothing about the store.
                    if outcome.is_ok() && reader.fetcher().answers() != answers {
                        self.ended();
                    }
                    return outcome;
                }
                Err(_) => {
                    let seconds = begun.elapsed().as_secs();
                    let error = VolumeError::NoAnswer { volume: self.volume, seconds };
                    self.failed(begun, error.clone());
                    return Err(error);
                }
            }
        }
    }
}
