//! `holdfast inspect`: what an object of a pool says.

use bytes::Bytes;
use holdfast_engine::codec::{self, CodecError, DataKey, ObjectKind, ObjectName};
use holdfast_engine::ids::{ObjectId, RecordNumber, VolumeId};
use holdfast_engine::map::{Extent, PackPlace};
use holdfast_engine::pool::{Access, layout};
use holdfast_engine::store::{StoreError, retry};
use serde::Serialize;

use crate::error::CliError;
use crate::output::{self, Format};
use crate::reach::Reach;

/// Which object.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its key, relative to the pool: volumes/VOLUME/log/00000000000000000001
    key: String,
    /// The pool; may be left out if only one is configured
    #[arg(long)]
    pool: Option<String>,
}

/// What a key names.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Record(VolumeId, RecordNumber),
    Root(VolumeId, RecordNumber),
    Segment(VolumeId, ObjectId),
    Map(VolumeId, ObjectId),
    Json,
}

impl Named {
    fn parse(key: &str) -> Option<Self> {
        let Some(rest) = key.strip_prefix(layout::VOLUMES) else {
            let known = [layout::POOL, layout::KEYS, layout::NAMES, layout::SNAPSHOTS, layout::NODES];
            return known.iter().any(|prefix| key.starts_with(prefix)).then_some(Self::Json);
        };
        let (volume, rest) = rest.split_once('/')?;
        let volume = volume.parse().ok()?;
        match rest.split_once('/') {
            Some(("log", _)) => Some(Self::Record(volume, layout::number_in(key)?)),
            Some(("root", _)) => Some(Self::Root(volume, layout::number_in(key)?)),
            Some(("seg", _)) => Some(Self::Segment(volume, layout::object_id_in(key)?)),
            Some(("map", _)) => Some(Self::Map(volume, layout::object_id_in(key)?)),
            Some(("parameters" | "pins" | "fence", _)) => Some(Self::Json),
            None if rest == "volume.json" => Some(Self::Json),
            Some(_) | None => None,
        }
    }

    fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::Record(volume, _) | Self::Root(volume, _) => Some(*volume),
            Self::Segment(volume, _) | Self::Map(volume, _) => Some(*volume),
            Self::Json => None,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    key: String,
    kind: String,
    bytes: usize,
    content: serde_json::Value,
}

/// A page of a pack.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PackedPage {
    place: PackPlace,
    extents: Vec<Extent>,
}

/// Does it.
pub async fn run(reach: &Reach, format: Format, args: Args) -> Result<(), CliError> {
    let Args { key, pool } = args;
    let named = Named::parse(&key).ok_or_else(|| CliError::UnknownKey { key: key.clone() })?;
    let reached = reach.open(Access::ReadOnly).await?;
    let pool = reached.pool(pool.as_deref())?;
    let deadline = reached.deadline();
    let store = pool.store();
    let bytes = match retry(pool.env(), deadline, || store.get(&key)).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { key }) => {
            return Err(CliError::NoSuchObject { pool: pool.name().into(), key });
        }
        Err(error) => return Err(error.into()),
    };
    let data_key = match named.volume() {
        Some(volume) => pool.data_key(volume, deadline).await?,
        None => None,
    };
    let (kind, content) = decode(&key, &named, &bytes, data_key.as_ref())?;
    output::one(format, &Shown { key, kind, bytes: bytes.len(), content })
}

fn decode(
    key: &str,
    named: &Named,
    bytes: &Bytes,
    data_key: Option<&DataKey>,
) -> Result<(String, serde_json::Value), CliError> {
    let (kind, content) = match *named {
        Named::Record(volume, number) => {
            (ObjectKind::Record, value(codec::decode_record(bytes, volume, number, data_key)?)?)
        }
        Named::Root(volume, number) => {
            (ObjectKind::Root, value(codec::decode_root(bytes, volume, number, data_key)?)?)
        }
        Named::Segment(volume, id) => {
            (ObjectKind::Segment, value(codec::decode_segment_table(bytes, volume, id, data_key)?)?)
        }
        Named::Map(volume, id) => map_object(bytes, volume, id, data_key)?,
        Named::Json => {
            let content = serde_json::from_slice(bytes)
                .map_err(|error| CliError::Print(format!("{key} is not JSON: {error}")))?;
            return Ok(("description".into(), content));
        }
    };
    Ok((kind.to_string(), content))
}

/// Four kinds of object lie below `map/`; each says which it is.
fn map_object(
    bytes: &Bytes,
    volume: VolumeId,
    id: ObjectId,
    key: Option<&DataKey>,
) -> Result<(ObjectKind, serde_json::Value), CliError> {
    let is = |kind: ObjectKind| bytes.starts_with(kind.magic());
    if is(ObjectKind::Page) {
        Ok((ObjectKind::Page, value(codec::decode_page(bytes, volume, id, key)?)?))
    } else if is(ObjectKind::Pack) {
        let pages = codec::decode_pack(bytes, volume, id, key)?.into_iter().map(|place| {
            let stored = bytes.slice(place.range().start as usize..place.range().end as usize);
            Ok(PackedPage { place, extents: codec::decode_packed_page(stored, volume, id, place, key)? })
        });
        Ok((ObjectKind::Pack, value(pages.collect::<Result<Vec<_>, CodecError>>()?)?))
    } else if is(ObjectKind::Index) {
        Ok((ObjectKind::Index, value(codec::decode_index(bytes, volume, id, key)?)?))
    } else if is(ObjectKind::SnapshotMap) {
        Ok((ObjectKind::SnapshotMap, value(codec::decode_snapshot_map(bytes, volume, id, key)?)?))
    } else {
        Err(CodecError::BadMagic { object: ObjectName::ById { kind: ObjectKind::Page, volume, id } }.into())
    }
}

fn value<T: Serialize>(decoded: T) -> Result<serde_json::Value, CliError> {
    serde_json::to_value(decoded).map_err(|error| CliError::Print(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_pool_is_known_and_others_are_not() {
        let (volume, id) = (VolumeId([1; 16]), ObjectId([2; 16]));
        let number = RecordNumber(7);
        assert_eq!(Named::parse(&layout::record(volume, number)), Some(Named::Record(volume, number)));
        assert_eq!(Named::parse(&layout::root(volume, number)), Some(Named::Root(volume, number)));
        assert_eq!(Named::parse(&layout::segment(volume, id)), Some(Named::Segment(volume, id)));
        assert_eq!(Named::parse(&layout::map(volume, id)), Some(Named::Map(volume, id)));
        for key in [
            layout::POOL.to_owned(),
            layout::volume_json(volume),
            layout::key_generation(1),
            layout::parameter_generation(volume, 1),
            layout::fence(volume, id),
        ] {
            assert_eq!(Named::parse(&key), Some(Named::Json), "{key}");
        }
        for key in ["", "volumes/", "volumes/x/log/1", "elsewhere", "volumes/x"] {
            assert_eq!(Named::parse(key), None, "{key}");
        }
    }
}
