//! Reading whole objects that hold chunks, and checking every part of them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Damage;
use crate::codec::{self, ChunkEntry, CodecError, DataKey};
use crate::env::Env;
use crate::lineage::{Lineage, Source};
use crate::map::{Location, MapError, SegmentKind, SegmentRef};
use crate::store::{StoreError, retry};

/// How long one object is asked for while its store is unavailable.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// An object as a whole; none if it is not there.
pub(super) async fn get(source: &Source, env: &Env, key: &str) -> Result<Option<Bytes>, StoreError> {
    match retry(env, Instant::now() + PATIENCE, || source.store.get(key)).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is wrong with an object that holds chunks.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It is not there.
    Missing,
    /// Its table cannot be read. Chunks that a map names may be good all the same; these are known not to be.
    Table(CodecError, WrongChunks),
    /// Only these chunks.
    Chunks(WrongChunks),
}

/// Chunks that cannot be opened, by where they begin.
pub(super) type WrongChunks = BTreeMap<u32, CodecError>;

/// What a look at an object that holds chunks has found.
#[derive(Debug)]
pub(super) struct Looked {
    pub bytes: u64,
    pub wrong: Option<Wrong>,
}

/// Reads the segment and checks its envelope, its table and every chunk.
pub(super) async fn look(segment: SegmentRef, lineage: &Lineage, env: &Env) -> Result<Looked, MapError> {
    let source = lineage.source(segment.volume)?;
    let Some(bytes) = get(&source, env, &segment.key()).await? else {
        return Ok(Looked { bytes: 0, wrong: Some(Wrong::Missing) });
    };
    let wrong = match table(&segment, &bytes, source.key.as_ref()) {
        Err(error) => Some(Wrong::Table(error, WrongChunks::new())),
        Ok(chunks) => {
            let locations = chunks.iter().filter_map(|chunk| chunk.extent(segment).location);
            let wrong = wrong_chunks(locations, &bytes, source.key.as_ref());
            (!wrong.is_empty()).then_some(Wrong::Chunks(wrong))
        }
    };
    Ok(Looked { bytes: bytes.len() as u64, wrong })
}

/// The chunks of a segment.
fn table(segment: &SegmentRef, bytes: &Bytes, key: Option<&DataKey>) -> Result<Vec<ChunkEntry>, CodecError> {
    let SegmentRef { volume, birth, id, kind } = *segment;
    match kind {
        SegmentKind::Object => Ok(codec::decode_segment_table(bytes, volume, id, key)?.chunks),
        SegmentKind::Record => {
            let decoded = codec::decode_record(bytes, volume, birth, key)?;
            let object =
                codec::ObjectName::ByNumber { kind: codec::ObjectKind::Record, volume, number: birth };
            if decoded.record.id == id {
                return Ok(decoded.chunks);
            }
            Err(CodecError::WrongObject { object, found: format!("record {}", decoded.record.id) })
        }
    }
}

/// Those of `locations`, in the object `bytes`, that cannot be opened.
pub(super) fn wrong_chunks(
    locations: impl Iterator<Item = Location>,
    bytes: &Bytes,
    key: Option<&DataKey>,
) -> WrongChunks {
    let mut wrong = BTreeMap::new();
    for location in locations {
        let have = bytes.len() as u64;
        let from = u64::from(location.stored_offset).min(have);
        let to = (from + u64::from(location.stored_len)).min(have);
        let stored = bytes.slice(from as usize..to as usize);
        if let Err(error) = codec::decode_chunk(stored, &location, key) {
            wrong.insert(location.stored_offset, error);
        }
    }
    wrong
}

impl Wrong {
    /// Whether the chunk that a map names cannot be read.
    pub fn concerns(&self, location: &Location) -> bool {
        match self {
            Self::Missing => true,
            Self::Table(_, chunks) | Self::Chunks(chunks) => chunks.contains_key(&location.stored_offset),
        }
    }

    /// What to report, by the chunk it is about.
    pub fn damage(&self, segment: &SegmentRef) -> Vec<Damage> {
        let (key, volume) = (segment.key(), segment.volume);
        let chunk = |(at, error): (&u32, &CodecError)| Damage {
            chunk_offset: Some(*at),
            ..Damage::undecodable(key.clone(), volume, error)
        };
        match self {
            Self::Missing => vec![Damage::missing(key, volume)],
            Self::Table(error, chunks) => {
                let whole = Damage::undecodable(key.clone(), volume, error);
                std::iter::once(whole).chain(chunks.iter().map(chunk)).collect()
            }
            Self::Chunks(chunks) => chunks.iter().map(chunk).collect(),
        }
    }
}
