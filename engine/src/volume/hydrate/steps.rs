//! The steps of a hydration: a stretch of the volume each, copied by one record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::bytes;
use super::order::Order;
use super::pace::{Pace, STEPS};
use crate::map::{Extent, Location};
use crate::volume::{FetchError, Fetcher, Volume, VolumeError, fetch};

/// Requests of one step that are under way together. Those that somebody waits for need room.
const PARALLEL: usize = 4;

/// What is left to do of a volume.
pub(super) struct Steps {
    volume: Volume,
    order: Order,
    pace: Arc<Pace>,
    /// A step that begins while the volume is read waits for all others, and those for it.
    together: Arc<Semaphore>,
    /// Whether no further step may begin.
    stopped: Arc<AtomicBool>,
}

impl Steps {
    /// The steps through `volume` in this order, until `stopped`.
    pub(super) fn new(volume: Volume, order: Order, pace: Arc<Pace>, stopped: Arc<AtomicBool>) -> Self {
        Self { volume, order, pace, together: Arc::new(Semaphore::new(STEPS)), stopped }
    }

    /// The next step, as soon as it may begin; none at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Step, VolumeError>> {
        let turn = tokio::select! {
            biased;
            _ = self.volume.wait_over() => return None,
            turn = self.pace.turn() => turn?,
        };
        let reads = &self.volume.shared.wanted;
        let share = if reads.is_read() { STEPS as u32 } else { 1 };
        let share = Arc::clone(&self.together).acquire_many_owned(share).await.ok()?;
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let volume = self.volume.clone();
        match self.order.next(reads).await {
            Ok(extents) if extents.is_empty() => None,
            Ok(extents) => {
                self.pace.charge(bytes(&extents));
                Some(Ok(Step { volume, extents, _held: (turn, share) }))
            }
            Err(reason) => {
                // It would go on asking.
                self.stopped.store(true, Ordering::Relaxed);
                Some(Err(VolumeError::Map { volume: volume.id(), reason: Arc::new(reason) }))
            }
        }
    }
}

/// Extents to copy, in ascending order.
pub(super) struct Step {
    volume: Volume,
    extents: Vec<Extent>,
    _held: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Step {
    /// Copies them; answers how many bytes of blocks they have.
    pub(super) async fn copy(self) -> Result<u64, VolumeError> {
        let Self { volume, extents, .. } = &self;
        let failed = |reason| VolumeError::Read { volume: volume.id(), reason };
        let chunks = chunks(volume.reader().fetcher(), extents).await.map_err(failed)?;
        let mut bulk = volume.bulk(volume.session());
        for extent in extents {
            let Some(location) = &extent.location else { continue };
            let blocks = Fetcher::blocks(&chunks, location, extent.blocks);
            let blocks = blocks.ok_or_else(|| failed(FetchError::Short { location: *location }))?;
            bulk.relocate(*extent, &blocks).await?;
        }
        volume.commit_relocation(bulk).await?;
        Ok(bytes(extents))
    }
}

/// The chunks that `extents` lie in.
async fn chunks(fetcher: &Fetcher, extents: &[Extent]) -> Result<BTreeMap<Location, Bytes>, FetchError> {
    let fetcher = fetcher.unkept();
    let locations: BTreeSet<Location> = extents.iter().filter_map(|extent| extent.location).collect();
    let gets = fetch::requests(locations).into_iter().map(|request| {
        let fetcher = fetcher.clone();
        async move { fetcher.chunks(&request).await }
    });
    stream::iter(gets).buffer_unordered(PARALLEL).try_concat().await
}
