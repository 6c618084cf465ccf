//! What a volume still needs: the union over its head, its two newest roots and its snapshots.
//!
//! # Guarantees
//! - Everything that the session of the [`Cut`] can reach, and everything that the two newest roots and the snapshots
//!   reach, is marked. Only the volume's own objects: an ancestor's are its own collector's business.
//! - The head, the newest root and the snapshots are read in full or the marking fails. Ancestors' pages are not read: they
//!   name nothing of the volume's own.
//! - What a pinned snapshot reaches is known as such.
//!
//! # Cost
//! Every page of the head that is the volume's own is read once, and once those of the newest pinned snapshot. Of each
//! other snapshot only what differs from the next newer one is read: what a snapshot names and its successor does not; and
//! that once, not in each round ([`super::differences`]). In memory stand about a hundred bytes for each segment and record with data, 16 for
//! each page (twice that for those in use), and the list of runs of each snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::GcError;
use super::differences::{Differences, Held, LIMIT_BYTES, Pair};
use crate::ids::{ObjectId, RecordNumber, SnapshotId, VolumeId};
use crate::log::{Control, Log};
use crate::map::{
    Diff, Extent, Extents, ExtentsWriter, Location, MapError, MapObject, MapView, SegmentKind, SnapshotMap,
    StoredMap, Walk, add_map_objects,
};
use crate::snapshot;
use crate::store::StoreError;
use crate::volume::Cut;

/// A segment with data that the head, or a snapshot without a pin, names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// The record that made it visible.
    pub birth: RecordNumber,
    /// Bytes of the object; zero until a listing has shown it.
    pub size_bytes: u64,
    /// Stored bytes of the blocks that are named.
    pub live_bytes: u64,
    /// Those blocks.
    pub blocks: u64,
    /// Map entries that name it; an entry of several maps counts once.
    pub extents: u64,
    /// Whether snapshots name blocks of it that the head does not.
    pub in_snapshots: bool,
}

/// What is needed.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// Segments, also those in records, that the head or snapshots name whose maps may be rewritten.
    pub used: BTreeMap<ObjectId, Usage>,
    /// Segments, also those in records, that pinned snapshots name: they stay where they are.
    pub pinned: BTreeSet<ObjectId>,
    /// Segments that only roots and snapshots without a durable map name.
    pub older: BTreeSet<ObjectId>,
    /// Records with data that something names, and their ids.
    pub records: BTreeMap<RecordNumber, ObjectId>,
    /// Pages, indexes and snapshot maps.
    pub map_objects: BTreeSet<ObjectId>,
    /// Those of them that the head and the present maps of snapshots consist of.
    pub present_maps: BTreeSet<ObjectId>,
    /// What these take, once a listing has shown it.
    pub map_bytes: u64,
    /// The snapshots without a pin, newest first.
    pub snapshots: Vec<Held>,
}

/// Marks what is needed.
#[derive(Debug)]
pub(super) struct Mark<'a> {
    log: &'a Log,
    cut: &'a Cut,
    /// The head, as the volume's own pages have it. So are all maps here.
    head: MapView,
    deadline: Instant,
    differences: &'a mut Differences,
    pub needed: Needed,
    /// Snapshot maps that are marked already.
    maps: BTreeSet<ObjectId>,
    /// The map objects met so far, ancestors' too.
    objects: BTreeSet<MapObject>,
    /// The present maps of the snapshots.
    present: BTreeMap<SnapshotId, MapView>,
}

/// How something is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    Snapshot,
    Pinned,
    Older,
}

impl<'a> Mark<'a> {
    /// Marks what is needed by what `cut` can reach and by `roots` (newest first). Clones need the snapshots in
    /// `pinned`.
    pub async fn of(
        log: &'a Log,
        cut: &'a Cut,
        roots: &[RecordNumber],
        pinned: &BTreeSet<SnapshotId>,
        differences: &'a mut Differences,
        deadline: Instant,
    ) -> Result<Self, GcError> {
        let mut mark = Self {
            log,
            cut,
            head: cut.head.of_own_pages(log.volume),
            deadline,
            differences,
            needed: Needed::default(),
            maps: BTreeSet::new(),
            objects: BTreeSet::new(),
            present: BTreeMap::new(),
        };
        mark.head().await?;
        for view in &cut.unmapped {
            mark.difference(None, &mark.head.clone(), &view.of_own_pages(log.volume), As::Older).await?;
        }
        mark.snapshots(pinned).await?;
        mark.own_objects();
        mark.needed.present_maps = mark.needed.map_objects.clone();
        for (age, number) in roots.iter().enumerate() {
            match mark.root(*number).await {
                // A root that a session put, or whose put landed, so late that its pages were collected. Nobody builds
                // on it: there is a newer one.
                Err(GcError::Map(MapError::Store(StoreError::NotFound { key }))) if age > 0 => {
                    tracing::warn!(volume = %log.volume, root = %number, %key, "an old root is incomplete");
                }
                outcome => outcome?,
            }
        }
        mark.own_objects();
        Ok(mark)
    }

    async fn head(&mut self) -> Result<(), MapError> {
        add_map_objects(&self.head, &mut self.objects).await?;
        let mut walk = Walk::new(&self.head);
        while let Some(extents) = walk.next().await? {
            extents.iter().for_each(|extent| self.needed.note_used(self.log.volume, extent, false));
        }
        Ok(())
    }

    /// The snapshots, newest first: those without a pin as what differs from the next newer one, or the head; those
    /// with one in full, since all they name stays where it is.
    async fn snapshots(&mut self, pinned: &BTreeSet<SnapshotId>) -> Result<(), GcError> {
        let (mut newer, mut newer_id) = (self.head.clone(), None);
        let mut newer_pinned: Option<(MapView, ObjectId)> = None;
        for (id, found) in self.cut.control.snapshots.iter().rev() {
            let Some(map) = found.map else { continue };
            let stored = self.read(map).await?;
            let view = self.view(&stored.map);
            self.present.insert(*id, view.clone());
            if !pinned.contains(id) {
                let pair = newer_id.map(|newer| (newer, map));
                let only = self.difference(pair, &newer, &view, As::Snapshot).await?;
                self.needed.snapshots.push(Held { map: stored, only });
                (newer, newer_id) = (view, Some(map));
                continue;
            }
            match &newer_pinned {
                Some((newer, id)) => {
                    self.difference(Some((*id, map)), newer, &view, As::Pinned).await?;
                }
                None => self.whole(&view).await?,
            }
            newer_pinned = Some((view, map));
        }
        Ok(())
    }

    async fn root(&mut self, number: RecordNumber) -> Result<(), GcError> {
        let root = self.log.root(number, self.deadline).await?;
        let root = root.ok_or(GcError::Overtaken { volume: self.log.volume })?;
        self.difference(None, &self.head.clone(), &self.view(&root.map), As::Older).await?;
        self.snapshots_of(&root.control).await
    }

    /// A root may show snapshots that were forgotten since, and maps that were rewritten. They too name what the next
    /// newer ones of the root name, all of which is marked by then, and what an earlier round has found beside it.
    async fn snapshots_of(&mut self, control: &Control) -> Result<(), GcError> {
        let mut newer = None;
        for (id, found) in control.snapshots.iter().rev() {
            let Some(map) = found.map else { continue };
            if !self.maps.contains(&map) {
                let stored = self.read(map).await?;
                match newer.and_then(|newer| self.differences.get((newer, map))) {
                    Some(known) => {
                        add_map_objects(&self.view(&stored.map), &mut self.objects).await?;
                        known.from(0).for_each(|extent| self.note(&extent, As::Older));
                    }
                    None => self.against_present(*id, &stored.map, As::Older).await?,
                }
            }
            newer = Some(map);
        }
        Ok(())
    }

    /// Marks an earlier generation of a pinned snapshot's map. One that is incomplete was being deleted, when nothing
    /// pinned it.
    pub async fn generation(&mut self, map: ObjectId) -> Result<(), GcError> {
        let marked = async {
            let stored = self.read(map).await?;
            self.against_present(stored.snapshot, &stored.map, As::Pinned).await
        };
        match marked.await {
            Err(GcError::Map(MapError::Store(StoreError::NotFound { key }))) => {
                tracing::warn!(volume = %self.log.volume, %map, %key, "an old snapshot map is incomplete");
            }
            outcome => outcome?,
        }
        self.own_objects();
        Ok(())
    }

    async fn read(&mut self, map: ObjectId) -> Result<Arc<SnapshotMap>, GcError> {
        self.maps.insert(map);
        self.needed.map_objects.insert(map);
        if let Some(known) = self.differences.map(map) {
            return Ok(known);
        }
        let read = snapshot::read_map(self.log, map, self.deadline).await.map_err(GcError::from_log)?;
        let read = Arc::new(read);
        self.differences.note_map(read.clone());
        Ok(read)
    }

    fn view(&self, map: &StoredMap) -> MapView {
        MapView::from_stored(self.head.source().clone(), map)
    }

    async fn against_present(&mut self, id: SnapshotId, map: &StoredMap, needed: As) -> Result<(), GcError> {
        let present = self.present.get(&id).unwrap_or(&self.head).clone();
        self.difference(None, &present, &self.view(map), needed).await?;
        Ok(())
    }

    /// Marks what `older` names and `newer` does not, and answers it, if that is not too much. It is remembered if both
    /// are the maps of a `pair`.
    async fn difference(
        &mut self,
        pair: Option<Pair>,
        newer: &MapView,
        older: &MapView,
        needed: As,
    ) -> Result<Option<Arc<Extents>>, MapError> {
        add_map_objects(older, &mut self.objects).await?;
        if let Some(known) = pair.and_then(|pair| self.differences.get(pair)) {
            known.from(0).for_each(|extent| self.note(&extent, needed));
            return Ok(Some(known));
        }
        let mut only = Some(ExtentsWriter::new(self.differences.segments()));
        let mut diff = Diff::new(newer, older, 0);
        while let Some(extent) = diff.next().await? {
            if own(self.log.volume, &extent).is_none() {
                continue;
            }
            self.note(&extent, needed);
            if let Some(writer) = &mut only {
                writer.push(extent)?;
            }
            only = only.filter(|writer| writer.bytes() <= LIMIT_BYTES);
        }
        let Some(only) = only else { return Ok(None) };
        let only = Arc::new(only.finish()?);
        if let Some(pair) = pair {
            self.differences.note(pair, only.clone());
        }
        Ok(Some(only))
    }

    fn note(&mut self, extent: &Extent, needed: As) {
        match needed {
            As::Snapshot => self.needed.note_used(self.log.volume, extent, true),
            As::Pinned => self.needed.note_pinned(self.log.volume, extent),
            As::Older => self.needed.note_older(self.log.volume, extent),
        }
    }

    /// Marks all that a pinned snapshot names.
    async fn whole(&mut self, view: &MapView) -> Result<(), MapError> {
        add_map_objects(view, &mut self.objects).await?;
        let mut walk = Walk::new(view);
        while let Some(extents) = walk.next().await? {
            extents.iter().for_each(|extent| self.needed.note_pinned(self.log.volume, extent));
        }
        Ok(())
    }

    fn own_objects(&mut self) {
        let own = self.objects.iter().filter(|object| object.volume == self.log.volume);
        self.needed.map_objects.extend(own.map(|object| object.id));
    }
}

/// Where the extent's data lies, if in a segment of the volume itself.
pub(super) fn own(volume: VolumeId, extent: &Extent) -> Option<Location> {
    extent.location.filter(|location| location.segment.volume == volume)
}

impl Needed {
    fn note_used(&mut self, volume: VolumeId, extent: &Extent, in_snapshots: bool) {
        let Some(location) = own(volume, extent) else { return };
        self.note_record(&location);
        let segment = location.segment;
        let usage = self.used.entry(segment.id).or_insert(Usage {
            birth: segment.birth,
            size_bytes: 0,
            live_bytes: 0,
            blocks: 0,
            extents: 0,
            in_snapshots: false,
        });
        usage.extents += 1;
        usage.blocks += u64::from(extent.blocks);
        usage.live_bytes +=
            u64::from(location.stored_len) * u64::from(extent.blocks) / u64::from(location.chunk_blocks);
        usage.in_snapshots |= in_snapshots;
    }

    fn note_pinned(&mut self, volume: VolumeId, extent: &Extent) {
        let Some(location) = own(volume, extent) else { return };
        self.note_record(&location);
        self.pinned.insert(location.segment.id);
    }

    fn note_older(&mut self, volume: VolumeId, extent: &Extent) {
        let Some(location) = own(volume, extent) else { return };
        self.note_record(&location);
        self.older.insert(location.segment.id);
    }

    fn note_record(&mut self, location: &Location) {
        if location.segment.kind == SegmentKind::Record {
            self.records.insert(location.segment.birth, location.segment.id);
        }
    }

    /// Whether the segment object is needed.
    pub fn segment(&self, id: ObjectId) -> bool {
        self.used.contains_key(&id) || self.pinned.contains(&id) || self.older.contains(&id)
    }

    /// Notes the size of an object with data.
    pub fn note_size(&mut self, id: ObjectId, size_bytes: u64) {
        if let Some(usage) = self.used.get_mut(&id) {
            usage.size_bytes = size_bytes;
        }
    }
}
