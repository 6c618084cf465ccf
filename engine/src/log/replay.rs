//! Replaying a log: from the newest root to the first number that is not there.
//!
//! A number that the collector removed looks like the log's end, so a replay is over only when a listing of the roots
//! *after* the missing number shows no newer root than the one it began with; else it begins again from that one.

use futures::StreamExt;
use tokio::time::Instant;

use super::{Control, Log, LogError, Record};
use crate::ids::RecordNumber;
use crate::map::{Root, StoredMap};

/// Records asked for ahead of the one being applied.
const READ_AHEAD: usize = 16;

/// What a replay builds. The control state is kept by the replay itself; a sink follows the map where one is needed.
#[async_trait::async_trait]
pub trait Sink: Send {
    /// The replay begins (again), from the state of `root`, or from an empty volume.
    fn begin(&mut self, root: Option<&StoredMap>);

    /// `record` took effect; `control` is the state after it.
    async fn effective(&mut self, record: &Record, control: &Control) -> Result<(), LogError>;
}

/// For whoever needs only the control state.
#[derive(Debug, Default)]
pub struct ControlOnly;

#[async_trait::async_trait]
impl Sink for ControlOnly {
    fn begin(&mut self, _root: Option<&StoredMap>) {}

    async fn effective(&mut self, _record: &Record, _control: &Control) -> Result<(), LogError> {
        Ok(())
    }
}

/// The state at the log's end.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// The control state.
    pub control: Control,
    /// The number after the last record.
    pub next: RecordNumber,
    /// The root that the replay began with; zero if it began with an empty volume.
    pub base: RecordNumber,
    /// The numbers of the records replayed that may never be deleted.
    pub kept: Vec<RecordNumber>,
}

impl Log {
    /// Replays the log to its end.
    pub async fn replay(&self, sink: &mut dyn Sink, deadline: Instant) -> Result<Replayed, LogError> {
        let mut newest = self.newest_root(deadline).await?;
        loop {
            let root = match newest {
                Some(number) => match self.root(number, deadline).await? {
                    Some(root) => Some(root),
                    // Superseded by two newer ones between the listing and the get.
                    None => {
                        newest = self.newest_root(deadline).await?;
                        continue;
                    }
                },
                None => None,
            };
            let state = self.replay_from(root, sink, deadline).await?;
            newest = self.newest_root(deadline).await?;
            if newest.unwrap_or_default() <= state.base {
                return Ok(state);
            }
        }
    }

    /// Replays what follows `root`, or the whole log, up to the first number that is not there. Whether that is the
    /// log's end is for the caller to find out.
    pub(crate) async fn replay_from(
        &self,
        root: Option<Root>,
        sink: &mut dyn Sink,
        deadline: Instant,
    ) -> Result<Replayed, LogError> {
        sink.begin(root.as_ref().map(|root| &root.map));
        let base = root.as_ref().map_or(RecordNumber(0), |root| root.number);
        let control = root.map(|root| root.control).unwrap_or_default();
        let mut state = Replayed { control, next: base.next(), base, kept: Vec::new() };
        // The first record decides whether reading ahead pays: an idle volume's replay ends there.
        let mut ahead = 1;
        loop {
            let first = state.next.0;
            let numbers = first..first + ahead as u64;
            let mut records = futures::stream::iter(numbers)
                .map(|number| self.get(RecordNumber(number), deadline))
                .buffered(READ_AHEAD);
            while let Some(record) = records.next().await {
                let Some(record) = record? else { return Ok(state) };
                if state.control.apply(&record).is_ok() {
                    sink.effective(&record, &state.control).await?;
                }
                if record.is_kept() {
                    state.kept.push(record.number);
                }
                state.next = record.number.next();
            }
            ahead = READ_AHEAD;
        }
    }
}
