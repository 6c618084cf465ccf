//! Reading blocks as a map says.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::future::join_all;
use tokio::sync::Semaphore;

use super::ahead::{AheadLimits, ReadAhead};
use super::{FetchError, Fetcher, VolumeError, fetch};
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::map::{Extent, Location, Map, MapError, MapView};
use crate::store::StoreError;

/// How often a block is resolved again whose segment was collected between the look into the map and the get.
const RESOLVES: usize = 5;
/// Requests ahead of the readers that are under way together. Those that somebody waits for have more.
const AHEAD_PARALLEL: usize = 16;
/// What holes are read from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

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

/// Finds the map of a snapshot anew: the collector may have rewritten it since.
#[async_trait]
pub trait Present: Send + Sync + Debug {
    /// The present map; none if the snapshot is gone or cannot be looked up.
    async fn map(&self) -> Option<MapView>;
}

/// Reads the blocks of a volume or of a snapshot.
#[derive(Debug, Clone)]
pub struct BlockReader {
    volume: VolumeId,
    blocks: Blocks,
    fetcher: Fetcher,
    ahead: Arc<ReadAhead>,
    permits: Arc<Semaphore>,
    present: Option<Arc<dyn Present>>,
    /// The map that [`Present`] has found last.
    found: Arc<Mutex<Option<MapView>>>,
}

impl BlockReader {
    /// Reads what `blocks` names through `fetcher`.
    pub fn new(volume: VolumeId, blocks: Blocks, fetcher: Fetcher) -> Self {
        let ahead = Arc::new(ReadAhead::new(AheadLimits::default(), fetcher.ahead()));
        let permits = Arc::new(Semaphore::new(AHEAD_PARALLEL));
        Self { volume, blocks, fetcher, ahead, permits, present: None, found: Arc::default() }
    }

    /// The same, read ahead of its readers as `limits` say.
    pub fn reading_ahead(self, limits: AheadLimits) -> Self {
        Self { ahead: Arc::new(ReadAhead::new(limits, self.fetcher.ahead())), ..self }
    }

    /// The same, for a moment whose map is found anew by `present` when something that it names is gone.
    pub fn of_snapshot(volume: VolumeId, view: MapView, fetcher: Fetcher, present: Arc<dyn Present>) -> Self {
        Self { present: Some(present), ..Self::new(volume, Blocks::Moment(view), fetcher) }
    }

    /// The map.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Gets chunks.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// Reads the blocks `from..to` into `out`, which has room for exactly those, as [`Self::pieces`] does.
    pub async fn read(&self, from: u64, to: u64, out: &mut [u8]) -> Result<(), VolumeError> {
        let mut rest = out;
        for piece in self.pieces(from, to).await? {
            let (this, next) = rest.split_at_mut(piece.len());
            this.copy_from_slice(&piece);
            rest = next;
        }
        Ok(())
    }

    /// The blocks `from..to`, one piece after the other, where they lie in memory. Holes are zeros. What a reader who
    /// reads on will ask for next is got meanwhile.
    pub async fn pieces(&self, from: u64, to: u64) -> Result<Vec<Bytes>, VolumeError> {
        if let Some(next) = self.ahead.passes(from, to) {
            tokio::spawn(self.clone().read_ahead(next));
        }
        let mut resolves = 0;
        loop {
            let outcome = match self.lookup(from, to).await {
                Ok(extents) => self
                    .extents(&extents)
                    .await
                    .map_err(|reason| VolumeError::Read { volume: self.volume, reason }),
                Err(reason) => Err(VolumeError::Map { volume: self.volume, reason: Arc::new(reason) }),
            };
            match outcome {
                Err(error) if resolves < RESOLVES && is_gone(&error) && self.renew(&error).await => {
                    resolves += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Gets `blocks` into the cache. What cannot be had, the read that needs it asks for again.
    async fn read_ahead(self, blocks: Range<u64>) {
        let Ok(extents) = self.lookup(blocks.start, blocks.end).await else { return };
        let requests = fetch::requests(extents.iter().filter_map(|extent| extent.location));
        let gets = requests.iter().map(async |request| {
            let _permit = self.permits.acquire().await;
            self.fetcher.chunks(request).await.is_ok()
        });
        join_all(gets).await;
    }

    async fn lookup(&self, from: u64, to: u64) -> Result<Vec<Extent>, MapError> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match found {
            Some(view) => view.lookup(from..to).await,
            None => self.blocks.lookup(from, to).await,
        }
    }

    /// Whether resolving again may help, after something was gone.
    async fn renew(&self, error: &VolumeError) -> bool {
        match &self.present {
            Some(present) => {
                let found = present.map().await;
                let renewed = found.is_some();
                *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
                renewed
            }
            // The head's map has looked again itself before it says that a page is gone.
            None => matches!(error, VolumeError::Read { .. }),
        }
    }

    /// What `extents` name, one piece after the other. Holes are zeros.
    pub async fn extents(&self, extents: &[Extent]) -> Result<Vec<Bytes>, FetchError> {
        let locations: Vec<Location> = extents.iter().filter_map(|extent| extent.location).collect();
        let chunks = self.fetcher.chunks(&locations).await?;
        let mut pieces = Vec::with_capacity(extents.len());
        for extent in extents {
            match &extent.location {
                None => pieces.extend(zeros(u64::from(extent.blocks))),
                Some(location) => {
                    let blocks = Fetcher::blocks(&chunks, location, extent.blocks);
                    pieces.push(blocks.ok_or(FetchError::Short { location: *location })?);
                }
            }
        }
        Ok(pieces)
    }
}

/// So many blocks of zeros.
pub(super) fn zeros(blocks: u64) -> impl Iterator<Item = Bytes> {
    let bytes = blocks * BLOCK_BYTES;
    let piece = ZEROS.len() as u64;
    (0..bytes)
        .step_by(ZEROS.len())
        .map(move |at| Bytes::from_static(&ZEROS[..(bytes - at).min(piece) as usize]))
}

/// Pieces of memory as one, without a copy if they are.
pub(super) fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [whole] => whole.clone(),
        pieces => pieces.concat().into(),
    }
}

/// The `len` bytes at `offset` of a volume, out of the pieces of just those blocks that have some of them.
pub fn cut(mut pieces: Vec<Bytes>, offset: u64, len: u64) -> Vec<Bytes> {
    let before = offset % BLOCK_BYTES;
    let after = (offset + len).next_multiple_of(BLOCK_BYTES) - (offset + len);
    if let Some(first) = pieces.first_mut() {
        first.advance(before as usize);
    }
    if let Some(last) = pieces.last_mut() {
        last.truncate(last.len() - after as usize);
    }
    pieces
}

fn is_gone(error: &VolumeError) -> bool {
    match error {
        VolumeError::Read { reason: FetchError::Gone { .. }, .. } => true,
        VolumeError::Map { reason, .. } => matches!(**reason, MapError::Store(StoreError::NotFound { .. })),
        _ => false,
    }
}
