//! The committer: the one task of a session that appends to the log.
//!
//! Exactly one record is in flight at a time. A put whose reply is lost is repeated with the same bytes at the same
//! number until its fate is known; nothing else is ever encoded for that number meanwhile.
//!
//! Appends wait for the checkpoint that is under way while too much would have to be replayed without it
//! ([`super::Limits::replay_map_bytes`]). A checkpoint that fails lets them go on until the next one begins.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::batch::{self, Batch};
use super::checkpoint::Checkpointer;
use super::unlogged::{Due, Taken};
use super::{Append, Appended, Cut, Over, Request, Shared, VolumeError, random_id, sleep_until};
use crate::codec;
use crate::ids::{ObjectId, RecordNumber};
use crate::log::{Control, Log, LogError, Op, Put, Record};
use crate::map::{Map, PageSource};
use crate::pool::layout;
use crate::store::Backoff;

/// How often a busy owner looks whether the controller wants the volume back.
const FENCE_LOOK: Duration = Duration::from_secs(1);

/// A request whose record is in the log and whose checkpoint is not done.
#[derive(Debug)]
struct Waiting {
    appended: Appended,
    reply: oneshot::Sender<Result<Appended, VolumeError>>,
}

#[derive(Debug)]
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Log,
    pub(super) pages: Arc<dyn PageSource>,
    pub(super) map: Arc<Map>,
    pub(super) control: Control,
    pub(super) next: RecordNumber,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) checkpointer: Checkpointer,
    pub(super) fence_seen: Instant,
}

/// Ends the session for those who wait also if the committer panics.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        // The first reason stays.
        self.0.end(Over::Broken { reason: "the task that commits its writes has failed".into() });
    }
}

/// Why a commit did not happen.
#[derive(Debug)]
enum CommitError {
    /// The session is over.
    Over(Over),
    /// This request cannot be met; the session goes on.
    Refused(VolumeError),
}

impl From<Over> for CommitError {
    fn from(over: Over) -> Self {
        Self::Over(over)
    }
}

impl Committer {
    /// Serves the session until it is over.
    pub(super) async fn run(mut self) {
        let ending = Ending(Arc::clone(&self.shared));
        let mut waiting: Vec<Waiting> = Vec::new();
        let over = self.serve(&mut waiting).await;
        ending.0.end(over);
        // Requests that wait fail now, with that reason: their reply channels close with `self` and `waiting`.
    }

    async fn serve(&mut self, waiting: &mut Vec<Waiting>) -> Over {
        loop {
            let is_held = self.checkpointer.holds_appends(&self.map);
            let due = self.due();
            let wake = match due {
                Due::At(at) => Some(at),
                Due::Never | Due::Now(_) => None,
            };
            let wake = wake.into_iter().chain(self.checkpointer.retry_at()).min();
            let request = tokio::select! {
                biased;
                over = self.shared.board.wait_over() => return over,
                done = self.checkpointer.finished() => {
                    if let Err(error) = self.checkpoint_done(done, waiting) {
                        return error;
                    }
                    None
                }
                request = self.requests.recv(), if !is_held => match request {
                    Some(request) => Some(request),
                    // Every handle is gone: nobody can flush or close any more, as after a crash.
                    None => return Over::Closed,
                },
                () = std::future::ready(()), if matches!(due, Due::Now(_)) => None,
                () = self.shared.bell.notified() => None,
                () = sleep_until(wake) => None,
            };
            let outcome = match request {
                Some(Request::Append(append)) => self.serve_append(*append, waiting).await,
                Some(Request::Cut(reply)) => {
                    let _ = reply.send(self.cut());
                    Ok(())
                }
                None => match self.due() {
                    Due::Now(target) => self.commit(target, Vec::new(), Batch::default()).await.map(|_| ()),
                    Due::At(_) | Due::Never => Ok(()),
                },
            };
            match outcome {
                Ok(()) | Err(CommitError::Refused(_)) => {}
                Err(CommitError::Over(over)) => return over,
            }
            if self.control.session.is_none() {
                self.shared.closed.store(true, Ordering::Release);
                return Over::Closed;
            }
            if let Err(CommitError::Over(over)) = self.checkpoint_if_due(!waiting.is_empty()).await {
                return over;
            }
        }
    }

    async fn checkpoint_if_due(&mut self, wanted: bool) -> Result<(), CommitError> {
        if !self.checkpointer.is_due(&self.map, self.next, wanted) {
            return Ok(());
        }
        if self.checkpointer.was_tried(self.next) {
            let target = self.shared.unlogged().last();
            self.commit(target, vec![Op::Noop], Batch::default()).await?;
        }
        let hydrated = self.shared.ownership().hydrated.clone();
        self.checkpointer.start(&self.map, &self.control, self.next, &hydrated);
        Ok(())
    }

    fn due(&self) -> Due {
        if self.checkpointer.holds_appends(&self.map) {
            return Due::Never;
        }
        self.shared.unlogged().due(self.shared.buffer.capacity_bytes(), &self.shared.limits)
    }

    /// Everything that the session can reach, at one moment between two records.
    fn cut(&self) -> Cut {
        let ownership = self.shared.ownership();
        Cut {
            control: Arc::new(self.control.clone()),
            head: self.map.freeze(),
            unmapped: self.checkpointer.unmapped_snapshots().cloned().collect(),
            kept: self.checkpointer.kept().clone(),
            seen_after: self.checkpointer.seen_after(),
            uploading: ownership.uploading.clone(),
            runs: ownership.runs.keys().copied().collect(),
        }
    }

    async fn serve_append(&mut self, append: Append, waiting: &mut Vec<Waiting>) -> Result<(), CommitError> {
        let Append { ops, bulk, checkpoint, reply } = append;
        let target = self.shared.unlogged().last();
        match self.commit(target, ops, bulk).await {
            Ok(number) => {
                let appended = Appended { number, control: Arc::new(self.control.clone()) };
                if checkpoint && self.checkpointer.covers() < number {
                    waiting.push(Waiting { appended, reply });
                } else {
                    // Whoever asked may have gone; what was asked for is done all the same.
                    let _ = reply.send(Ok(appended));
                }
                Ok(())
            }
            Err(CommitError::Refused(error)) => {
                let _ = reply.send(Err(error));
                Ok(())
            }
            Err(CommitError::Over(over)) => {
                self.shared.end(over.clone());
                Err(CommitError::Over(over))
            }
        }
    }

    fn checkpoint_done(
        &mut self,
        done: Result<super::checkpoint::Done, Arc<LogError>>,
        waiting: &mut Vec<Waiting>,
    ) -> Result<(), Over> {
        match done {
            Ok(done) => {
                self.checkpointer.install(&self.map, &mut self.control, done)?;
                let covers = self.checkpointer.covers();
                let control = Arc::new(self.control.clone());
                for Waiting { appended, reply } in
                    waiting.extract_if(.., |waiting| waiting.appended.number <= covers)
                {
                    let _ = reply.send(Ok(Appended { control: Arc::clone(&control), ..appended }));
                }
            }
            Err(reason) => {
                for Waiting { reply, .. } in waiting.drain(..) {
                    let error =
                        VolumeError::NotCommitted { volume: self.shared.id, reason: Arc::clone(&reason) };
                    let _ = reply.send(Err(error));
                }
            }
        }
        Ok(())
    }

    /// Commits all mutations up to `target`, a bulk write that is uploaded, and `ops`, in one record. With nothing to say
    /// it appends nothing, and answers the last record.
    async fn commit(&mut self, target: u64, ops: Vec<Op>, bulk: Batch) -> Result<RecordNumber, CommitError> {
        self.check_ops(&ops)?;
        // What a record carries itself comes behind its ops, and nothing may come behind a Close.
        let inline_bytes = if ops.contains(&Op::Close) { 0 } else { self.shared.limits.inline_bytes };
        let mut taken = self.take(target, inline_bytes).await?;
        if taken.is_empty() && ops.is_empty() && bulk.is_empty() {
            return Ok(RecordNumber(self.next.0 - 1));
        }
        let mut batches = std::mem::take(&mut taken.batches);
        batches.push(Arc::new(bulk));
        if let Some(tail) = &taken.tail {
            let broken = |reason: codec::CodecError| Over::Broken { reason: reason.to_string() };
            let Shared { session, limits, log, spare, .. } = &*self.shared;
            let tail = batch::encode(tail, *session, limits, log, spare).await.map_err(broken)?;
            batches.push(Arc::new(tail));
        }
        let record = self.append_record(&batches, &ops, taken.last).await?;
        self.apply_to_map(&record).await?;
        if self.shared.unlogged().logged(&taken) {
            self.shared.spare.clear();
        }
        let mut ownership = self.shared.ownership();
        batches.iter().flat_map(|batch| batch.segments.iter().chain(&batch.moved)).for_each(|segment| {
            ownership.uploading.remove(&segment.id);
        });
        drop(ownership);
        self.shared.size_bytes.store(self.control.size_bytes, Ordering::Release);
        self.shared.buffer.free(taken.last);
        let stored_bytes = batches.iter().map(|batch| batch.stored_bytes()).sum();
        let deletions = ops.iter().filter(|op| matches!(op, Op::DeleteSnapshot { .. })).count() as u64;
        self.shared.board.appended(stored_bytes, deletions);
        self.shared.board.committed(taken.last);
        Ok(record.number)
    }

    /// Waits until all mutations up to `target` have landed but what goes into the record.
    async fn take(&self, target: u64, inline_bytes: u64) -> Result<Taken, Over> {
        loop {
            let taken = self.shared.unlogged().take(target, inline_bytes);
            match taken {
                Some(taken) => return Ok(taken),
                None => self.shared.begin_uploads(),
            }
            tokio::select! {
                biased;
                over = self.shared.board.wait_over() => return Err(over),
                () = self.shared.bell.notified() => {}
            }
        }
    }

    /// Refuses what would not be legal, or not fit a record, before any of it is begun.
    fn check_ops(&self, ops: &[Op]) -> Result<(), CommitError> {
        if ops.is_empty() {
            return Ok(());
        }
        let probe = Record {
            volume: self.log.volume,
            number: self.next,
            id: ObjectId::NONE,
            session: self.shared.session,
            prev: self.control.last,
            time_ms: 0,
            buffer_complete: 0,
            ops: ops.to_vec(),
        };
        let volume = self.log.volume;
        let refused = |reason| CommitError::Refused(VolumeError::Illegal { volume, reason });
        self.control.check(&probe).map_err(refused)?;
        let refused = |reason| CommitError::Refused(VolumeError::Codec { volume, reason });
        codec::encode_record(probe, None, None).map(|_| ()).map_err(refused)
    }

    /// Appends one record that makes `batches` visible and does `ops`.
    async fn append_record(
        &mut self,
        batches: &[Arc<Batch>],
        ops: &[Op],
        last: u64,
    ) -> Result<Record, CommitError> {
        loop {
            self.look_for_fence().await?;
            let id = random_id(&self.log.env);
            let number = self.next;
            let record = Record {
                volume: self.log.volume,
                number,
                id,
                session: self.shared.session,
                prev: self.control.last,
                time_ms: self.log.env.clock.now_ms(),
                buffer_complete: last,
                ops: Vec::new(),
            };
            let codec::EncodedRecord { bytes, record } = self.encode(record, batches, ops).await?;
            match self.put(&record, bytes).await? {
                Put::Done => {
                    self.control
                        .apply(&record)
                        .map_err(|inert| Over::Broken { reason: inert.to_string() })?;
                    self.next = number.next();
                    self.checkpointer.appended(&record);
                    return Ok(record);
                }
                Put::Taken(found) => self.step_over(&found).await?,
            }
        }
    }

    /// Encodes a record; only pages that have to be put first can make it wait.
    async fn encode(
        &self,
        record: Record,
        batches: &[Arc<Batch>],
        ops: &[Op],
    ) -> Result<codec::EncodedRecord, Over> {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            match batch::encode_record(record.clone(), batches, ops, &self.log, &self.pages).await {
                Ok(encoded) => return Ok(encoded),
                Err(LogError::Codec(error)) => return Err(Over::Broken { reason: error.to_string() }),
                Err(error) => self.shared.board.failed(begun, Arc::new(error)),
            }
            self.shared.pause(&mut backoff).await?;
        }
    }

    async fn put(&self, record: &Record, body: bytes::Bytes) -> Result<Put, Over> {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            // One attempt: what it meets is known at once.
            match self.log.put(record.number, record.id, body.clone(), begun).await {
                Ok(put) => return Ok(put),
                Err(LogError::Overtaken { number, .. }) => return Err(Over::Superseded { number }),
                Err(LogError::Codec(error)) => return Err(Over::Broken { reason: error.to_string() }),
                Err(
                    error @ (LogError::Store(_)
                    | LogError::Map(_)
                    | LogError::Illegal { .. }
                    | LogError::Raced { .. }
                    | LogError::Deadline { .. }),
                ) => {
                    self.shared.board.failed(begun, Arc::new(error));
                    self.shared.pause(&mut backoff).await?;
                }
            }
        }
    }

    /// A record of others lies at our next number. If it took effect, the session is over; so it is if somebody else
    /// has written a checkpoint. Else the record is inert, and we step over it.
    async fn step_over(&mut self, found: &Record) -> Result<(), Over> {
        if self.control.apply(found).is_ok() {
            return Err(Over::Superseded { number: found.number });
        }
        let mut backoff = Backoff::default();
        let newest = loop {
            let begun = Instant::now();
            match self.log.newest_root(begun).await {
                Ok(newest) => break newest,
                Err(error) => self.shared.board.failed(begun, Arc::new(error)),
            }
            self.shared.pause(&mut backoff).await?;
        };
        if newest.is_some_and(|number| number > self.checkpointer.newest_known()) {
            return Err(Over::Superseded { number: found.number });
        }
        self.checkpointer.stepped_over(found);
        self.next = found.number.next();
        Ok(())
    }

    async fn look_for_fence(&mut self) -> Result<(), Over> {
        if self.fence_seen.elapsed() < FENCE_LOOK {
            return Ok(());
        }
        self.fence_seen = Instant::now();
        let Some(session) = &self.control.session else { return Ok(()) };
        match self.log.store.get(&layout::fence(self.log.volume, session.grant)).await {
            Ok(_) => Err(Over::Fenced),
            // A store that fails here fails at the append as well, and says so there.
            Err(_) => Ok(()),
        }
    }

    async fn apply_to_map(&mut self, record: &Record) -> Result<(), CommitError> {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            match self.map.apply(&record.ops).await {
                Ok(()) => break,
                Err(error) if error.may_pass() => {
                    self.shared.board.failed(begun, Arc::new(error.into()));
                    self.shared.pause(&mut backoff).await?;
                }
                // The record is in the log, and the map cannot follow: going on would serve what is not there.
                Err(error) => return Err(Over::Broken { reason: error.to_string() }.into()),
            }
        }
        if record.ops.iter().any(|op| matches!(op, Op::Snapshot { .. })) {
            self.checkpointer.snapshot_taken(crate::ids::SnapshotId(record.number.0), self.map.freeze());
        }
        Ok(())
    }
}
