//! Journals that nobody uses: what a node that has lost power finds when it is back.
//!
//! # Expected flow
//! Who keeps journals lists them from time to time, and settles those whose volumes it does not serve.
//!
//! # Guarantees
//! - What the journal of a grant in force holds is in the log before the journal is removed.
//! - The journal of a grant that is over is never replayed. It is set aside, or removed if it holds nothing.
//! - After an error the journal is where it was, unless only the session's Close is missing.
//!
//! # Assumptions
//! Nobody else on this node opens the volume meanwhile.
//!
//! # Crash behaviour
//! A process that dies on the way leaves the journal as it is, and perhaps a session, which the next opener ends. What
//! is put into the log twice is put there under the same numbers.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Ended, JournalName, JournaledBuffer, Journals, JournalsError, Owner};
use crate::control::describe;
use crate::log::{Log, LogError};
use crate::volume::{Volume, VolumeError};

/// What became of a journal that nobody used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Its grant is in force, and the log has what it held.
    Written,
    /// Its grant was over.
    Over(Ended),
    /// The volume is not this node's any more, as has just been seen: it is ended when it is looked at next.
    Later,
}

/// Why a journal that nobody uses has to wait.
#[derive(Debug, thiserror::Error)]
pub enum SettleError<E: Display> {
    /// Whether its grant is in force could not be told.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The journal, or where it lies, could not be used.
    #[error(transparent)]
    Journals(#[from] JournalsError),
    /// The volume could not be opened.
    #[error("{0}")]
    Open(E),
    /// The volume could not be written.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The store has not taken everything in time.
    #[error("the store has not taken what the journal {name} holds within {limit:?}")]
    Late {
        /// The journal.
        name: JournalName,
        /// How long was waited.
        limit: Duration,
    },
}

/// Waits for the store, no longer than `limit`.
async fn in_time<E: Display>(
    name: &JournalName,
    limit: Duration,
    work: impl Future<Output = Result<(), VolumeError>>,
) -> Result<(), SettleError<E>> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(SettleError::Late { name: name.clone(), limit }),
    }
}

impl Journals {
    /// Puts what a journal holds into the log of its volume, if its grant is in force, and ends it. `open` opens the
    /// volume under the journal's grant, with that journal; none if the grant turns out to be over. Waits for the store
    /// `limit` in each step.
    pub async fn settle<E: Display>(
        &self,
        name: &JournalName,
        log: &Log,
        limit: Duration,
        open: impl AsyncFnOnce() -> Result<Option<(Volume, Arc<JournaledBuffer>)>, E>,
    ) -> Result<Settled, SettleError<E>> {
        let held = describe(log, Instant::now() + limit).await?.grant;
        if held.is_none_or(|held| held.id != name.grant) {
            let journal = self.open(name, Owner::of(log, name.grant)).await?;
            return Ok(Settled::Over(self.end(name, &journal, log.env.clock.now_ms()).await?));
        }
        let Some((volume, buffer)) = open().await.map_err(SettleError::Open)? else {
            return Ok(Settled::Later);
        };
        if let Err(error) = in_time(name, limit, volume.drain()).await {
            volume.abandon();
            return Err(error);
        }
        if let Some(journal) = buffer.take_journal() {
            self.end(name, &journal, log.env.clock.now_ms()).await?;
        }
        in_time(name, limit, volume.close()).await?;
        Ok(Settled::Written)
    }
}
