//! Walking all of a map, for the collector.

use std::collections::{BTreeMap, BTreeSet};

use super::cursor::{MapCursor, Reading};
use super::{Extent, Layer, MapError, MapObject, MapView, RunRef, SegmentRef};

/// Yields all data that a map names, in order, with a few pages of each run in memory.
#[derive(Debug)]
pub struct Walk {
    cursor: MapCursor,
    lba: u64,
}

impl Walk {
    /// A walk from block 0.
    pub fn new(view: &MapView) -> Self {
        Self::from(view, 0)
    }

    /// A walk from block `lba`.
    pub fn from(view: &MapView, lba: u64) -> Self {
        Self { cursor: view.cursor(Reading::sequential(view.source().clone())), lba }
    }

    /// The next extents, at least one; all with a location. None at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Extent>>, MapError> {
        while let Some(window) = self.cursor.window(self.lba).await? {
            self.lba = window.end;
            let mut extents = self.cursor.resolve(window).await?;
            extents.retain(|extent| extent.location.is_some());
            if !extents.is_empty() {
                return Ok(Some(extents));
            }
        }
        Ok(None)
    }
}

/// How many blocks of each segment the map names. A block that several places of the map name counts as often.
pub async fn live_blocks(view: &MapView) -> Result<BTreeMap<SegmentRef, u64>, MapError> {
    let mut live = BTreeMap::new();
    let mut walk = Walk::new(view);
    while let Some(extents) = walk.next().await? {
        for extent in extents {
            if let Some(location) = extent.location {
                *live.entry(location.segment).or_default() += u64::from(extent.blocks);
            }
        }
    }
    Ok(live)
}

/// Bytes of the blocks whose data the map names, of those extents that count.
pub async fn mapped_bytes(view: &MapView, counts: impl Fn(&Extent) -> bool) -> Result<u64, MapError> {
    let mut walk = Walk::new(view);
    let mut mapped_bytes = 0;
    while let Some(extents) = walk.next().await? {
        mapped_bytes += extents.iter().filter(|extent| counts(extent)).map(Extent::bytes).sum::<u64>();
    }
    Ok(mapped_bytes)
}

/// The pages and indexes that the map consists of. Loads the indexes, and no page.
pub async fn map_objects(view: &MapView) -> Result<BTreeSet<MapObject>, MapError> {
    let mut objects = BTreeSet::new();
    add_map_objects(view, &mut objects).await?;
    Ok(objects)
}

/// Adds to `objects` the pages and indexes that the map consists of. Loads the indexes that are not there yet, and no
/// page.
pub async fn add_map_objects(view: &MapView, objects: &mut BTreeSet<MapObject>) -> Result<(), MapError> {
    let reading = Reading::scan(view.source().clone());
    for layer in view.layers() {
        let Layer::Run(run) = layer else { continue };
        match &**run {
            RunRef::Pages(pages) => objects.extend(pages.iter().map(MapObject::from)),
            RunRef::Indexed(indexes) => {
                for index in indexes {
                    if objects.insert(index.into()) {
                        let pages = reading.source.index(index, reading.access).await?;
                        objects.extend(pages.iter().map(MapObject::from));
                    }
                }
            }
        }
    }
    Ok(())
}
