//! Writing much at once, invisible until one record: an archive run, a hydration step.
//!
//! # Guarantees
//! Nothing of a bulk write is visible before [`Volume::commit_bulk`] has appended its record, and all of it is after.
//!
//! # Crash behaviour
//! Its segments carry the id of their *run* where a session's carry the session's. A run that died leaves segments that
//! nothing names, for the collector.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::batch::{Batch, CopiedChunk, Segment};
use super::{Appended, Blocks, Volume, VolumeError, random_id};
use crate::codec::{self, Chunks, Identity};
use crate::ids::{BLOCK_BYTES, ObjectId, SessionId};
use crate::log::{Log, Move, Op};
use crate::map::Extent;
use crate::pool::layout;
use crate::store::StoreError;

/// Segments of one bulk write that are uploaded together.
const PARALLEL: usize = 4;

type Upload = futures::future::BoxFuture<'static, Result<Segment, StoreError>>;

/// A bulk write under way.
pub struct Bulk {
    volume: Volume,
    log: Log,
    run: ObjectId,
    chunks: Chunks,
    uploads: FuturesUnordered<Upload>,
    batch: Batch,
    /// The segments of this bulk write, in order.
    begun: Vec<ObjectId>,
    /// What was copied from where, in order, and whether the head names it there.
    sources: Vec<(Extent, bool)>,
    uploaded_bytes: u64,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk").field("run", &self.run).field("segments", &self.batch.segments.len()).finish()
    }
}

/// Who wrote data first, and when: kept when the data is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The session.
    pub session: SessionId,
    /// The place in its write order.
    pub order: u64,
}

/// Whoever gives a bulk write up, or has committed it, protects its segments no longer.
impl Drop for Bulk {
    fn drop(&mut self) {
        let mut ownership = self.volume.shared.ownership();
        for id in &self.begun {
            ownership.uploading.remove(id);
        }
        match ownership.runs.get_mut(&self.run) {
            Some(writes) if *writes > 1 => *writes -= 1,
            Some(_) | None => {
                ownership.runs.remove(&self.run);
            }
        }
    }
}

impl Volume {
    /// Begins a bulk write whose segments carry `run`.
    pub fn bulk(&self, run: ObjectId) -> Bulk {
        *self.shared.ownership().runs.entry(run).or_default() += 1;
        Bulk {
            log: self.shared.log.clone(),
            volume: self.clone(),
            run,
            chunks: Chunks::new(self.shared.limits.codec, run),
            uploads: FuturesUnordered::new(),
            batch: Batch::default(),
            begun: Vec::new(),
            sources: Vec::new(),
            uploaded_bytes: 0,
        }
    }

    /// Makes what [`Bulk::relocate`] has copied the place of those blocks, wherever the head still names the source, in
    /// one record. Answers where everything lies now that was copied, also what the head does not name.
    pub async fn commit_relocation(&self, mut bulk: Bulk) -> Result<Vec<Move>, VolumeError> {
        bulk.seal().await?;
        while bulk.land().await? {}
        let mut batch = std::mem::take(&mut bulk.batch);
        batch.moved = std::mem::take(&mut batch.segments);
        batch.copies = bulk.copies(&batch.moved);
        let copies = batch.copies.clone();
        self.warm(&copies).await?;
        // What only snapshots need makes a record too: its segments are born with one.
        let ops = if batch.moved.is_empty() { Vec::new() } else { vec![Op::Noop] };
        let birth = self.request(ops, batch, false).await?.number;
        Ok(copies.iter().map(|copy| copy.moved(self.id(), birth)).collect())
    }

    /// Gets what the map says where ancestors' blocks were copied from: its pages may lie in an archive, and no commit is
    /// to wait for that.
    async fn warm(&self, copies: &[CopiedChunk]) -> Result<(), VolumeError> {
        let Blocks::Head(map) = self.shared.reader.blocks() else { return Ok(()) };
        let failed = |reason| VolumeError::Map { volume: self.id(), reason: Arc::new(reason) };
        for CopiedChunk { chunk, .. } in copies.iter().filter(|copy| copy.from.segment.volume != self.id()) {
            map.lookup(chunk.lba..chunk.lba + u64::from(chunk.blocks)).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Makes a bulk write visible in one record that also does `ops`, and waits for a checkpoint that covers it.
    pub async fn commit_bulk(&self, mut bulk: Bulk, ops: Vec<Op>) -> Result<Appended, VolumeError> {
        bulk.seal().await?;
        while bulk.land().await? {}
        self.request(ops, std::mem::take(&mut bulk.batch), true).await
    }
}

impl Bulk {
    /// Adds consecutive blocks, of which the first is `lba`; `order` as in the dirty buffer's numbers. Blocks must be
    /// added in ascending order.
    pub async fn write(&mut self, lba: u64, order: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.write_as(Writer { session: self.run, order }, lba, data).await
    }

    /// As [`Self::write`], for data that `writer` wrote first.
    pub async fn write_as(&mut self, writer: Writer, lba: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.push(data.len(), |chunks, at| {
            let lba = lba + at as u64 / BLOCK_BYTES;
            chunks.push_from(writer.session, lba, writer.order, &data[at..])
        })
        .await
    }

    /// Adds `len_bytes` bytes of blocks: `push` takes as many blocks as there is room for from the byte on that it is told,
    /// and says how many those were.
    async fn push(
        &mut self,
        len_bytes: usize,
        push: impl Fn(&mut Chunks, usize) -> u64,
    ) -> Result<(), VolumeError> {
        let mut at = 0;
        loop {
            at += (push(&mut self.chunks, at) * BLOCK_BYTES) as usize;
            if at == len_bytes {
                break;
            }
            self.seal().await?;
        }
        if self.chunks.stored_bytes() as u64 >= self.volume.shared.limits.segment_bytes {
            self.seal().await?;
        }
        Ok(())
    }

    /// Takes a segment in that another attempt of the same run has put.
    pub(crate) fn adopt(&mut self, id: ObjectId, chunks: Vec<codec::ChunkEntry>) {
        self.begun.push(id);
        self.volume.shared.ownership().uploading.insert(id);
        self.batch.segments.push(Segment { id, body: Bytes::new(), chunks });
    }

    /// Copies the blocks of `from`, whose bytes are `data`, for [`Volume::commit_relocation`]. A bulk write either
    /// writes or relocates. What does not compress is kept as it is, with all of the memory that `data` is a part of.
    pub async fn relocate(&mut self, from: Extent, data: &Bytes) -> Result<(), VolumeError> {
        self.sources.push((from, true));
        self.push(data.len(), |chunks, at| {
            chunks.push_shared(from.lba + at as u64 / BLOCK_BYTES, 0, &data.slice(at..))
        })
        .await
    }

    /// As [`Self::relocate`], for data that `writer` wrote first, of which a copy is kept; of data that only snapshots
    /// name too, in which case the order does not matter.
    pub async fn relocate_as(
        &mut self,
        writer: Writer,
        from: Extent,
        in_head: bool,
        data: &[u8],
    ) -> Result<(), VolumeError> {
        self.sources.push((from, in_head));
        self.write_as(writer, from.lba, data).await
    }

    /// What the segments of a relocation hold. Chunks lie in them in the order of their sources, and each is made from
    /// one source.
    fn copies(&self, segments: &[Segment]) -> Vec<CopiedChunk> {
        let of = |id: &ObjectId| segments.iter().find(|segment| segment.id == *id);
        let mut chunks = self
            .begun
            .iter()
            .filter_map(of)
            .flat_map(|segment| segment.chunks.iter().map(|chunk| (segment.id, *chunk)));
        let mut copies = Vec::new();
        for (source, in_head) in &self.sources {
            let mut lba = source.lba;
            while lba < source.end()
                && let Some((segment, chunk)) = chunks.next()
            {
                debug_assert_eq!(chunk.lba, lba, "copies in another order than their sources");
                let end = lba + u64::from(chunk.blocks);
                let from = source.slice(lba, end).location;
                copies.extend(from.map(|from| CopiedChunk { segment, chunk, from, in_head: *in_head }));
                lba = end;
            }
        }
        copies
    }

    /// Adds a range that reads as zeros.
    pub fn discard(&mut self, lba: u64, blocks: u64) {
        self.batch.holes.extend(super::batch::hole(lba, blocks));
    }

    /// Bytes uploaded so far by this attempt.
    pub fn uploaded_bytes(&self) -> u64 {
        self.uploaded_bytes
    }

    /// Uploads what has gathered, as a segment.
    async fn seal(&mut self) -> Result<(), VolumeError> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        self.volume.check()?;
        let chunks =
            std::mem::replace(&mut self.chunks, Chunks::new(self.volume.shared.limits.codec, self.run));
        let id = random_id(&self.log.env);
        let identity = Identity { volume: self.log.volume, id, session: self.run };
        let encoded = codec::encode_segment(identity, &chunks, self.log.key.as_ref());
        self.begun.push(id);
        self.volume.shared.ownership().uploading.insert(id);
        let (log, body) = (self.log.clone(), encoded.bytes);
        let segment = Segment { id, body: Bytes::new(), chunks: encoded.chunks };
        self.uploaded_bytes += body.len() as u64;
        self.uploads.push(Box::pin(async move {
            let key = layout::segment(log.volume, id);
            let deadline = tokio::time::Instant::now() + super::PATIENCE;
            log.put_own(&key, &body, deadline).await.map(|()| segment)
        }));
        while self.uploads.len() >= PARALLEL {
            self.land().await?;
        }
        Ok(())
    }

    /// Waits for one upload; false if none is under way.
    async fn land(&mut self) -> Result<bool, VolumeError> {
        match self.uploads.next().await {
            Some(Ok(segment)) => {
                self.batch.segments.push(segment);
                Ok(true)
            }
            Some(Err(reason)) => Err(VolumeError::Store { volume: self.log.volume, reason }),
            None => Ok(false),
        }
    }
}
