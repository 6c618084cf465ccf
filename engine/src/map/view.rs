//! The map at one moment.

use std::ops::Range;
use std::sync::Arc;

use super::cursor::{LayerCursor, MapCursor, Reading, with_holes};
use super::own::own_pages;
use super::{Extent, MapError, Memtable, Origin, PageSource, RunRef, StoredMap};
use crate::ids::VolumeId;

/// A layer of the map: hides the older ones where it says anything.
#[derive(Debug, Clone)]
pub enum Layer {
    /// Not yet in the store.
    Memory(Arc<Memtable>),
    /// In the store.
    Run(Arc<RunRef>),
}

impl Layer {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory(ours), Self::Memory(theirs)) => Arc::ptr_eq(ours, theirs),
            (Self::Run(ours), Self::Run(theirs)) => Arc::ptr_eq(ours, theirs),
            (Self::Memory(_), Self::Run(_)) | (Self::Run(_), Self::Memory(_)) => false,
        }
    }
}

/// The map as it was when the view was made. Cheap to clone; never changes.
#[derive(Debug, Clone)]
pub struct MapView {
    source: Arc<dyn PageSource>,
    layers: Arc<[Layer]>,
    origins: Arc<[Origin]>,
}

impl MapView {
    /// The map of an empty volume.
    pub fn empty(source: Arc<dyn PageSource>) -> Self {
        Self { source, layers: Arc::new([]), origins: Arc::new([]) }
    }

    /// A stored map. Nothing is loaded.
    pub fn from_stored(source: Arc<dyn PageSource>, stored: &StoredMap) -> Self {
        let layers = stored.runs.iter().map(|run| Layer::Run(Arc::new(run.clone()))).collect();
        Self { source, layers, origins: stored.origins.clone().into() }
    }

    /// The same as stored; none while a layer is in memory only: a [`super::Checkpoint`] writes those.
    pub fn to_stored(&self) -> Option<StoredMap> {
        let run = |layer: &Layer| match layer {
            Layer::Memory(_) => None,
            Layer::Run(run) => Some((**run).clone()),
        };
        let runs = self.layers.iter().map(run).collect::<Option<Vec<_>>>()?;
        Some(StoredMap { runs, origins: self.origins.to_vec() })
    }

    /// What `range` (in blocks) consists of: extents in order that cover it without a gap. What was never written is a
    /// hole. Needs at most one index and one page of each run, unless the range itself spans more; the answer's size
    /// is the asker's to bound, by the range.
    pub async fn lookup(&self, range: Range<u64>) -> Result<Vec<Extent>, MapError> {
        self.lookup_below(Vec::new(), range).await
    }

    /// The same, below what a newer layer said (`found`, sorted, within `range`).
    pub(super) async fn lookup_below(
        &self,
        found: Vec<Extent>,
        range: Range<u64>,
    ) -> Result<Vec<Extent>, MapError> {
        let mut cursor = self.cursor(Reading::lookup(self.source.clone()));
        let found = cursor.resolve_below(found, range.clone()).await?;
        Ok(with_holes(range, found))
    }

    /// Where pages come from.
    pub fn source(&self) -> &Arc<dyn PageSource> {
        &self.source
    }

    /// The layers, newest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The volumes other than the owner that the layers may name.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    pub(super) fn cursor(&self, reading: Reading) -> MapCursor {
        MapCursor::new(reading, self.layers.iter().map(LayerCursor::from).collect())
    }

    /// These layers instead, newest first.
    pub(super) fn with_layers(&self, layers: Vec<Layer>) -> Self {
        Self { layers: layers.into(), ..self.clone() }
    }

    /// What the pages of `volume` itself say of it; see [`super::own`].
    pub(crate) fn of_own_pages(&self, volume: VolumeId) -> Self {
        Self { source: own_pages(&self.source, volume), ..self.clone() }
    }

    /// The same view below newer layers (newest first).
    pub(crate) fn under(&self, newer: impl IntoIterator<Item = Layer>) -> Self {
        let layers = newer.into_iter().chain(self.layers.iter().cloned()).collect();
        Self { layers, ..self.clone() }
    }

    /// The layers that came after `older` was viewed; none if `older` is not what this view grew from.
    pub(super) fn since(&self, older: &Self) -> Option<&[Layer]> {
        let newer = self.layers.len().checked_sub(older.layers.len())?;
        let grown = self.layers[newer..].iter().zip(&*older.layers).all(|(ours, theirs)| ours.is(theirs));
        grown.then(|| &self.layers[..newer])
    }
}
