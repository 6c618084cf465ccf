//! Checking the objects that a map consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use futures::future::join_all;

use super::cursor::Reading;
use super::{Access, Extent, IndexRef, Layer, MapError, MapObject, MapView, Memtable, PageRef, RunRef};
use crate::ids::ObjectId;
use crate::store::StoreError;

/// Pages loaded at once.
const PARALLEL: usize = 8;

/// An object of a map that cannot be read, or is not what its reference promises.
#[derive(Debug, Clone)]
pub struct Unsound {
    /// Which object.
    pub object: MapObject,
    /// What is wrong with it.
    pub reason: MapError,
    /// The blocks of the checked map that cannot be resolved for it, in order: what it speaks of, without what newer
    /// layers say.
    pub ranges: Vec<Range<u64>>,
}

/// Checks maps that share objects: each object is loaded once.
///
/// In memory stand 16 bytes for each object that is right.
#[derive(Debug, Default)]
pub struct MapCheck {
    right: BTreeSet<ObjectId>,
    wrong: BTreeMap<ObjectId, MapError>,
}

impl MapError {
    /// Whether the map itself is damaged; else asking again, or with other pools loaded, may help.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Codec(_) | Self::Damaged { .. } | Self::Store(StoreError::NotFound { .. }) => true,
            Self::Store(_) | Self::UnknownAncestor(_) | Self::Refused { .. } => false,
        }
    }
}

impl MapCheck {
    /// Loads every page and every index of `view`. Answers the view with a hole in the place of each one that is
    /// damaged, which can be walked without an error, and those that are damaged.
    pub async fn check(&mut self, view: &MapView) -> Result<(MapView, Vec<Unsound>), MapError> {
        let reading = Reading::scan(view.source().clone());
        let mut unsound = Vec::new();
        let mut layers: Vec<Layer> = Vec::new();
        for layer in view.layers() {
            let Layer::Run(run) = layer else {
                layers.push(layer.clone());
                continue;
            };
            let (sound, wrong) = self.check_run(&reading, run).await?;
            let newer = view.with_layers(layers.clone());
            let mut holes = Memtable::new();
            for (object, range) in wrong {
                let ranges = unresolved(&newer, range.clone()).await?;
                holes_in(range).for_each(|hole| holes.insert(hole));
                let reason = self.wrong.get(&object.id).cloned();
                unsound.extend(reason.map(|reason| Unsound { object, reason, ranges }));
            }
            layers.push(sound.map_or_else(|| layer.clone(), |run| Layer::Run(Arc::new(run))));
            if !holes.is_empty() {
                layers.push(Layer::Memory(Arc::new(holes)));
            }
        }
        Ok((view.with_layers(layers), unsound))
    }

    /// Forgets what was wrong: it is looked at again.
    pub fn doubt(&mut self) {
        self.wrong.clear();
    }

    /// What is wrong with the run, and the range that each such object speaks of; if anything is, also the run without.
    async fn check_run(
        &mut self,
        reading: &Reading,
        run: &RunRef,
    ) -> Result<(Option<RunRef>, Vec<(MapObject, Range<u64>)>), MapError> {
        let mut wrong = Vec::new();
        match run {
            RunRef::Pages(pages) => self.check_pages(reading, pages, &mut wrong).await?,
            RunRef::Indexed(indexes) => {
                for index in indexes {
                    match self.check_index(reading, index).await? {
                        Some(pages) => self.check_pages(reading, &pages, &mut wrong).await?,
                        None => wrong.push((index.into(), index.first_lba..index.end_lba)),
                    }
                }
            }
        }
        if wrong.is_empty() {
            return Ok((None, wrong));
        }
        let mut right: Vec<PageRef> = match run {
            RunRef::Pages(pages) => pages.clone(),
            RunRef::Indexed(indexes) => {
                let mut pages = Vec::new();
                for index in indexes.iter().filter(|index| self.right.contains(&index.id)) {
                    pages.extend_from_slice(&reading.source.index(index, reading.access).await?);
                }
                pages
            }
        };
        right.retain(|page| self.right.contains(&page.id));
        Ok((Some(RunRef::Pages(right)), wrong))
    }

    async fn check_index(
        &mut self,
        reading: &Reading,
        index: &IndexRef,
    ) -> Result<Option<Arc<[PageRef]>>, MapError> {
        if self.wrong.contains_key(&index.id) {
            return Ok(None);
        }
        let loaded = reading.source.index(index, Access::Scan).await;
        Ok(if self.note(index.id, &loaded)? { loaded.ok() } else { None })
    }

    async fn check_pages(
        &mut self,
        reading: &Reading,
        pages: &[PageRef],
        wrong: &mut Vec<(MapObject, Range<u64>)>,
    ) -> Result<(), MapError> {
        let unknown = |page: &&PageRef| !self.right.contains(&page.id) && !self.wrong.contains_key(&page.id);
        let unknown: Vec<PageRef> = pages.iter().filter(unknown).copied().collect();
        for batch in unknown.chunks(PARALLEL) {
            let loads = join_all(batch.iter().map(|page| reading.source.page(page, Access::Scan))).await;
            for (page, loaded) in batch.iter().zip(&loads) {
                self.note(page.id, loaded)?;
            }
        }
        let damaged = pages.iter().filter(|page| self.wrong.contains_key(&page.id));
        wrong.extend(damaged.map(|page| (page.into(), page.first_lba..page.end_lba)));
        Ok(())
    }

    /// Whether the object is right. An error that is no damage is passed on.
    fn note<T>(&mut self, id: ObjectId, loaded: &Result<T, MapError>) -> Result<bool, MapError> {
        match loaded {
            Ok(_) => {
                self.right.insert(id);
                Ok(true)
            }
            Err(reason) if reason.is_damage() => {
                self.wrong.insert(id, reason.clone());
                Ok(false)
            }
            Err(reason) => Err(reason.clone()),
        }
    }
}

/// The parts of `range` that `view` says nothing about.
async fn unresolved(view: &MapView, range: Range<u64>) -> Result<Vec<Range<u64>>, MapError> {
    let mut cursor = view.cursor(Reading::sequential(view.source().clone()));
    let mut gaps = Vec::new();
    let (mut lba, mut known) = (range.start, range.start);
    while let Some(window) = cursor.window(lba).await?
        && window.start < range.end
    {
        lba = window.end;
        for extent in cursor.resolve(window.start..window.end.min(range.end)).await? {
            if extent.lba > known {
                gaps.push(known..extent.lba);
            }
            known = extent.end();
        }
    }
    if known < range.end {
        gaps.push(known..range.end);
    }
    Ok(gaps)
}

/// A hole can be no longer than an extent.
fn holes_in(range: Range<u64>) -> impl Iterator<Item = Extent> {
    const MAX: u64 = u32::MAX as u64;
    let starts = (range.start..range.end).step_by(MAX as usize);
    starts.map(move |lba| Extent { lba, blocks: (range.end - lba).min(MAX) as u32, location: None })
}

#[cfg(test)]
mod tests {
    use super::super::run::run_of;
    use super::super::testing::{MemorySource, extent, hole};
    use super::super::{PageSource, StoredMap, Walk, write_pages};
    use super::*;

    async fn walked(view: &MapView) -> Vec<Extent> {
        let mut walk = Walk::new(view);
        let mut all = Vec::new();
        while let Some(extents) = walk.next().await.unwrap() {
            all.extend(extents);
        }
        all
    }

    /// Two runs: an older one with data in every second block below 160, a newer one over 8..12.
    async fn two_runs(source: &Arc<MemorySource>) -> (MapView, Vec<PageRef>) {
        let pages: Arc<dyn PageSource> = source.clone();
        let old = (0..80).map(|n| extent(n * 2, 1, n + 1, 0, 0));
        let old = write_pages(&pages, old).await.unwrap();
        assert!(old.len() > 3, "{old:?}");
        let newer = write_pages(&pages, [extent(8, 1, 90, 0, 0), hole(9, 3)]).await.unwrap();
        let old_run = run_of(&pages, old.clone()).await.unwrap().unwrap();
        assert!(matches!(old_run, RunRef::Indexed(_)));
        let stored = StoredMap { runs: vec![RunRef::Pages(newer), old_run], origins: Vec::new() };
        (MapView::from_stored(pages, &stored), old)
    }

    #[tokio::test]
    async fn a_sound_map_is_unchanged() {
        let source = MemorySource::with_small_pages();
        let (view, _) = two_runs(&source).await;
        let (sound, unsound) = MapCheck::default().check(&view).await.unwrap();
        assert!(unsound.is_empty());
        assert_eq!(walked(&sound).await, walked(&view).await);
    }

    #[tokio::test]
    async fn a_lost_page_leaves_holes_where_nothing_newer_speaks() {
        let source = MemorySource::with_small_pages();
        let (view, old) = two_runs(&source).await;
        let lost = old.iter().find(|page| page.first_lba <= 8 && 8 < page.end_lba).unwrap();
        let before = walked(&view).await;
        source.delete(lost.id);
        let mut check = MapCheck::default();
        let (sound, unsound) = check.check(&view).await.unwrap();
        assert_eq!(unsound.len(), 1);
        assert_eq!(unsound[0].object, MapObject::from(lost));
        let expected: Vec<Range<u64>> =
            [lost.first_lba..8, 12..lost.end_lba].into_iter().filter(|range| !range.is_empty()).collect();
        assert_eq!(unsound[0].ranges, expected);
        let lost_blocks = |extent: &Extent| expected.iter().any(|range| range.contains(&extent.lba));
        let left: Vec<Extent> = before.into_iter().filter(|extent| !lost_blocks(extent)).collect();
        assert_eq!(walked(&sound).await, left);
    }

    #[tokio::test]
    async fn a_lost_index_takes_all_its_pages_along() {
        let source = MemorySource::with_small_pages();
        let (view, _) = two_runs(&source).await;
        let Layer::Run(run) = &view.layers()[1] else { panic!("a run") };
        let RunRef::Indexed(indexes) = &**run else { panic!("indexes") };
        let last = indexes[indexes.len() - 1];
        source.delete(last.id);
        let (sound, unsound) = MapCheck::default().check(&view).await.unwrap();
        assert_eq!(unsound.len(), 1);
        let lost = last.first_lba..last.end_lba;
        assert_eq!(unsound[0].ranges, std::slice::from_ref(&lost));
        assert!(walked(&sound).await.iter().all(|extent| extent.lba < last.first_lba));
    }
}
