//! Reading everything that a volume needs, and telling what is damaged.
//!
//! # Order
//! The maps first: every page and index, once, however many maps have it. Then the objects with data that the maps name,
//! each as a whole and once: a few large requests instead of one for each block, and their tables, which a rebuild
//! would need, are checked with the chunks. Only if something is wrong are the maps walked again, to say whom it
//! concerns.
//!
//! # Cost
//! In memory stand about a hundred bytes for each object with data that is named, and what is damaged.
//!
//! # A volume in use
//! What the collector removes while a scrub is under way may be missed. Then the volume's state is read anew, and what
//! was found right is not read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::object::{self, PATIENCE, Wrong, WrongChunks};
use super::state::{self, State};
use super::{Damage, Fault, Place, SalvageError};
use crate::host::Host;
use crate::ids::{BLOCK_BYTES, ObjectId, RecordNumber, SnapshotId, VolumeId};
use crate::lineage::Lineage;
use crate::log::{Log, LogError, Op, Record};
use crate::map::{
    Diff, Extent, Location, MapCheck, MapError, MapView, PageCache, PageSource, SegmentKind, SegmentRef,
    VolumePages, Walk,
};
use crate::pool::{Pool, layout};

/// Objects read at once: each is held as a whole, of at most 16 MiB.
const PARALLEL: usize = 4;
/// Records read at once.
const RECORDS_AT_ONCE: usize = 8;
/// Memory for pages of maps.
const PAGES_BYTES: usize = 64 << 20;
/// How often a state is read that changes meanwhile.
const ROUNDS: usize = 3;

/// How much to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The head, all snapshots, and all records and roots.
    Volume,
    /// What the head names.
    Head,
    /// What one snapshot names.
    Snapshot(SnapshotId),
}

/// How far a scrub has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbing {
    /// Bytes of objects with data read.
    pub read_bytes: u64,
    /// Bytes of objects with data to read.
    pub total_bytes: u64,
}

/// What a scrub has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scrubbed {
    /// The size of the volume, or of the snapshot.
    pub size_bytes: u64,
    /// Bytes of blocks that the head (or the one snapshot) names data for.
    pub mapped_bytes: u64,
    /// Bytes of objects with data read.
    pub read_bytes: u64,
    /// Why the volume cannot be opened. What is said of the head then is what the newest readable root says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unopenable: Option<String>,
    /// What is damaged, by key.
    pub damage: Vec<Damage>,
}

impl Scrubbed {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.unopenable.is_none() && self.damage.is_empty()
    }
}

impl Host {
    /// Reads and checks everything that a volume, or one of its snapshots, needs, also in its ancestors. Damage is told
    /// and does not end it; a store that does not answer does. Tells `progress` how far it is.
    pub async fn scrub(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        scope: Scope,
        progress: &(dyn Fn(Scrubbing) + Sync),
    ) -> Result<Scrubbed, SalvageError> {
        let mut scrub = Scrub::new(self, pool, volume, scope, progress).await?;
        let mut base = scrub.log.newest_root(Instant::now() + PATIENCE).await?;
        for _ in 1..ROUNDS {
            let scrubbed = scrub.round().await?.scrubbed;
            let newest = scrub.log.newest_root(Instant::now() + PATIENCE).await?;
            let misses = scrubbed.damage.iter().any(|damage| damage.fault == Fault::Missing);
            if !misses || newest == base {
                return Ok(scrubbed);
            }
            base = newest;
            scrub.maps.doubt();
        }
        Ok(scrub.round().await?.scrubbed)
    }
}

/// The blocks of the head of a volume whose chunks are damaged.
pub(super) async fn damaged_head(
    host: &Host,
    pool: &Arc<Pool>,
    volume: VolumeId,
    progress: &(dyn Fn(Scrubbing) + Sync),
) -> Result<Vec<Extent>, SalvageError> {
    let mut scrub = Scrub::new(host, pool, volume, Scope::Head, progress).await?;
    let Round { scrubbed, views, wrong } = scrub.round().await?;
    if let Some(reason) = scrubbed.unopenable {
        return Err(SalvageError::Unopenable { volume, reason });
    }
    let mut damaged = Vec::new();
    each_named(&views, |_, extent, location| {
        if wrong.get(&location.segment.id).is_some_and(|(_, wrong)| wrong.concerns(&location)) {
            damaged.push(*extent);
        }
    })
    .await?;
    Ok(damaged)
}

struct Scrub<'a> {
    log: Log,
    lineage: Lineage,
    pages: Arc<dyn PageSource>,
    scope: Scope,
    progress: &'a (dyn Fn(Scrubbing) + Sync),
    maps: MapCheck,
    /// Objects with data that are right.
    right: BTreeSet<ObjectId>,
    seen: Scrubbing,
}

/// Objects that are wrong, and how.
type WrongObjects = BTreeMap<ObjectId, (SegmentRef, Wrong)>;

/// What one look has found.
struct Round {
    scrubbed: Scrubbed,
    /// Maps that can be walked.
    views: Vec<(Place, MapView)>,
    wrong: WrongObjects,
}

impl<'a> Scrub<'a> {
    async fn new(
        host: &Host,
        pool: &Arc<Pool>,
        volume: VolumeId,
        scope: Scope,
        progress: &'a (dyn Fn(Scrubbing) + Sync),
    ) -> Result<Self, SalvageError> {
        let deadline = Instant::now() + PATIENCE;
        let found = host.find(pool, volume, deadline).await?;
        let lineage = host.lineage(&found, deadline).await?;
        let log = found.log;
        // A cache of its own: what others have read before is to be read again.
        let pages = VolumePages::new(PageCache::new(PAGES_BYTES), lineage.clone(), volume, log.env.clone());
        Ok(Self {
            log,
            lineage,
            pages,
            scope,
            progress,
            maps: MapCheck::default(),
            right: BTreeSet::new(),
            seen: Scrubbing::default(),
        })
    }

    async fn round(&mut self) -> Result<Round, SalvageError> {
        let records = match self.scope {
            Scope::Volume | Scope::Head => state::records(&self.log).await?,
            Scope::Snapshot(_) => Vec::new(),
        };
        let state = State::read(&self.log, &self.pages, self.scope, &records).await?;
        let State { views, size_bytes, unopenable, mut damage, known } = state;
        let views = self.check_maps(views, &mut damage).await?;
        let (mut named, mapped_bytes) = named(&views).await?;
        if !known {
            self.name_all(&mut named).await?;
        }
        if named.is_empty() && records.is_empty() && !known {
            return Err(SalvageError::Nothing { volume: self.log.volume });
        }
        if self.scope == Scope::Volume {
            damage.extend(state::roots(&self.log).await?.1);
            self.check_records(&records, &mut named, &mut damage).await?;
        }
        self.count(&named).await?;
        let mut wrong = self.check_segments(&named).await?;
        if !wrong.is_empty() {
            self.look_by_map(&views, &mut wrong).await?;
            damage.extend(attribute(&views, &wrong).await?);
        }
        damage.sort_by(|a, b| (&a.key, a.chunk_offset).cmp(&(&b.key, b.chunk_offset)));
        let read_bytes = self.seen.read_bytes;
        let scrubbed = Scrubbed { size_bytes, mapped_bytes, read_bytes, unopenable, damage };
        Ok(Round { scrubbed, views, wrong })
    }

    /// Checks the pages of all maps. Answers maps that can be walked.
    async fn check_maps(
        &mut self,
        views: Vec<(Place, MapView)>,
        damage: &mut Vec<Damage>,
    ) -> Result<Vec<(Place, MapView)>, MapError> {
        let mut sound = Vec::new();
        let mut by_place: BTreeMap<(ObjectId, Option<u32>), Damage> = BTreeMap::new();
        for (place, view) in views {
            let (view, unsound) = self.maps.check(&view).await?;
            for found in unsound {
                let told = Damage::of_map(found.object, found.page_offset, &found.reason);
                let told = by_place.entry((found.object.id, told.chunk_offset)).or_insert(told);
                for range in found.ranges {
                    told.affect(&place, range.start * BLOCK_BYTES, (range.end - range.start) * BLOCK_BYTES);
                }
            }
            sound.push((place, view));
        }
        damage.extend(by_place.into_values());
        Ok(sound)
    }

    /// Checks records. One that carries data is added to `named`, if it can be decoded: its chunks are checked with
    /// the segments.
    async fn check_records(
        &self,
        records: &[RecordNumber],
        named: &mut BTreeMap<ObjectId, SegmentRef>,
        damage: &mut Vec<Damage>,
    ) -> Result<(), LogError> {
        let volume = self.log.volume;
        let told: BTreeSet<RecordNumber> = named
            .values()
            .filter(|segment| segment.kind == SegmentKind::Record && segment.volume == volume)
            .map(|segment| segment.birth)
            .collect();
        let deadline = Instant::now() + state::REPLAY;
        let unread = records.iter().copied().filter(|number| !told.contains(number));
        let mut reads = stream::iter(unread)
            .map(|number| async move { (number, self.log.get(number, deadline).await) })
            .buffered(RECORDS_AT_ONCE);
        while let Some((number, record)) = reads.next().await {
            match record {
                Ok(Some(record)) if carries_data(&record) => {
                    let id = record.id;
                    named.insert(id, SegmentRef { volume, birth: number, id, kind: SegmentKind::Record });
                }
                // Collected since it was listed; a gap in what is needed was noticed by the replay.
                Ok(_) => {}
                Err(LogError::Codec(error)) => {
                    damage.push(Damage::undecodable(layout::record(volume, number), volume, &error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// With nothing to say what is needed, all segments that are there are.
    async fn name_all(&self, named: &mut BTreeMap<ObjectId, SegmentRef>) -> Result<(), LogError> {
        let volume = self.log.volume;
        let listed = self.log.list(&layout::segments(volume), Instant::now() + state::REPLAY).await?;
        for id in listed.iter().filter_map(|listed| layout::object_id_in(&listed.key)) {
            let segment = SegmentRef { volume, birth: RecordNumber(0), id, kind: SegmentKind::Object };
            named.insert(id, segment);
        }
        Ok(())
    }

    /// Finds out how much there is to read.
    async fn count(&mut self, named: &BTreeMap<ObjectId, SegmentRef>) -> Result<(), SalvageError> {
        let mut total_bytes = self.seen.read_bytes;
        let volumes: BTreeSet<VolumeId> = named.values().map(|segment| segment.volume).collect();
        for volume in volumes {
            let source = self.lineage.source(volume).map_err(MapError::from)?;
            let log = Log { store: source.store, volume, key: source.key, env: self.log.env.clone() };
            for listed in log.list(&layout::segments(volume), Instant::now() + state::REPLAY).await? {
                let id = layout::object_id_in(&listed.key);
                if id.is_some_and(|id| named.contains_key(&id) && !self.right.contains(&id)) {
                    total_bytes += listed.size_bytes;
                }
            }
        }
        self.seen.total_bytes = total_bytes;
        (self.progress)(self.seen);
        Ok(())
    }

    async fn check_segments(
        &mut self,
        named: &BTreeMap<ObjectId, SegmentRef>,
    ) -> Result<WrongObjects, SalvageError> {
        let (lineage, env) = (self.lineage.clone(), self.log.env.clone());
        let unknown: Vec<SegmentRef> =
            named.values().filter(|segment| !self.right.contains(&segment.id)).copied().collect();
        let mut looks = stream::iter(unknown)
            .map(|segment| {
                let (lineage, env) = (&lineage, &env);
                async move { (segment, object::look(segment, lineage, env).await) }
            })
            .buffer_unordered(PARALLEL);
        let mut wrong = WrongObjects::new();
        while let Some((segment, looked)) = looks.next().await {
            let looked = looked?;
            self.seen.read_bytes += looked.bytes;
            self.seen.total_bytes = self.seen.total_bytes.max(self.seen.read_bytes);
            (self.progress)(self.seen);
            match looked.wrong {
                None => {
                    self.right.insert(segment.id);
                }
                Some(found) => {
                    wrong.insert(segment.id, (segment, found));
                }
            }
        }
        Ok(wrong)
    }

    /// Of objects whose tables cannot be read, opens the chunks that a map names.
    async fn look_by_map(
        &self,
        views: &[(Place, MapView)],
        wrong: &mut WrongObjects,
    ) -> Result<(), SalvageError> {
        let mut named: BTreeMap<ObjectId, BTreeSet<Location>> = BTreeMap::new();
        each_named(views, |_, _, location| {
            if let Some((_, Wrong::Table(..))) = wrong.get(&location.segment.id) {
                named
                    .entry(location.segment.id)
                    .or_default()
                    .insert(Location { chunk_offset: 0, ..location });
            }
        })
        .await?;
        for (id, locations) in named {
            let Some((segment, Wrong::Table(_, chunks))) = wrong.get_mut(&id) else { continue };
            let source = self.lineage.source(segment.volume).map_err(MapError::from)?;
            let bytes = object::get(&source, &self.log.env, &segment.key()).await?;
            *chunks = match bytes {
                Some(bytes) => object::wrong_chunks(locations.into_iter(), &bytes, source.key.as_ref()),
                None => WrongChunks::new(),
            };
        }
        Ok(())
    }
}

/// Whether the record is a segment too.
fn carries_data(record: &Record) -> bool {
    let in_itself = |extent: &Extent| {
        extent.location.is_some_and(|location| {
            location.segment.kind == SegmentKind::Record && location.segment.id == record.id
        })
    };
    record.ops.iter().any(|op| matches!(op, Op::Write { extents } if extents.iter().any(in_itself)))
}

/// The segments that the maps name, and the bytes of blocks that the first map has data for.
async fn named(views: &[(Place, MapView)]) -> Result<(BTreeMap<ObjectId, SegmentRef>, u64), MapError> {
    let mut named = BTreeMap::new();
    let mut mapped_bytes = 0;
    let mut note = |extent: &Extent| {
        if let Some(location) = &extent.location {
            named.insert(location.segment.id, location.segment);
        }
    };
    if let Some((_, first)) = views.first() {
        let mut walk = Walk::new(first);
        while let Some(extents) = walk.next().await? {
            extents.iter().for_each(&mut note);
            mapped_bytes += extents.iter().map(Extent::bytes).sum::<u64>();
        }
    }
    // Of each further map, what differs from the one before.
    for two in views.windows(2) {
        let mut diff = Diff::new(&two[0].1, &two[1].1, 0);
        while let Some(extent) = diff.next().await? {
            note(&extent);
        }
    }
    Ok((named, mapped_bytes))
}

/// Calls `with` for all data that the maps name, place by place and in order.
async fn each_named(
    views: &[(Place, MapView)],
    mut with: impl FnMut(&Place, &Extent, Location),
) -> Result<(), MapError> {
    for (place, view) in views {
        let mut walk = Walk::new(view);
        while let Some(extents) = walk.next().await? {
            for extent in &extents {
                if let Some(location) = extent.location {
                    with(place, extent, location);
                }
            }
        }
    }
    Ok(())
}

/// Says whom the wrong objects concern.
async fn attribute(views: &[(Place, MapView)], wrong: &WrongObjects) -> Result<Vec<Damage>, MapError> {
    let mut told: BTreeMap<(ObjectId, Option<u32>), Damage> = BTreeMap::new();
    for (id, (segment, wrong)) in wrong {
        told.extend(wrong.damage(segment).into_iter().map(|damage| ((*id, damage.chunk_offset), damage)));
    }
    each_named(views, |place, extent, location| {
        let id = location.segment.id;
        let chunk = match wrong.get(&id) {
            None => return,
            Some((_, Wrong::Missing)) => None,
            Some(_) => Some(location.stored_offset),
        };
        if let Some(damage) = told.get_mut(&(id, chunk)) {
            damage.affect(place, extent.lba * BLOCK_BYTES, extent.bytes());
        }
    })
    .await?;
    Ok(told.into_values().collect())
}
