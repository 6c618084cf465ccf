//! Putting damaged blocks of a head back, from a copy that is known to be the same.
//!
//! # When a copy is the same
//! The note of an archived point names the snapshot that it is a copy of. Where the map of that snapshot names just the
//! place that the head names, and that is damaged, the point has what was there. What was written since the point has
//! no copy in it.
//!
//! # Guarantees
//! - A block is put back only if a copy of just what was there is found and can be read.
//! - Blocks are put back as copies that collection makes: they apply only where the map still names the damaged place, so
//!   that what is written meanwhile stays.
//! - Nothing is deleted. Snapshots that name the damaged place still do.
//!
//! # Crash behaviour
//! What earlier steps have put back stays; a repeated repair does the rest.

use std::sync::Arc;

use tokio::time::Instant;

use super::object::PATIENCE;
use super::scrub::damaged_head;
use super::{Lost, SalvageError, Scrubbing};
use crate::archive::PointMeta;
use crate::control::Maintenance;
use crate::host::Host;
use crate::ids::{BLOCK_BYTES, Handle, SnapshotId, VolumeId};
use crate::log::Control;
use crate::map::{Extent, MapView};
use crate::pool::Pool;
use crate::volume::{BlockReader, Blocks, Bulk, FetchError, VolumeError};

/// Bytes of blocks put back by one record.
const STEP_BYTES: u64 = 4 << 20;

/// What a repair has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repaired {
    /// Bytes of blocks put back.
    pub repaired_bytes: u64,
    /// Damaged ranges of the head that are left, and why.
    pub left: Vec<Lost>,
}

impl Host {
    /// Puts damaged blocks of the head of `volume`, which is attached nowhere, back from `source`: an archived point of
    /// the volume, or, if the volume is an archive, the snapshot that one of its points is a copy of.
    pub async fn repair(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        source: Handle,
        progress: &(dyn Fn(Scrubbing) + Sync),
    ) -> Result<Repaired, SalvageError> {
        let (ours, copy) = self.twins(pool, volume, source).await?;
        let damaged = damaged_head(self, pool, volume, progress).await?;
        let mut repair = Repair { ours, copy, repaired: Repaired::default() };
        if damaged.is_empty() {
            return Ok(repair.repaired);
        }
        let (log, _) = self.describe(pool, volume, Instant::now() + PATIENCE).await?;
        let session = self.maintain(pool, &log, Instant::now() + PATIENCE).await?;
        let outcome = repair.put_back(&session, &damaged).await;
        if outcome.is_err() {
            session.volume.abandon();
        }
        session.end(Instant::now() + PATIENCE).await?;
        outcome.map(|()| repair.repaired)
    }

    /// The map of a snapshot of `volume`, and a reader of the copy of it that `source` is, or that it is of `source`.
    async fn twins(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        source: Handle,
    ) -> Result<(MapView, BlockReader), SalvageError> {
        let no_copy = || SalvageError::NoCopy { volume, handle: source };
        let deadline = Instant::now() + PATIENCE;
        let theirs = source.snapshot.ok_or_else(no_copy)?;
        let home = self.pools.get(source.pool).ok_or(SalvageError::Unreachable { handle: source })?;
        let (_, control) = self.describe(&home, source.volume, deadline).await?;
        let copied_from = copy_of(&control, theirs)
            .filter(|from| (from.pool, from.volume) == (pool.id(), volume))
            .and_then(|from| from.snapshot);
        let (_, control) = self.describe(pool, volume, deadline).await?;
        let copied_to =
            || control.snapshots.keys().copied().find(|ours| copy_of(&control, *ours) == Some(source));
        let ours = copied_from.or_else(copied_to).ok_or_else(no_copy)?;
        let ours = self.snapshot_reader(pool, volume, ours, deadline).await?;
        let Blocks::Moment(ours) = ours.blocks() else { return Err(no_copy()) };
        let copy = self.snapshot_reader(&home, source.volume, theirs, deadline).await?;
        Ok((ours.clone(), copy))
    }
}

/// What a snapshot is noted to be a copy of.
fn copy_of(control: &Control, snapshot: SnapshotId) -> Option<Handle> {
    PointMeta::from_note(&control.snapshots.get(&snapshot)?.meta)?.source_handle.parse().ok()
}

struct Repair {
    /// The map of the snapshot that there is a copy of.
    ours: MapView,
    copy: BlockReader,
    repaired: Repaired,
}

impl Repair {
    async fn put_back(&mut self, session: &Maintenance, damaged: &[Extent]) -> Result<(), SalvageError> {
        let volume = &session.volume;
        let mut bulk = volume.bulk(volume.session());
        let mut step_bytes = 0;
        for extent in damaged {
            step_bytes += self.copy_extent(extent, &mut bulk).await?;
            if step_bytes >= STEP_BYTES {
                let full = std::mem::replace(&mut bulk, volume.bulk(volume.session()));
                volume.commit_relocation(full).await?;
                self.repaired.repaired_bytes += std::mem::take(&mut step_bytes);
            }
        }
        if step_bytes > 0 {
            volume.commit_relocation(bulk).await?;
            self.repaired.repaired_bytes += step_bytes;
        }
        Ok(())
    }

    /// Copies the blocks of `extent` that there is a copy of. Answers how many bytes.
    async fn copy_extent(&mut self, extent: &Extent, bulk: &mut Bulk) -> Result<u64, SalvageError> {
        let mut copied_bytes = 0;
        for found in self.ours.lookup(extent.lba..extent.end()).await? {
            let damaged = extent.slice(found.lba, found.end());
            let same = damaged.location.zip(found.location).is_some_and(|(a, b)| a.same_place(&b));
            if !same {
                self.leave(&damaged, "it was written after the copy was made".into());
                continue;
            }
            let mut data = vec![0; damaged.bytes() as usize];
            match self.copy.read(damaged.lba, damaged.end(), &mut data).await {
                Ok(()) => {
                    copied_bytes += data.len() as u64;
                    bulk.relocate(damaged, &data.into()).await?;
                }
                Err(error @ VolumeError::Read { reason: FetchError::Store(_), .. }) => {
                    return Err(error.into());
                }
                Err(error) => self.leave(&damaged, format!("the copy cannot be read: {error}")),
            }
        }
        Ok(copied_bytes)
    }

    fn leave(&mut self, extent: &Extent, reason: String) {
        let (offset, len) = (extent.lba * BLOCK_BYTES, extent.bytes());
        Lost { offset, len, reason }.add_to(&mut self.repaired.left);
    }
}
