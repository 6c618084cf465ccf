//! Making a new volume of what is left of a damaged one.
//!
//! # Where the map comes from
//! If a root can be read with all its pages, and every record after it, the map is just what the log says: the newest
//! such root wins, and a log that is complete from its first record needs none. Otherwise the map is put together: the
//! newest root that can be read, as far as its pages can; over it everything that this root cannot know of, in the order
//! of writing; and where a page is lost, or where there is no root, whatever was written last. See [`History`] for that
//! order.
//!
//! # What may come back
//! Only a map that was put together may bring back what was discarded, or was written and never committed. A snapshot or
//! clone made before is not part of the new volume.
//!
//! # Cost
//! All data is read and written again, so that the new volume needs nothing of the old one. For a map that is put
//! together, some 60 bytes for each chunk that is left stand in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use super::copy::{Copied, copy};
use super::history::{History, Known};
use super::object::PATIENCE;
use super::{Damage, Lost, SalvageError, state};
use crate::control::CreateVolume;
use crate::host::Host;
use crate::ids::{Handle, ObjectId, RecordNumber, VolumeId};
use crate::log::{Control, Log};
use crate::map::{Layer, MapCheck, MapView, Memtable, Origin, PageSource, Root, StoredMap};
use crate::pool::{Parent, Pool, VolumeJson, layout};
use crate::snapshot;
use crate::volume::{BlockReader, Blocks, Fetcher, MapSink};

/// The parameter of a rebuilt volume that names what it was made of.
pub const REBUILT_FROM: &str = "rebuiltFrom";

/// How far a rebuild has come, in bytes of blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilding {
    /// Copied or found lost.
    pub done_bytes: u64,
    /// What there is to copy.
    pub total_bytes: u64,
}

/// Where the map of a rebuilt volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase", tag = "method")]
pub enum MapSource {
    /// The log says all of it, after this root; after none if it is complete.
    Replayed {
        /// The root.
        root: Option<RecordNumber>,
    },
    /// It was put together from segments and records, over this root if there was one. What was discarded or never
    /// committed may have come back.
    PutTogether {
        /// The root.
        root: Option<RecordNumber>,
    },
}

/// A rebuilt volume.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebuilt {
    /// The new volume.
    pub handle: Handle,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of blocks that it got.
    pub copied_bytes: u64,
    /// Where its map comes from.
    pub map: MapSource,
    /// Ranges whose newest data are named and cannot be read. They read as zeros.
    pub lost: Vec<Lost>,
    /// Objects that could not be read while the map was put together: what they said is not known, and older data may
    /// stand where they had newer.
    pub unreadable: Vec<Damage>,
}

impl Rebuilt {
    /// Whether nothing is known to be missing.
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty() && self.unreadable.is_empty()
    }
}

/// What is to become the new volume.
struct Found {
    view: MapView,
    size_bytes: u64,
    map: MapSource,
    unreadable: Vec<Damage>,
}

impl Host {
    /// Makes a new volume named `name`, in the same pool, of what is left of the head of `volume`, and leaves `volume` as
    /// it is. Tells `progress` how far it is.
    pub async fn rebuild(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        name: &str,
        progress: &(dyn Fn(Rebuilding) + Sync),
    ) -> Result<Rebuilt, SalvageError> {
        let deadline = Instant::now() + PATIENCE;
        if pool.volume_named(name, deadline).await?.is_some() {
            return Err(SalvageError::NameTaken { name: name.into() });
        }
        let source = self.find(pool, volume, deadline).await?;
        let lineage = self.lineage(&source, deadline).await?;
        let (json, log) = (source.json, source.log);
        let pages = self.page_source(&log, &lineage);
        let parent = self.parent_map(volume, &json).await?;
        let found = match replayed(&log, &pages, &json, &parent).await? {
            Some(found) => found,
            None => put_together(&log, &pages, &json, parent).await?,
        };
        let fetcher = Fetcher::new(lineage, Arc::clone(&self.cache), log.env.clone());
        let reader = BlockReader::new(volume, Blocks::Moment(found.view.clone()), fetcher);

        let handle = |volume| Handle { pool: pool.id(), volume, snapshot: None };
        let mut parameters: BTreeMap<String, String> = json.parameters;
        parameters.insert(REBUILT_FROM.into(), handle(volume).to_string());
        let new = CreateVolume {
            name: name.into(),
            size_bytes: found.size_bytes,
            source: None,
            codec: json.codec,
            parameters,
        };
        let made = self.create_volume(pool, &new, Instant::now() + PATIENCE).await?;
        let Copied { copied_bytes, lost } = match self.fill(pool, made, &found, &reader, progress).await {
            Ok(copied) => copied,
            Err(error) => {
                // What is in the way of the next attempt; if this fails too, its name says what it is.
                if let Err(left) = self.delete_volume(pool, made, Instant::now() + PATIENCE).await {
                    tracing::warn!(volume = %made, error = %left, "a rebuild that failed leaves an empty volume");
                }
                return Err(error);
            }
        };
        let Found { size_bytes, map, unreadable, .. } = found;
        Ok(Rebuilt { handle: handle(made), size_bytes, copied_bytes, map, lost, unreadable })
    }

    async fn fill(
        &self,
        pool: &Arc<Pool>,
        made: VolumeId,
        found: &Found,
        reader: &BlockReader,
        progress: &(dyn Fn(Rebuilding) + Sync),
    ) -> Result<Copied, SalvageError> {
        let (log, _) = self.describe(pool, made, Instant::now() + PATIENCE).await?;
        let session = self.maintain(pool, &log, Instant::now() + PATIENCE).await?;
        let outcome = copy(&found.view, reader, &session.volume, progress).await;
        if outcome.is_err() {
            session.volume.abandon();
        }
        session.end(Instant::now() + PATIENCE).await?;
        outcome
    }

    /// The map that a clone begins with, if it still needs its source: the root that its creation put before record 1.
    async fn parent_map(&self, clone: VolumeId, json: &VolumeJson) -> Result<Base, SalvageError> {
        let deadline = Instant::now() + PATIENCE;
        let Some(first) = json.parents.first() else { return Ok(Base::default()) };
        let Parent { pool, volume, snapshot } = *first;
        let unreachable =
            || SalvageError::Unreachable { handle: Handle { pool, volume, snapshot: Some(snapshot) } };
        let home = self.pools.get(pool).ok_or_else(unreachable)?;
        if home.pin(volume, snapshot, clone, deadline).await?.is_none() {
            // It has let go of it.
            return Ok(Base::default());
        }
        let log = self.log(&home, volume, deadline).await?;
        let origin =
            |parent: &Parent| Origin { pool: parent.pool, volume: parent.volume, snapshot: parent.snapshot };
        match snapshot::find(&log, snapshot, deadline).await {
            Ok(found) => {
                let origins = json.parents.iter().map(origin).collect();
                Ok(Base { map: Some(StoredMap { runs: found.map.map.runs, origins }), damage: None })
            }
            Err(snapshot::SnapshotError::Log(error)) if state::is_damage(&error) => {
                let mut damage = Damage::missing(layout::roots(volume), volume);
                damage.reason = format!("the snapshot that the volume is a clone of cannot be read: {error}");
                Ok(Base { map: None, damage: Some(damage) })
            }
            Err(snapshot::SnapshotError::Log(error)) => Err(error.into()),
            Err(snapshot::SnapshotError::Incomplete { .. }) => Err(unreachable()),
        }
    }
}

/// What a volume begins with.
#[derive(Debug, Default)]
struct Base {
    map: Option<StoredMap>,
    damage: Option<Damage>,
}

impl Base {
    fn root(&self, volume: VolumeId) -> Option<Root> {
        let map = self.map.clone()?;
        let (id, number) = (ObjectId::NONE, RecordNumber(0));
        Some(Root { volume, id, number, control: Control::default(), map })
    }
}

/// The map as the log says it, if there is a beginning from which the log is complete.
async fn replayed(
    log: &Log,
    pages: &Arc<dyn PageSource>,
    json: &VolumeJson,
    base: &Base,
) -> Result<Option<Found>, SalvageError> {
    let records = state::records(log).await?;
    let readable = state::roots(log).await?.0;
    // No later record and no later root may be left out; a root alone shows that its number was reached.
    let newest = log.newest_root(Instant::now() + PATIENCE).await?;
    let last = records.last().copied().max(newest).unwrap_or_default();
    let begins = readable.into_iter().map(Some);
    // Before the first record a clone has the map of its source; without that one, the log alone is not enough.
    let first = base.damage.is_none().then(|| base.root(log.volume));
    for root in begins.chain(first) {
        let number = root.as_ref().map(|root| root.number).filter(|number| number.0 > 0);
        if number.is_none() && !records.contains(&RecordNumber(1)) {
            continue;
        }
        let mut sink = MapSink::new(Arc::clone(pages));
        let replayed = match log.replay_from(root, &mut sink, Instant::now() + state::REPLAY).await {
            Ok(replayed) if replayed.next > last && !replayed.control.last.is_none() => replayed,
            Ok(_) => continue,
            Err(error) if state::is_damage(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let view = sink.map.freeze();
        if MapCheck::default().check(&view).await?.1.iter().any(|found| !found.only_table) {
            continue;
        }
        let size_bytes = replayed.control.size_bytes.max(json.size_bytes);
        let map = MapSource::Replayed { root: number };
        return Ok(Some(Found { view, size_bytes, map, unreadable: Vec::new() }));
    }
    Ok(None)
}

/// The map as it can be put together.
async fn put_together(
    log: &Log,
    pages: &Arc<dyn PageSource>,
    json: &VolumeJson,
    base: Base,
) -> Result<Found, SalvageError> {
    let (readable, mut unreadable) = state::roots(log).await?;
    unreadable.extend(base.damage.clone());
    let root = readable.into_iter().find(|root| root.number.0 > 0);
    let root_number = root.as_ref().map(|root| root.number);
    let mut known = Known::default();
    let mut lost: Vec<Range<u64>> = Vec::new();
    let mut view = match (root, base.root(log.volume)) {
        (Some(root), _) => {
            let put = log.roots(Instant::now() + PATIENCE).await?;
            let put = put.into_iter().find(|(number, _)| *number == root.number);
            let time_ms = put.map_or(0, |(_, listed)| listed.modified_ms);
            known = Known { number: root.number, control: root.control, time_ms };
            MapView::from_stored(Arc::clone(pages), &root.map)
        }
        (None, Some(begin)) => MapView::from_stored(Arc::clone(pages), &begin.map),
        (None, None) => MapView::empty(Arc::clone(pages)),
    };
    let (sound, unsound) = MapCheck::default().check(&view).await?;
    view = sound;
    for found in unsound.into_iter().filter(|found| !found.only_table) {
        unreadable.push(Damage::of_map(found.object, found.page_offset, &found.reason));
        lost.extend(found.ranges);
    }
    let history = History::read(log, pages, &known).await?;
    if history.is_empty() && root_number.is_none() && base.map.is_none() {
        return Err(SalvageError::Nothing { volume: log.volume });
    }
    lost.sort_by_key(|range| range.start);
    let mut layers = vec![layer(history.extents(true))];
    if !lost.is_empty() {
        layers.push(layer(history.extents(false).flat_map(|extent| within(&lost, extent))));
        // Of what a clone began with, and a lost page may have said.
        if let (Some(begin), Some(_)) = (&base.map, root_number) {
            let begin = MapView::from_stored(Arc::clone(pages), begin);
            let begin = MapCheck::default().check(&begin).await?.0;
            let mut extents = Vec::new();
            for range in &lost {
                extents.extend(begin.lookup(range.clone()).await?);
            }
            layers.push(layer(extents.into_iter()));
        }
    }
    let view = view.under(layers);
    unreadable.extend(history.unreadable);
    let size_bytes = json.size_bytes.max(known.control.size_bytes).max(history.size_bytes);
    Ok(Found { view, size_bytes, map: MapSource::PutTogether { root: root_number }, unreadable })
}

/// A layer of these extents, of which later ones hide earlier ones.
fn layer(extents: impl Iterator<Item = crate::map::Extent>) -> Layer {
    let mut memtable = Memtable::new();
    extents.filter(|extent| extent.check().is_ok()).for_each(|extent| memtable.insert(extent));
    Layer::Memory(Arc::new(memtable))
}

/// The parts of `extent` that lie within `ranges`, which are sorted and do not overlap.
fn within(ranges: &[Range<u64>], extent: crate::map::Extent) -> impl Iterator<Item = crate::map::Extent> {
    let from = ranges.partition_point(|range| range.end <= extent.lba);
    ranges[from..]
        .iter()
        .take_while(move |range| range.start < extent.end())
        .map(move |range| extent.slice(range.start, range.end))
}
