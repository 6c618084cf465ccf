//! What an archive run that died has uploaded already, so that the next attempt need not send it again.
//!
//! # Guarantees
//! - The id of a run follows from what it copies, so every attempt finds the segments of those before it. What a
//!   segment of the run holds for a block is what the snapshot has there, whichever attempt wrote it.
//! - Segments of a run that has ended are not adopted: a sweeper ends a run before it deletes its segments, and the
//!   next attempt is another run.
//!
//! # Assumptions
//! The caller has the archive's session: attempts before it can commit nothing any more.
//!
//! # Crash behaviour
//! Nothing is written here. A segment that an earlier attempt has still under way is not seen, and stays garbage.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::ArchiveError;
use crate::codec::ChunkEntry;
use crate::ids::{Handle, ObjectId};
use crate::log::{Control, Log};
use crate::map::Extent;
use crate::pool::layout;
use crate::store::Listed;

const LIST_PAGE: usize = 1000;
const PARALLEL: usize = 16;
/// By how much the clocks of a store's servers may differ.
const SKEW_MS: u64 = 300_000;

/// A segment that an earlier attempt has uploaded.
#[derive(Debug)]
pub(super) struct Found {
    /// Its id.
    pub(super) id: ObjectId,
    /// Its chunks, sorted.
    pub(super) chunks: Vec<ChunkEntry>,
}

/// The id of the run that copies `source` to the point `name`: the first one that has not ended.
pub(super) fn run_id(control: &Control, source: Handle, name: &str) -> ObjectId {
    let mut generation = 0_u64;
    loop {
        let text = format!("archive run {generation} of {source} to {name}");
        let hash = digest(&SHA256, text.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_ref()[..16]);
        let id = ObjectId(id);
        if !control.ended_runs.contains(&id) {
            return id;
        }
        generation += 1;
    }
}

/// The segments of `run` in the archive's volume that were put at `begun_ms` or later by the store's clock; of two that
/// hold the same block only one.
pub(super) async fn uploaded(
    log: &Log,
    run: ObjectId,
    begun_ms: u64,
    deadline: impl Fn() -> Instant,
) -> Result<(Vec<Found>, Covered), ArchiveError> {
    let prefix = layout::segments(log.volume);
    let (mut found, mut covered, mut after) = (Vec::new(), Covered::default(), None::<String>);
    loop {
        let page = log.retry(deadline(), || log.store.list(&prefix, after.as_deref(), LIST_PAGE)).await?;
        let is_last = page.len() < LIST_PAGE;
        after = page.last().map(|listed| listed.key.clone());
        let recent = page.into_iter().filter(|listed| listed.modified_ms + SKEW_MS >= begun_ms);
        let mut tables =
            stream::iter(recent).map(|listed| look(log, run, listed, deadline())).buffered(PARALLEL);
        while let Some(segment) = tables.try_next().await? {
            if let Some(segment) = segment.filter(|segment| covered.is_free_of(&segment.chunks)) {
                covered.add(&segment.chunks);
                found.push(segment);
            }
        }
        if is_last {
            return Ok((found, covered));
        }
    }
}

/// A segment, if it is of this run and can be read.
async fn look(
    log: &Log,
    run: ObjectId,
    listed: Listed,
    deadline: Instant,
) -> Result<Option<Found>, ArchiveError> {
    let Some(id) = layout::object_id_in(&listed.key) else { return Ok(None) };
    match log.segment_table(&listed, deadline).await? {
        Some(Ok(mut table)) if table.session == run => {
            table.chunks.sort_by_key(|chunk| chunk.lba);
            Ok(Some(Found { id, chunks: table.chunks }))
        }
        // Another's, or a sweeper of a session before ours was about to delete it.
        Some(Ok(_)) | None => Ok(None),
        Some(Err(error)) => {
            tracing::warn!(volume = %log.volume, segment = %id, %error, "a damaged segment is left");
            Ok(None)
        }
    }
}

/// Ranges of blocks that are uploaded, apart from each other: where each begins, and where it ends.
#[derive(Debug, Default)]
pub(super) struct Covered(BTreeMap<u64, u64>);

impl Covered {
    fn is_free_of(&self, chunks: &[ChunkEntry]) -> bool {
        chunks.iter().all(|chunk| {
            let before = self.0.range(..chunk.lba + u64::from(chunk.blocks)).next_back();
            before.is_none_or(|(_, end)| *end <= chunk.lba)
        })
    }

    fn add(&mut self, chunks: &[ChunkEntry]) {
        chunks.iter().for_each(|chunk| self.add_range(chunk.lba, chunk.lba + u64::from(chunk.blocks)));
    }

    /// Adds a range that is free, joined with its neighbours.
    fn add_range(&mut self, start: u64, end: u64) {
        let end = self.0.remove(&end).unwrap_or(end);
        match self.0.range_mut(..start).next_back() {
            Some((_, before)) if *before == start => *before = end,
            Some(_) | None => {
                self.0.insert(start, end);
            }
        }
    }

    /// The parts of an extent that are not uploaded yet.
    pub(super) fn missing_of(&self, extent: Extent) -> Vec<Extent> {
        let (mut parts, mut at) = (Vec::new(), extent.lba);
        let before = self.0.range(..extent.lba).next_back();
        for (start, end) in before.into_iter().chain(self.0.range(extent.lba..extent.end())) {
            if *start > at {
                parts.push(extent.slice(at, *start));
            }
            at = at.max(*end);
        }
        if at < extent.end() {
            parts.push(extent.slice(at, extent.end()));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PoolId, SnapshotId, VolumeId};

    #[test]
    fn attempts_share_a_run_until_it_has_ended() {
        let source =
            Handle { pool: PoolId([1; 16]), volume: VolumeId([2; 16]), snapshot: Some(SnapshotId(7)) };
        let mut control = Control::default();
        let first = run_id(&control, source, "point");
        assert_eq!(run_id(&control, source, "point"), first);
        assert_ne!(run_id(&control, source, "other"), first);
        assert_ne!(run_id(&control, Handle { snapshot: Some(SnapshotId(8)), ..source }, "point"), first);
        control.ended_runs.insert(first);
        assert_ne!(run_id(&control, source, "point"), first);
    }

    #[test]
    fn what_is_missing_is_what_no_range_covers() {
        let extent = |lba, blocks| Extent { lba, blocks, location: None };
        let mut covered = Covered::default();
        for (start, end) in [(15, 20), (30, 35), (10, 15), (37, 40), (35, 37)] {
            covered.add_range(start, end);
        }
        assert_eq!(covered.0, BTreeMap::from([(10, 20), (30, 40)]));
        let missing = |lba, blocks| {
            let parts = covered.missing_of(extent(lba, blocks));
            parts.iter().map(|part| (part.lba, part.end())).collect::<Vec<_>>()
        };
        assert_eq!(missing(0, 10), [(0, 10)]);
        assert_eq!(missing(5, 40), [(5, 10), (20, 30), (40, 45)]);
        assert_eq!(missing(12, 8), []);
        assert_eq!(missing(15, 20), [(20, 30)]);
        assert_eq!(missing(40, 1), [(40, 41)]);
    }
}
