//! What a volume still needs: the union over its head, its two newest roots and its snapshots.
//!
//! # Guarantees
//! - Everything that the session of the [`Cut`] can reach, and everything that the two newest roots and the snapshots
//!   reach, is marked. Only the volume's own objects: an ancestor's are its own collector's business.
//! - The head, the newest root and the snapshots are read in full or the marking fails.
//!
//! # Cost
//! Every page of the head is read once. Of roots and snapshots only what differs from the head is read. In memory
//! stand about a hundred bytes for each segment and record with data, and 16 for each page.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::GcError;
use crate::ids::{ObjectId, RecordNumber, VolumeId};
use crate::log::{Control, Log};
use crate::map::{Diff, Extent, Location, MapError, MapView, SegmentKind, StoredMap, Walk, map_objects};
use crate::snapshot;
use crate::store::StoreError;
use crate::volume::Cut;

/// A segment with data that the head names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// The record that made it visible.
    pub birth: RecordNumber,
    /// Bytes of the object; zero until a listing has shown it.
    pub size_bytes: u64,
    /// Stored bytes of the blocks that the head names.
    pub live_bytes: u64,
    /// Map entries that name it.
    pub extents: u64,
}

/// What is needed.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// Segments, also those in records, that the head names.
    pub head: BTreeMap<ObjectId, Usage>,
    /// Segments that only roots and snapshots name.
    pub older: BTreeSet<ObjectId>,
    /// Records with data that something names, and their ids.
    pub records: BTreeMap<RecordNumber, ObjectId>,
    /// Pages, indexes and snapshot maps.
    pub map_objects: BTreeSet<ObjectId>,
}

/// Marks what is needed by what `cut` can reach and by `roots` (newest first).
pub(super) async fn mark(
    log: &Log,
    cut: &Cut,
    roots: &[RecordNumber],
    deadline: Instant,
) -> Result<Needed, GcError> {
    let mut mark = Mark { log, head: &cut.head, deadline, needed: Needed::default(), maps: BTreeSet::new() };
    mark.head().await?;
    for view in &cut.unmapped {
        mark.older(view).await?;
    }
    mark.snapshots(&cut.control).await?;
    for (age, number) in roots.iter().enumerate() {
        let marked = mark.root(*number).await;
        match marked {
            // A root that a session put, or whose put landed, so late that its pages were collected. Nobody builds on
            // it: there is a newer one.
            Err(GcError::Map(MapError::Store(StoreError::NotFound { key }))) if age > 0 => {
                tracing::warn!(volume = %log.volume, root = %number, %key, "an old root is incomplete");
            }
            outcome => outcome?,
        }
    }
    Ok(mark.needed)
}

struct Mark<'a> {
    log: &'a Log,
    head: &'a MapView,
    deadline: Instant,
    needed: Needed,
    /// Snapshot maps that are marked already.
    maps: BTreeSet<ObjectId>,
}

impl Mark<'_> {
    async fn head(&mut self) -> Result<(), MapError> {
        self.objects(self.head).await?;
        let mut walk = Walk::new(self.head);
        while let Some(extents) = walk.next().await? {
            for extent in extents {
                self.needed.note_head(self.log.volume, &extent);
            }
        }
        Ok(())
    }

    /// Marks what `view` names and the head does not.
    async fn older(&mut self, view: &MapView) -> Result<(), MapError> {
        self.objects(view).await?;
        let mut diff = Diff::new(self.head, view, 0);
        while let Some(extent) = diff.next().await? {
            if let Some(location) = own(self.log.volume, &extent) {
                self.needed.note_older(location);
            }
        }
        Ok(())
    }

    async fn objects(&mut self, view: &MapView) -> Result<(), MapError> {
        let own = map_objects(view).await?.into_iter().filter(|object| object.volume == self.log.volume);
        self.needed.map_objects.extend(own.map(|object| object.id));
        Ok(())
    }

    async fn stored(&mut self, map: &StoredMap) -> Result<(), MapError> {
        self.older(&MapView::from_stored(self.head.source().clone(), map)).await
    }

    async fn snapshots(&mut self, control: &Control) -> Result<(), GcError> {
        for id in control.snapshots.values().filter_map(|snapshot| snapshot.map) {
            if self.maps.insert(id) {
                self.needed.map_objects.insert(id);
                let map = snapshot::read_map(self.log, id, self.deadline).await.map_err(GcError::from_log)?;
                self.stored(&map.map).await?;
            }
        }
        Ok(())
    }

    async fn root(&mut self, number: RecordNumber) -> Result<(), GcError> {
        let root = self.log.root(number, self.deadline).await?;
        let root = root.ok_or(GcError::Overtaken { volume: self.log.volume })?;
        self.stored(&root.map).await?;
        // It may show snapshots that were forgotten since.
        self.snapshots(&root.control).await
    }
}

fn own(volume: VolumeId, extent: &Extent) -> Option<Location> {
    extent.location.filter(|location| location.segment.volume == volume)
}

impl Needed {
    fn note_head(&mut self, volume: VolumeId, extent: &Extent) {
        let Some(location) = own(volume, extent) else { return };
        let segment = location.segment;
        if segment.kind == SegmentKind::Record {
            self.records.insert(segment.birth, segment.id);
        }
        let usage = self.head.entry(segment.id).or_insert(Usage {
            birth: segment.birth,
            size_bytes: 0,
            live_bytes: 0,
            extents: 0,
        });
        usage.extents += 1;
        usage.live_bytes +=
            u64::from(location.stored_len) * u64::from(extent.blocks) / u64::from(location.chunk_blocks);
    }

    fn note_older(&mut self, location: Location) {
        let segment = location.segment;
        match segment.kind {
            SegmentKind::Record => {
                self.records.insert(segment.birth, segment.id);
            }
            SegmentKind::Object => {
                if !self.head.contains_key(&segment.id) {
                    self.older.insert(segment.id);
                }
            }
        }
    }

    /// Whether the segment object is needed.
    pub fn segment(&self, id: ObjectId) -> bool {
        self.head.contains_key(&id) || self.older.contains(&id)
    }

    /// Notes the size of an object with data.
    pub fn note_size(&mut self, id: ObjectId, size_bytes: u64) {
        if let Some(usage) = self.head.get_mut(&id) {
            usage.size_bytes = size_bytes;
        }
    }
}
