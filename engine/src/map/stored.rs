//! How the map lies in the store: pages of sorted extents, packs of pages, runs of pages, index pages over large runs.

use std::ops::Range;

use crate::ids::{ObjectId, PoolId, RecordNumber, SnapshotId, VolumeId};
use crate::log::Control;

/// A page of the map: up to 64 KiB of sorted extents that do not overlap. It is the object `volumes/VOL/map/ID`, or lies
/// in that object, a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PageRef {
    /// The first block it says anything about.
    pub first_lba: u64,
    /// The block after the last one.
    pub end_lba: u64,
    /// The volume that owns the object: this one, or an ancestor of a clone.
    pub volume: VolumeId,
    /// The id of the object.
    pub id: ObjectId,
    /// Where it lies in the object, if that is a pack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<PackPlace>,
    /// How many extents it holds.
    pub extents: u32,
}

/// Where a page lies in a pack: one ranged get reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PackPlace {
    /// Where it begins, in bytes from the pack's begin; a multiple of 32.
    pub offset: u32,
    /// Bytes that it takes, with its trailer.
    pub len: u16,
    /// How many pages the pack has, this one counted, rounded up to a multiple of four.
    pub pages: u8,
}

impl PackPlace {
    /// The bytes of the object that it takes.
    pub fn range(&self) -> Range<u64> {
        u64::from(self.offset)..u64::from(self.offset) + u64::from(self.len)
    }
}

/// An index page, `volumes/VOL/map/ID`: up to 1,024 consecutive pages of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexRef {
    /// The first block it says anything about.
    pub first_lba: u64,
    /// The block after the last one.
    pub end_lba: u64,
    /// The volume that owns the object.
    pub volume: VolumeId,
    /// Its id.
    pub id: ObjectId,
    /// How many pages it lists.
    pub pages: u32,
}

/// An object of the map, `volumes/VOL/map/ID`, as something to keep or to delete: a page, a pack of pages, an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapObject {
    /// The volume that owns the object.
    pub volume: VolumeId,
    /// Its id.
    pub id: ObjectId,
}

/// A page or an index, as something to load or to compare: ids are random, so no two are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MapPart {
    /// The object.
    pub id: ObjectId,
    /// Where it begins in a pack; zero if it is the object.
    pub offset: u32,
}

impl From<&PageRef> for MapPart {
    fn from(page: &PageRef) -> Self {
        Self { id: page.id, offset: page.place.map_or(0, |place| place.offset) }
    }
}

impl From<&IndexRef> for MapPart {
    fn from(index: &IndexRef) -> Self {
        Self { id: index.id, offset: 0 }
    }
}

impl From<&PageRef> for MapObject {
    fn from(page: &PageRef) -> Self {
        Self { volume: page.volume, id: page.id }
    }
}

impl From<&IndexRef> for MapObject {
    fn from(index: &IndexRef) -> Self {
        Self { volume: index.volume, id: index.id }
    }
}

/// Entries of a full page, about.
const PAGE_ENTRIES: usize = 2500;

/// A sorted run of the map: its pages do not overlap. A newer run hides the older ones where it says anything.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RunRef {
    /// A small run: its pages.
    Pages(Vec<PageRef>),
    /// A large run: index pages over its pages.
    Indexed(Vec<IndexRef>),
}

impl RunRef {
    /// How many pages it has.
    pub fn pages(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.len(),
            Self::Indexed(indexes) => indexes.iter().map(|index| index.pages as usize).sum(),
        }
    }

    /// How many entries it has; if it is large, about.
    pub fn entries(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.iter().map(|page| page.extents as usize).sum(),
            Self::Indexed(_) => self.pages() * PAGE_ENTRIES,
        }
    }
}

/// A volume that this one descends from, whose objects the map may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The pool it lives in.
    pub pool: PoolId,
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot of it that is pinned for us.
    pub snapshot: SnapshotId,
}

/// A block map as stored: what roots and snapshot maps have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredMap {
    /// The runs, newest first.
    pub runs: Vec<RunRef>,
    /// The volumes other than the owner that the runs name.
    pub origins: Vec<Origin>,
}

/// A checkpoint, `volumes/VOL/root/N`: the state of the volume as of record N.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    /// The volume.
    pub volume: VolumeId,
    /// Its id.
    pub id: ObjectId,
    /// The record that it covers, with all before it.
    pub number: RecordNumber,
    /// The control state.
    pub control: Control,
    /// The map of the head.
    pub map: StoredMap,
}

/// A snapshot's map, `volumes/VOL/map/ID`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotMap {
    /// The volume.
    pub volume: VolumeId,
    /// Its id.
    pub id: ObjectId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The volume's size when it was taken.
    pub size_bytes: u64,
    /// The map.
    pub map: StoredMap,
}
