//! Reading blocks as a map says.

use std::ops::Range;
use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::Semaphore;

use super::ahead::ReadAhead;
use super::{FetchError, Fetcher, VolumeError, fetch};
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::map::{Extent, Location, Map, MapError, MapView};

/// How often a block is resolved again whose segment was collected between the look into the map and the get.
const RESOLVES: usize = 5;
/// Requests ahead of the readers that are under way together. Those that somebody waits for have more.
const AHEAD_PARALLEL: usize = 16;

/// A map to read by.
#[derive(Debug, Clone)]
pub enum Blocks {
    /// The head of an open volume: changes as records take effect.
    Head(Arc<Map>),
    /// A moment: a snapshot.
    Moment(MapView),
}

impl Blocks {
    async fn lookup(&self, from: u64, to: u64) -> Result<Vec<Extent>, MapError> {
        match self {
            Self::Head(map) => map.lookup(from..to).await,
            Self::Moment(view) => view.lookup(from..to).await,
        }
    }
}

/// Reads the blocks of a volume or of a snapshot.
#[derive(Debug, Clone)]
pub struct BlockReader {
    volume: VolumeId,
    blocks: Blocks,
    fetcher: Fetcher,
    ahead: Arc<ReadAhead>,
    permits: Arc<Semaphore>,
}

impl BlockReader {
    /// Reads what `blocks` names through `fetcher`.
    pub fn new(volume: VolumeId, blocks: Blocks, fetcher: Fetcher) -> Self {
        let ahead = Arc::new(ReadAhead::new(fetcher.ahead_bytes()));
        Self { volume, blocks, fetcher, ahead, permits: Arc::new(Semaphore::new(AHEAD_PARALLEL)) }
    }

    /// The map.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Gets chunks.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// Reads the blocks `from..to` into `out`, which has room for exactly those. Holes are zeros. What a reader who
    /// reads on will ask for next is got meanwhile.
    pub async fn read(&self, from: u64, to: u64, out: &mut [u8]) -> Result<(), VolumeError> {
        if let Some(next) = self.ahead.passes(from, to) {
            tokio::spawn(self.clone().read_ahead(next));
        }
        let mut resolves = 0;
        loop {
            let extents = self.blocks.lookup(from, to).await;
            let extents = extents
                .map_err(|reason| VolumeError::Map { volume: self.volume, reason: Arc::new(reason) })?;
            match self.read_extents(&extents, from, out).await {
                Err(FetchError::Gone { .. }) if resolves < RESOLVES => resolves += 1,
                Err(reason) => return Err(VolumeError::Read { volume: self.volume, reason }),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Gets `blocks` into the cache. What cannot be had, the read that needs it asks for again.
    async fn read_ahead(self, blocks: Range<u64>) {
        let Ok(extents) = self.blocks.lookup(blocks.start, blocks.end).await else { return };
        let requests = fetch::requests(extents.iter().filter_map(|extent| extent.location));
        let gets = requests.iter().map(async |request| {
            let _permit = self.permits.acquire().await;
            self.fetcher.chunks(request).await.is_ok()
        });
        join_all(gets).await;
    }

    /// Reads what `extents` name; `out` begins at block `from`.
    pub async fn read_extents(
        &self,
        extents: &[Extent],
        from: u64,
        out: &mut [u8],
    ) -> Result<(), FetchError> {
        let locations: Vec<Location> = extents.iter().filter_map(|extent| extent.location).collect();
        let chunks = self.fetcher.chunks(&locations).await?;
        for extent in extents {
            let start = ((extent.lba - from) * BLOCK_BYTES) as usize;
            let piece = &mut out[start..start + (u64::from(extent.blocks) * BLOCK_BYTES) as usize];
            match &extent.location {
                None => piece.fill(0),
                Some(location) => {
                    let blocks = Fetcher::blocks(&chunks, location, extent.blocks);
                    piece.copy_from_slice(&blocks.ok_or(FetchError::Short { location: *location })?);
                }
            }
        }
        Ok(())
    }
}
