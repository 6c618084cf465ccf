//! An open volume: one session that reads and writes.
//!
//! # Expected flow
//! A write is copied to the dirty buffer and answered. What gathers is closed as a *layer* when a segment is full, and
//! uploaded while more gathers and records are on their way. The *committer* (one task) appends records, one after the
//! other: each makes visible the oldest layers that have landed, and what has gathered since, if that is little, travels
//! inside it. Without anybody who waits, a record is due when the dirty buffer needs room, or after some seconds. A
//! flush waits for the record that covers it; flushes that come while a record is on its way share the next one. Reads
//! look into the layers not yet in the log, then into the map, then fetch chunks.
//!
//! # Guarantees
//! - A flush is answered only when a record that took effect covers every write answered before it, or the dirty
//!   buffer's journal ([`crate::journal`]) holds what no record covers.
//! - Once a record of others has ended the session, nothing is acknowledged any more: all operations fail with
//!   [`VolumeError::Over`].
//! - Layers enter the log in the order of the writes, each as a whole.
//!
//! # Assumptions
//! The dirty buffer is this process's alone (a successor waits for the old process's death).
//!
//! # Crash behaviour
//! A crash leaves in the log a prefix of the layers, and in the dirty buffer every answered write that is not in it.
//! The next session under the same grant serves those from the start and commits them with its first batch, before
//! anything newer. Segments that no record names are garbage for the collector.

mod ahead;
mod batch;
mod bulk;
mod checkpoint;
mod commit;
mod cut;
mod error;
mod fetch;
mod hydrate;
mod open;
mod outage;
mod overlay;
mod read;
mod status;
mod unlogged;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

pub use ahead::AheadLimits;
use batch::Batch;
pub use bulk::{Bulk, Writer};
pub use cut::Cut;
pub use error::{Over, VolumeError};
pub use fetch::{FetchError, Fetcher};
use hydrate::Wanted;
pub use hydrate::{Hydrate, Hydration, Pace, bytes_in, hydrate};
pub(crate) use open::MapSink;
pub use open::{OpenError, OpenOptions};
pub use outage::{Away, Outage};
use overlay::Dirty;
pub use read::{BlockReader, Blocks, Present, cut};
use status::StatusBoard;
pub use status::Work;
use unlogged::Unlogged;
use upload::Spare;

use crate::buffer::{BufferError, DirtyBuffer, Mutation};
use crate::codec::{self, Codec};
use crate::ids::{BLOCK_BYTES, ObjectId, RecordNumber, SessionId, SnapshotId, VolumeId};
use crate::log::{Control, Log, Op};
use crate::map::MapView;

/// How long a single object's put is tried before who waits for it is told.
const PATIENCE: Duration = Duration::from_secs(120);

/// The pause between checkpoints that are made one after the other to forget ancestors, a few hundred pages each: by so
/// much longer after each one, since an archive that is away lets none of them succeed.
const FORGET_PAUSE: Duration = Duration::from_secs(1);
const FORGET_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Runs of blocks that gather in one layer at most: as many as surely fit a record.
const RUNS_MAX: usize = codec::RECORD_EXTENTS_MAX / 4;

/// Bounds and rhythms of an open volume.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of data at which a segment is full.
    pub segment_bytes: u64,
    /// Data of at most this many bytes travel inside their record.
    pub inline_bytes: u64,
    /// How long an unflushed write stays out of the log.
    pub age: Duration,
    /// Records after which a checkpoint is due.
    pub checkpoint_records: u64,
    /// Bytes of map entries in memory only after which a checkpoint is due.
    pub checkpoint_map_bytes: usize,
    /// Bytes of map entries in memory only at which appends wait for the checkpoint that is under way: a replay would
    /// read all of them.
    pub replay_map_bytes: usize,
    /// How long an object that nothing needs any more is kept, by the store's clock.
    pub grace: Duration,
    /// How long I/O waits for a store that is away before it fails, counted from the beginning of the outage.
    pub outage: Duration,
    /// How chunks are compressed.
    pub codec: Codec,
    /// When the volume is read ahead of its readers, and how far.
    pub ahead: AheadLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment_bytes: 12 << 20,
            inline_bytes: 256 << 10,
            age: Duration::from_secs(5),
            checkpoint_records: 512,
            checkpoint_map_bytes: 4 << 20,
            replay_map_bytes: 20 << 20,
            grace: Duration::from_secs(3600),
            outage: Duration::from_secs(3600),
            codec: Codec::Lz4,
            ahead: AheadLimits::default(),
        }
    }
}

/// What the committer is asked for.
#[derive(Debug)]
enum Request {
    Append(Box<Append>),
    Cut(oneshot::Sender<Cut>),
}

/// Something that the committer is asked to append.
#[derive(Debug)]
struct Append {
    ops: Vec<Op>,
    /// A bulk write whose segments are uploaded.
    bulk: Batch,
    /// Whether to answer only when a checkpoint covers the record.
    checkpoint: bool,
    reply: oneshot::Sender<Result<Appended, VolumeError>>,
}

/// A record of ours that took effect.
#[derive(Debug, Clone)]
pub struct Appended {
    /// Its number.
    pub number: RecordNumber,
    /// The state after it.
    pub control: Arc<Control>,
}

/// What the collector must leave alone, besides what the map names.
#[derive(Debug, Default)]
struct Ownership {
    /// Segments put, or being put, that no record names yet.
    uploading: BTreeSet<ObjectId>,
    /// Runs that bulk writes are under way for, with how many.
    runs: BTreeMap<ObjectId, usize>,
    /// Ancestors in whose segments no block of the head lies any more.
    hydrated: BTreeSet<VolumeId>,
}

#[derive(Debug)]
struct Shared {
    id: VolumeId,
    log: Log,
    session: SessionId,
    limits: Limits,
    size_bytes: AtomicU64,
    buffer: Arc<dyn DirtyBuffer>,
    unlogged: Mutex<Unlogged>,
    ownership: Mutex<Ownership>,
    /// Rings when the committer has something to do.
    bell: Notify,
    /// A layer that is uploaded holds one.
    uploads: Semaphore,
    spare: Spare,
    board: StatusBoard,
    reader: BlockReader,
    /// Whether the stores that blocks are read from answer.
    reads: Outage<VolumeError>,
    /// What was read last.
    wanted: Wanted,
    /// Whether the session's Close is in the log.
    closed: AtomicBool,
    /// A write to part of a block holds it alone, from reading the block until the whole of it is in the buffer, and
    /// would undo what comes between; all other mutations share it.
    whole: tokio::sync::RwLock<()>,
}

/// A volume that this process has open, to read and write.
#[derive(Debug, Clone)]
pub struct Volume {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

impl Shared {
    fn unlogged(&self) -> MutexGuard<'_, Unlogged> {
        self.unlogged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ownership(&self) -> MutexGuard<'_, Ownership> {
        self.ownership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session for all who look. No mutation is answered afterwards: what the buffer holds then is what a
    /// successor finds.
    fn end(&self, reason: Over) {
        let _unlogged = self.unlogged();
        self.board.end(reason);
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        let size_bytes = self.size_bytes.load(Ordering::Acquire);
        match offset.checked_add(len) {
            Some(end) if end <= size_bytes => Ok(()),
            Some(_) | None => Err(VolumeError::OutOfRange { volume: self.id, offset, len, size_bytes }),
        }
    }
}

impl Volume {
    /// The volume's id.
    pub fn id(&self) -> VolumeId {
        self.shared.id
    }

    /// The session's id.
    pub fn session(&self) -> SessionId {
        self.shared.session
    }

    /// The volume's size, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes.load(Ordering::Acquire)
    }

    /// Fails once the session is over.
    pub fn check(&self) -> Result<(), VolumeError> {
        self.shared.board.check()
    }

    /// Waits until the session is over, and says why.
    pub async fn wait_over(&self) -> Over {
        self.shared.board.wait_over().await
    }

    /// Reads `len` bytes at `offset`. What was never written, or was discarded, reads as zeros.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Bytes, VolumeError> {
        Ok(read::joined(&self.read_pieces(offset, len).await?))
    }

    /// Reads as [`Self::read`] does, without copying: one piece after the other, where they lie in memory, a block or a
    /// part of one at least each.
    pub async fn read_pieces(&self, offset: u64, len: u64) -> Result<Vec<Bytes>, VolumeError> {
        let shared = &self.shared;
        shared.board.check()?;
        shared.check_range(offset, len)?;
        if len == 0 {
            return Ok(Vec::new());
        }
        let (from, to) = (offset / BLOCK_BYTES, (offset + len).div_ceil(BLOCK_BYTES));
        let blocks = self.read_blocks(from, to).await?;
        // What a superseded session knows may be old: a read that ends after its end is not answered.
        shared.board.check()?;
        Ok(cut(blocks, offset, len))
    }

    async fn read_blocks(&self, from: u64, to: u64) -> Result<Vec<Bytes>, VolumeError> {
        let dirty: Vec<Dirty> = self.shared.unlogged().view(from, to).iter().cloned().collect();
        let mut pieces = Vec::new();
        let mut at = from;
        for Dirty { lba, blocks, data, .. } in dirty {
            if at < lba {
                pieces.extend(self.read_stored((at, lba)).await?);
            }
            match data {
                Some(data) => pieces.push(data),
                None => pieces.extend(read::zeros(blocks)),
            }
            at = lba + blocks;
        }
        if at < to {
            pieces.extend(self.read_stored((at, to)).await?);
        }
        Ok(pieces)
    }

    /// Reads what is in the log. Waits for a store that is away, and no longer than the session lasts.
    async fn read_stored(&self, range: (u64, u64)) -> Result<Vec<Bytes>, VolumeError> {
        let Shared { reads, reader, log, board, wanted, .. } = &*self.shared;
        wanted.read(range.0);
        tokio::select! {
            biased;
            outcome = reads.read(reader, range, &log.env) => outcome,
            reason = board.wait_over() => Err(VolumeError::Over { volume: self.shared.id, reason }),
        }
    }

    /// Writes `data` at `offset`. It is answered when the data lies in the dirty buffer; [`Self::flush`] makes it
    /// durable. Waits while the buffer is full, and then for the store as [`Self::flush`] does.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        self.shared.check_range(offset, data.len() as u64)?;
        if data.is_empty() {
            return self.check();
        }
        if offset.is_multiple_of(BLOCK_BYTES) && (data.len() as u64).is_multiple_of(BLOCK_BYTES) {
            let _whole = self.shared.whole.read().await;
            return self.mutate(Mutation::Write { offset, data }).await;
        }
        let _alone = self.shared.whole.write().await;
        let (from, to) = (offset / BLOCK_BYTES, (offset + data.len() as u64).div_ceil(BLOCK_BYTES));
        let mut whole = self.read_blocks(from, to).await?.concat();
        let skip = (offset - from * BLOCK_BYTES) as usize;
        whole[skip..skip + data.len()].copy_from_slice(&data);
        self.mutate(Mutation::Write { offset: from * BLOCK_BYTES, data: whole.into() }).await
    }

    /// Makes `len` bytes at `offset` read as zeros. Whole blocks are given back to the pool.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.shared.check_range(offset, len)?;
        let (first, last) =
            (offset.div_ceil(BLOCK_BYTES) * BLOCK_BYTES, (offset + len) / BLOCK_BYTES * BLOCK_BYTES);
        if first >= last {
            return self.write(offset, BytesMut::zeroed(len as usize).freeze()).await;
        }
        self.write(offset, BytesMut::zeroed((first - offset) as usize).freeze()).await?;
        {
            let _whole = self.shared.whole.read().await;
            self.mutate(Mutation::Discard { offset: first, len: last - first }).await?;
        }
        self.write(last, BytesMut::zeroed((offset + len - last) as usize).freeze()).await
    }

    async fn mutate(&self, mutation: Mutation) -> Result<(), VolumeError> {
        let shared = &self.shared;
        loop {
            let committed = shared.board.now().committed;
            let closed = {
                let mut unlogged = shared.unlogged();
                shared.board.check()?;
                let room = !unlogged.is_crowded();
                match if room { shared.buffer.append(&mutation) } else { Err(BufferError::Full) } {
                    Ok(sequence) => {
                        let closed = unlogged.record(sequence, &mutation, &shared.limits);
                        if unlogged.is_news(&shared.limits) {
                            shared.bell.notify_one();
                        }
                        Some(closed)
                    }
                    Err(BufferError::Full) => {
                        unlogged.press();
                        shared.bell.notify_one();
                        None
                    }
                    Err(reason) => return Err(VolumeError::Buffer { volume: shared.id, reason }),
                }
            };
            match closed {
                Some(true) => {
                    shared.begin_uploads();
                    return Ok(());
                }
                Some(false) => return Ok(()),
                None => {}
            }
            shared.board.wait_beyond(committed).await?;
        }
    }

    /// Returns when every write answered so far is durable: in the dirty buffer's journal, if it has one that takes it,
    /// else in the store, as [`Self::drain`] makes it.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        let sequence = self.shared.unlogged().last();
        if self.shared.buffer.persist(sequence).await {
            return self.check();
        }
        self.drain().await
    }

    /// Returns when every write answered so far is in the store, in a record that took effect. Waits for a store that
    /// is away as long as [`Limits::outage`] says; what it then could not write stays, and is tried again.
    pub async fn drain(&self) -> Result<(), VolumeError> {
        let sequence = self.shared.unlogged().want_all();
        if self.shared.board.now().committed >= sequence {
            return self.check();
        }
        self.shared.bell.notify_one();
        self.shared.board.wait_for(sequence).await
    }

    /// Takes a snapshot of everything answered so far. Returns when its map is durable too.
    pub async fn snapshot(&self, name: &str, meta: &str) -> Result<SnapshotId, VolumeError> {
        let ops = vec![Op::Snapshot { name: name.into(), meta: meta.into() }];
        Ok(SnapshotId(self.append(ops, true).await?.number.0))
    }

    /// Grows the volume.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), VolumeError> {
        self.append(vec![Op::Resize { size_bytes }], false).await.map(|_| ())
    }

    /// Appends one record with all that was written so far and `ops`; with `checkpoint`, waits for a checkpoint that
    /// covers it.
    pub async fn append(&self, ops: Vec<Op>, checkpoint: bool) -> Result<Appended, VolumeError> {
        self.request(ops, Batch::default(), checkpoint).await
    }

    /// The head's map as it is in the log now, as a view that never changes.
    pub fn frozen(&self) -> Option<MapView> {
        match self.shared.reader.blocks() {
            Blocks::Head(map) => Some(map.freeze()),
            Blocks::Moment(_) => None,
        }
    }

    /// Checkpoints until the two newest roots name no object of `ancestors`, which a walk must have shown possible. Other
    /// ancestors stay what they are.
    async fn forget_origins(&self, ancestors: &BTreeSet<VolumeId>) -> Result<(), VolumeError> {
        self.shared.ownership().hydrated.extend(ancestors);
        let mut pause = Duration::ZERO;
        while self.reads_from(ancestors) {
            tokio::select! {
                biased;
                _ = self.wait_over() => self.check()?,
                () = tokio::time::sleep(pause) => {}
            }
            self.append(vec![Op::Noop], true).await?;
            pause = FORGET_PAUSE_MAX.min(pause + FORGET_PAUSE);
        }
        if !pause.is_zero() {
            self.append(vec![Op::Noop], true).await?;
        }
        Ok(())
    }

    async fn request(&self, ops: Vec<Op>, bulk: Batch, checkpoint: bool) -> Result<Appended, VolumeError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Append(Box::new(Append { ops, bulk, checkpoint, reply }));
        self.requests.send(request).await.map_err(|_| self.over())?;
        answer.await.map_err(|_| self.over())?
    }

    /// What to say when the committer is gone.
    fn over(&self) -> VolumeError {
        let reason = self.shared.board.now().over.unwrap_or(Over::Closed);
        VolumeError::Over { volume: self.shared.id, reason }
    }

    /// The volume's log.
    pub(crate) fn log(&self) -> &Log {
        &self.shared.log
    }

    /// Bounds and rhythms.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// What this session has put into the store.
    pub fn work(&self) -> Work {
        self.shared.board.now().work
    }

    /// Waits until `enough` says so of what this session has put into the store.
    pub async fn worked(&self, enough: impl Fn(Work) -> bool) -> Result<(), VolumeError> {
        self.shared.board.worked(enough).await
    }

    /// Writes everything, checkpoints and ends the session. The volume cannot be used afterwards.
    pub async fn close(&self) -> Result<(), VolumeError> {
        self.finish(false).await
    }

    /// As [`Self::close`], and gives the grant back in the same record: records that end a session or a grant are kept
    /// for ever, so whoever holds a volume only to look after it leaves as few as it can.
    pub async fn give_back(&self) -> Result<(), VolumeError> {
        self.finish(true).await
    }

    async fn finish(&self, gives_back: bool) -> Result<(), VolumeError> {
        let closing = async {
            let control = self.append(Vec::new(), true).await?.control;
            let grant = control.grant.as_ref().filter(|_| gives_back);
            let revoke = grant.map(|grant| Op::Revoke { grant: grant.id });
            self.append([Op::Close].into_iter().chain(revoke).collect(), false).await
        };
        match closing.await {
            // By an earlier or a concurrent call.
            Err(VolumeError::Over { .. }) if self.shared.closed.load(Ordering::Acquire) => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    /// Since when the store has failed, for writes or reads, if it does; and what it said last.
    pub fn away(&self) -> Option<(Instant, String)> {
        let writes = self.shared.board.away().map(|away| (away.since, away.error.to_string()));
        let reads = self.shared.reads.away().map(|away| (away.since, away.error.to_string()));
        writes.into_iter().chain(reads).min_by_key(|(since, _)| *since)
    }

    /// Drops the session without a word to the store, as a crash would: what is in the dirty buffer stays there.
    pub fn abandon(&self) {
        self.shared.end(Over::Closed);
    }

    /// Bytes answered and not yet in the log.
    pub fn dirty_bytes(&self) -> u64 {
        self.shared.unlogged().data_bytes()
    }

    /// How the blocks of this session are read, with the map as it is in the log.
    pub fn reader(&self) -> &BlockReader {
        &self.shared.reader
    }
}

/// Waits until `at`; for ever without one.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A fresh object id.
fn random_id(env: &crate::env::Env) -> ObjectId {
    ObjectId::random(&*env.entropy)
}

#[cfg(test)]
mod tests;
