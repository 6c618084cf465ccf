//! Getting chunks: from the cache, or with as few ranged gets as possible.
//!
//! # Guarantees
//! - Every chunk is checked (checksum or cipher tag, bound to its volume, segment and place) before a byte of it is
//!   used, also when it comes from the local cache.
//! - One request per chunk however many wait for it; neighbouring chunks share a request.
//! - A segment that is gone is an error ([`FetchError::Gone`]), never zeros: the reader resolves again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::cache::{ChunkCache, ChunkKey};
use crate::codec::{self, CodecError};
use crate::env::Env;
use crate::ids::VolumeId;
use crate::lineage::{Lineage, Source, UnknownAncestor};
use crate::map::{Location, SegmentRef};
use crate::pool::layout;
use crate::store::{Backoff, StoreError};

/// Chunks this far apart in a segment still share a request: the bytes between cost less than a round trip.
const GAP_BYTES: u64 = 16 << 10;
/// The longest request.
const SPAN_BYTES: u64 = 4 << 20;
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

type Span = Shared<BoxFuture<'static, Result<Bytes, FetchError>>>;

#[derive(Debug, Clone)]
struct Flight {
    span: Span,
    start: u64,
}

/// Gets chunks of a volume and of its ancestors.
#[derive(Debug, Clone)]
pub struct Fetcher {
    lineage: Lineage,
    cache: Arc<dyn ChunkCache>,
    env: Env,
    flights: Arc<Mutex<BTreeMap<ChunkKey, Flight>>>,
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

fn stored(location: &Location) -> Range<u64> {
    let start = u64::from(location.stored_offset);
    start..start + u64::from(location.stored_len)
}

impl Fetcher {
    /// A fetcher that reads the volumes of `lineage` through `cache`.
    pub fn new(lineage: Lineage, cache: Arc<dyn ChunkCache>, env: Env) -> Self {
        let permits = Arc::new(Semaphore::new(PARALLEL));
        Self { lineage, cache, env, flights: Arc::default(), permits, answers: Arc::default() }
    }

    /// How often a store has answered with data.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// How the objects of a volume are read.
    pub(crate) fn source(&self, volume: VolumeId) -> Result<Source, UnknownAncestor> {
        self.lineage.source(volume)
    }

    /// The decoded chunks (all their blocks) that `locations` lie in, by [`whole`] chunk.
    pub async fn chunks(&self, locations: &[Location]) -> Result<BTreeMap<Location, Bytes>, FetchError> {
        let wanted: std::collections::BTreeSet<Location> = locations.iter().map(whole).collect();
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for location in wanted {
            match self.cache.get(cache_key(&location)).await.map(|sealed| self.open(&location, sealed)) {
                Some(Ok(blocks)) => {
                    found.insert(location, blocks);
                }
                // A damaged cache entry is a miss: the store has the truth, and replaces it.
                Some(Err(_)) | None => missing.push(location),
            }
        }
        let waits = self.take_off(&missing)?;
        for (location, flight) in waits {
            let at = (u64::from(location.stored_offset) - flight.start) as usize;
            let sealed = flight.span.await?.slice(at..at + location.stored_len as usize);
            let blocks = self.open(&location, sealed.clone())?;
            self.cache.insert(cache_key(&location), sealed);
            found.insert(location, blocks);
        }
        Ok(found)
    }

    /// The blocks of `location` out of what [`Self::chunks`] has returned.
    pub fn blocks(chunks: &BTreeMap<Location, Bytes>, location: &Location, blocks: u32) -> Option<Bytes> {
        let from = usize::from(location.chunk_offset) * crate::ids::BLOCK_BYTES as usize;
        let to = from + blocks as usize * crate::ids::BLOCK_BYTES as usize;
        chunks.get(&whole(location)).filter(|chunk| to <= chunk.len()).map(|chunk| chunk.slice(from..to))
    }

    fn open(&self, location: &Location, sealed: Bytes) -> Result<Bytes, FetchError> {
        let source = self.lineage.source(location.segment.volume)?;
        Ok(codec::decode_chunk(sealed, location, source.key.as_ref())?)
    }

    /// Joins the flights that are under way for `missing` (sorted) and starts the others.
    fn take_off(&self, missing: &[Location]) -> Result<Vec<(Location, Flight)>, FetchError> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waits = Vec::with_capacity(missing.len());
        let mut group: Vec<Location> = Vec::new();
        let mut groups: Vec<Vec<Location>> = Vec::new();
        for location in missing {
            if let Some(flight) = flights.get(&cache_key(location)) {
                waits.push((*location, flight.clone()));
                continue;
            }
            let joins = group.first().zip(group.last()).is_some_and(|(first, last)| {
                first.segment == location.segment
                    && stored(location).start <= stored(last).end + GAP_BYTES
                    && stored(location).end - stored(first).start <= SPAN_BYTES
            });
            if !joins && !group.is_empty() {
                groups.push(std::mem::take(&mut group));
            }
            group.push(*location);
        }
        if !group.is_empty() {
            groups.push(group);
        }
        for group in groups {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let range = stored(first).start..stored(last).end;
            let keys: Vec<ChunkKey> = group.iter().map(cache_key).collect();
            let flight = Flight { start: range.start, span: self.span(first.segment, range, keys)? };
            for location in group {
                flights.insert(cache_key(&location), flight.clone());
                waits.push((location, flight.clone()));
            }
        }
        Ok(waits)
    }

    fn span(&self, segment: SegmentRef, range: Range<u64>, keys: Vec<ChunkKey>) -> Result<Span, FetchError> {
        let source = self.lineage.source(segment.volume)?;
        let key = segment.key();
        let (flights, env) = (Arc::clone(&self.flights), self.env.clone());
        let (permits, answers) = (Arc::clone(&self.permits), Arc::clone(&self.answers));
        let get = async move {
            let _permit = permits.acquire().await;
            let deadline = Instant::now() + PATIENCE;
            let mut backoff = Backoff::default();
            let outcome = loop {
                match source.store.get_range(&key, range.clone()).await {
                    Ok(bytes) => {
                        answers.fetch_add(1, Ordering::Relaxed);
                        break Ok(bytes);
                    }
                    Err(StoreError::NotFound { key }) => break Err(FetchError::Gone { key }),
                    Err(StoreError::Unavailable { .. }) if Instant::now() < deadline => {
                        backoff.pause(&env).await
                    }
                    Err(error) => break Err(FetchError::Store(error)),
                }
            };
            let mut flights = flights.lock().unwrap_or_else(PoisonError::into_inner);
            for key in &keys {
                flights.remove(key);
            }
            outcome
        };
        // A task of its own: a reader that gives up must not take the flight away from the others.
        let task = tokio::spawn(get);
        let lost = layout::segment(segment.volume, segment.id);
        Ok(async move {
            task.await.unwrap_or_else(|error| {
                Err(FetchError::Store(StoreError::Unavailable { key: lost, reason: error.to_string() }))
            })
        }
        .boxed()
        .shared())
    }
}
