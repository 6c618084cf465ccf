//! Getting chunks: from the cache, or with as few ranged gets as possible.
//!
//! # Guarantees
//! - Every chunk is checked (checksum or cipher tag, bound to its volume, segment and place) before a byte of it is
//!   used, also when it comes from the local disk. One that this process has opened with the same key and kept in
//!   memory is not checked again.
//! - One request per chunk however many wait for it; neighbouring chunks share a request.
//! - A segment that is gone is an error ([`FetchError::Gone`]), never zeros: the reader resolves again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::cache::{AheadRoom, ChunkCache, ChunkKey, OpenedKey, Unkept};
use crate::codec::{self, CodecError};
use crate::env::Env;
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::lineage::{Lineage, Source, UnknownAncestor};
use crate::map::Location;
use crate::pool::layout;
use crate::store::{Backoff, StoreError};

/// Chunks this far apart in a segment still share a request: the bytes between cost less than a round trip.
const GAP_BYTES: u64 = 16 << 10;
/// The longest request: four MiB of blocks, with the trailers of as many chunks.
const SPAN_BYTES: u64 = (4 << 20) + (16 << 10);
/// Requests of one volume that are under way together.
const PARALLEL: usize = 64;
/// How long a read waits for a store that does not answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why a chunk could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// Its segment does not exist (any more): resolve the block again.
    #[error("{key} is gone")]
    Gone {
        /// The segment's key.
        key: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// What was read is damaged.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The chunk holds fewer blocks than the map says: one of the two is damaged.
    #[error("a chunk of segment {} at byte {} is shorter than the map says", location.segment.id, location.stored_offset)]
    Short {
        /// What the map says.
        location: Location,
    },
    /// The segment belongs to a volume that is not known here.
    #[error(transparent)]
    UnknownAncestor(#[from] UnknownAncestor),
}

impl FetchError {
    /// Whether the data itself is damaged or gone; else asking again, or with other pools loaded, may help.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::Codec(_) | Self::Short { .. } => true,
            Self::Store(_) | Self::UnknownAncestor(_) => false,
        }
    }
}

/// The chunks that a request has brought, opened. One that is damaged is so for those who want it.
type Opened = BTreeMap<ChunkKey, Result<Bytes, FetchError>>;

/// A request under way.
type Flight = Shared<BoxFuture<'static, Result<Arc<Opened>, FetchError>>>;

type Flights = Arc<Mutex<BTreeMap<ChunkKey, Flight>>>;

/// Gets chunks of a volume and of its ancestors.
#[derive(Debug, Clone)]
pub struct Fetcher {
    lineage: Lineage,
    cache: Arc<dyn ChunkCache>,
    env: Env,
    flights: Flights,
    permits: Arc<Semaphore>,
    answers: Arc<AtomicU64>,
}

fn cache_key(location: &Location) -> ChunkKey {
    ChunkKey { segment: location.segment.id, stored_offset: location.stored_offset }
}

/// The chunk as a whole, whichever of its blocks are wanted.
fn whole(location: &Location) -> Location {
    Location { chunk_offset: 0, ..*location }
}

/// Whether `blocks` are as many as the map says that the chunk has.
fn is_whole(location: &Location, blocks: &Bytes) -> bool {
    blocks.len() as u64 == u64::from(location.chunk_blocks) * BLOCK_BYTES
}

fn stored(location: &Location) -> Range<u64> {
    let start = u64::from(location.stored_offset);
    start..start + u64::from(location.stored_len)
}

/// The whole chunks that `locations` lie in, by the requests that bring them: neighbours share one. Those that follow
/// one another in a segment must do so here.
pub(super) fn requests(locations: impl IntoIterator<Item = Location>) -> Vec<Vec<Location>> {
    let mut requests: Vec<Vec<Location>> = Vec::new();
    for location in locations.into_iter().map(|location| whole(&location)) {
        match requests.last_mut().and_then(|request| Some((*request.first()?, *request.last()?, request))) {
            Some((_, last, _)) if last == location => {}
            Some((first, last, request))
                if first.segment == location.segment
                    && stored(&location).start >= stored(&last).end
                    && stored(&location).start <= stored(&last).end + GAP_BYTES
                    && stored(&location).end - stored(&first).start <= SPAN_BYTES =>
            {
                request.push(location);
            }
            Some(_) | None => requests.push(vec![location]),
        }
    }
    requests
}

/// Takes a flight's chunks off the board, however it ends.
struct Landing {
    flights: Flights,
    chunks: Vec<Location>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        for location in &self.chunks {
            flights.remove(&cache_key(location));
        }
    }
}

impl Fetcher {
    /// A fetcher that reads the volumes of `lineage` through `cache`.
    pub fn new(lineage: Lineage, cache: Arc<dyn ChunkCache>, env: Env) -> Self {
        let permits = Arc::new(Semaphore::new(PARALLEL));
        Self { lineage, cache, env, flights: Arc::default(), permits, answers: Arc::default() }
    }

    /// The same, of which nothing stays in the cache that is not there already.
    pub(crate) fn unkept(&self) -> Self {
        Self { cache: Arc::new(Unkept(Arc::clone(&self.cache))), ..self.clone() }
    }

    /// The volumes that it reads.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// How often a store has answered with data.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// How the objects of a volume are read.
    pub(crate) fn source(&self, volume: VolumeId) -> Result<Source, UnknownAncestor> {
        self.lineage.source(volume)
    }

    /// What may be read ahead of its use.
    pub(super) fn ahead(&self) -> Option<Arc<AheadRoom>> {
        self.cache.ahead()
    }

    /// The decoded chunks (all their blocks) that `locations` lie in, by [`whole`] chunk.
    pub async fn chunks(&self, locations: &[Location]) -> Result<BTreeMap<Location, Bytes>, FetchError> {
        let wanted: BTreeSet<Location> = locations.iter().map(whole).collect();
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for location in wanted {
            match self.near(&location).await? {
                Some(blocks) => {
                    found.insert(location, blocks);
                }
                None => missing.push(location),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        for (location, flight) in self.take_off(missing, &mut found)? {
            let short = || FetchError::Short { location };
            let opened = flight.await?.get(&cache_key(&location)).cloned();
            let blocks = opened.ok_or_else(short)??;
            // Who asked first may have had another idea of what lies there.
            if !is_whole(&location, &blocks) {
                return Err(short());
            }
            found.insert(location, blocks);
        }
        Ok(found)
    }

    /// The chunk, if it is in the cache.
    async fn near(&self, location: &Location) -> Result<Option<Bytes>, FetchError> {
        let opened = self.opened_key(location)?;
        let found = self.cache.opened(&opened).filter(|blocks| is_whole(location, blocks));
        if found.is_some() {
            return Ok(found);
        }
        let Some(sealed) = self.cache.get(opened.chunk).await else { return Ok(None) };
        let source = self.lineage.source(location.segment.volume)?;
        // A damaged cache entry is a miss: the store has the truth, and replaces it.
        let Ok(blocks) = codec::decode_chunk(sealed, location, source.key.as_ref()) else { return Ok(None) };
        self.cache.keep_opened(opened, &blocks);
        Ok(Some(blocks))
    }

    fn opened_key(&self, location: &Location) -> Result<OpenedKey, UnknownAncestor> {
        let source = self.lineage.source_id(location.segment.volume)?;
        Ok(OpenedKey { chunk: cache_key(location), source })
    }

    /// The blocks of `location` out of what [`Self::chunks`] has returned.
    pub fn blocks(chunks: &BTreeMap<Location, Bytes>, location: &Location, blocks: u32) -> Option<Bytes> {
        let from = usize::from(location.chunk_offset) * BLOCK_BYTES as usize;
        let to = from + blocks as usize * BLOCK_BYTES as usize;
        chunks.get(&whole(location)).filter(|chunk| to <= chunk.len()).map(|chunk| chunk.slice(from..to))
    }

    /// Joins the flights that are under way for `missing` (sorted) and starts the others. What a flight has brought since
    /// the cache was looked into goes to `found`.
    fn take_off(
        &self,
        missing: Vec<Location>,
        found: &mut BTreeMap<Location, Bytes>,
    ) -> Result<Vec<(Location, Flight)>, FetchError> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waits = Vec::with_capacity(missing.len());
        let mut fresh = Vec::new();
        for location in missing {
            if let Some(flight) = flights.get(&cache_key(&location)) {
                waits.push((location, flight.clone()));
                continue;
            }
            let landed = self.cache.opened(&self.opened_key(&location)?);
            match landed.filter(|blocks| is_whole(&location, blocks)) {
                Some(blocks) => drop(found.insert(location, blocks)),
                None => fresh.push(location),
            }
        }
        for request in requests(fresh) {
            let flight = self.flight(request.clone())?;
            for location in request {
                flights.insert(cache_key(&location), flight.clone());
                waits.push((location, flight.clone()));
            }
        }
        Ok(waits)
    }

    /// Gets the chunks of one segment, opens them and keeps them near.
    fn flight(&self, chunks: Vec<Location>) -> Result<Flight, FetchError> {
        let (first, last) = (chunks[0], chunks[chunks.len() - 1]);
        let source = self.lineage.source(first.segment.volume)?;
        let range = stored(&first).start..stored(&last).end;
        let fetcher = self.clone();
        let get = async move {
            let landing = Landing { flights: Arc::clone(&fetcher.flights), chunks };
            let bytes = fetcher.get(&source, &first.segment.key(), range.clone()).await?;
            let opened = landing.chunks.iter().map(|location| {
                let at = (stored(location).start - range.start) as usize;
                let sealed = bytes.slice(at..at + location.stored_len as usize);
                (cache_key(location), fetcher.open(&source, location, sealed))
            });
            // They are in the cache before they leave the board.
            let opened = Arc::new(opened.collect());
            drop(landing);
            Ok(opened)
        };
        // A task of its own: a reader that gives up must not take the flight away from the others.
        let task = tokio::spawn(get);
        let lost = layout::segment(first.segment.volume, first.segment.id);
        Ok(async move {
            task.await.unwrap_or_else(|error| {
                Err(FetchError::Store(StoreError::Unavailable { key: lost, reason: error.to_string() }))
            })
        }
        .boxed()
        .shared())
    }

    /// Opens a chunk that has come from the store and keeps it near.
    fn open(&self, source: &Source, location: &Location, sealed: Bytes) -> Result<Bytes, FetchError> {
        let opened = self.opened_key(location)?;
        let blocks = codec::decode_chunk(sealed.clone(), location, source.key.as_ref())?;
        self.cache.insert(opened.chunk, sealed);
        self.cache.keep_opened(opened, &blocks);
        Ok(blocks)
    }

    async fn get(&self, source: &Source, key: &str, range: Range<u64>) -> Result<Bytes, FetchError> {
        let _permit = self.permits.acquire().await;
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::default();
        loop {
            match source.store.get_range(key, range.clone()).await {
                Ok(bytes) => {
                    self.answers.fetch_add(1, Ordering::Relaxed);
                    return Ok(bytes);
                }
                Err(StoreError::NotFound { key }) => return Err(FetchError::Gone { key }),
                Err(StoreError::Unavailable { .. }) if Instant::now() < deadline => {
                    backoff.pause(&self.env).await
                }
                Err(error) => return Err(FetchError::Store(error)),
            }
        }
    }
}
