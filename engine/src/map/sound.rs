//! Checking the objects that a map consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use futures::future::join_all;

use super::cursor::Reading;
use super::{
    Access, Extent, IndexRef, Layer, MapError, MapObject, MapPart, MapView, Memtable, PackCheck, PageRef,
    PageSource, RunRef,
};
use crate::ids::ObjectId;
use crate::store::StoreError;

/// Objects loaded at once.
const PARALLEL: usize = 8;

/// An object of a map, or a page in a pack, that cannot be read or is not what its reference promises.
#[derive(Debug, Clone)]
pub struct Unsound {
    /// Which object.
    pub object: MapObject,
    /// Where the page begins in it, if it is a pack.
    pub page_offset: Option<u32>,
    /// Whether it is only the table of a pack, which nobody needs who has a reference: every page can be read.
    pub only_table: bool,
    /// What is wrong with it.
    pub reason: MapError,
    /// The blocks of the checked map that cannot be resolved for it, in order: what it speaks of, without what newer
    /// layers say.
    pub ranges: Vec<Range<u64>>,
}

/// Checks maps that share pages: each object is loaded once, unless different maps name different pages of a pack.
///
/// In memory stand 20 bytes for each page and index that is right.
#[derive(Debug, Default)]
pub struct MapCheck {
    right: BTreeSet<MapPart>,
    wrong: BTreeMap<MapPart, MapError>,
    /// Packs whose tables are wrong.
    tables: BTreeMap<ObjectId, MapError>,
}

/// What is wrong with a run.
enum Wrong {
    /// An index, or a page with the place where it begins in its pack; and what it speaks of.
    Part { object: MapObject, page_offset: Option<u32>, reason: MapError, range: Range<u64> },
    /// The table of a pack.
    Table { pack: MapObject, reason: MapError },
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
            for wrong in wrong {
                unsound.push(match wrong {
                    Wrong::Part { object, page_offset, reason, range } => {
                        let ranges = unresolved(&newer, range.clone()).await?;
                        holes_in(range).for_each(|hole| holes.insert(hole));
                        Unsound { object, page_offset, only_table: false, reason, ranges }
                    }
                    Wrong::Table { pack: object, reason } => {
                        let ranges = Vec::new();
                        Unsound { object, page_offset: None, only_table: true, reason, ranges }
                    }
                });
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

    /// What is wrong with the run; if anything is, also the run without.
    async fn check_run(
        &mut self,
        reading: &Reading,
        run: &RunRef,
    ) -> Result<(Option<RunRef>, Vec<Wrong>), MapError> {
        let mut wrong = Vec::new();
        match run {
            RunRef::Pages(pages) => self.check_pages(reading, pages, &mut wrong).await?,
            RunRef::Indexed(indexes) => {
                for index in indexes {
                    if let Some(pages) = self.check_index(reading, index).await? {
                        self.check_pages(reading, &pages, &mut wrong).await?;
                    } else if let Some(reason) = self.wrong.get(&index.into()).cloned() {
                        let range = index.first_lba..index.end_lba;
                        wrong.push(Wrong::Part { object: index.into(), page_offset: None, reason, range });
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
                for index in indexes.iter().filter(|index| self.right.contains(&(*index).into())) {
                    pages.extend_from_slice(&reading.source.index(index, reading.access).await?);
                }
                pages
            }
        };
        right.retain(|page| self.right.contains(&page.into()));
        Ok((Some(RunRef::Pages(right)), wrong))
    }

    async fn check_index(
        &mut self,
        reading: &Reading,
        index: &IndexRef,
    ) -> Result<Option<Arc<[PageRef]>>, MapError> {
        if self.wrong.contains_key(&index.into()) {
            return Ok(None);
        }
        let loaded = reading.source.index(index, Access::Scan).await;
        Ok(if self.note(index.into(), &loaded)? { loaded.ok() } else { None })
    }

    async fn check_pages(
        &mut self,
        reading: &Reading,
        pages: &[PageRef],
        wrong: &mut Vec<Wrong>,
    ) -> Result<(), MapError> {
        let mut by_object: BTreeMap<ObjectId, Vec<PageRef>> = BTreeMap::new();
        for page in pages {
            let part = MapPart::from(page);
            if !self.right.contains(&part) && !self.wrong.contains_key(&part) {
                by_object.entry(page.id).or_default().push(*page);
            }
        }
        let unknown: Vec<Vec<PageRef>> = by_object.into_values().collect();
        for batch in unknown.chunks(PARALLEL) {
            let checks = join_all(batch.iter().map(|pages| check_object(&reading.source, pages))).await;
            for (pages, check) in batch.iter().zip(checks) {
                for (page, checked) in pages.iter().zip(&check.pages) {
                    self.note(page.into(), checked)?;
                }
                if let Err(reason) = check.table {
                    self.tables.extend(pages.first().map(|page| (page.id, reason)));
                }
            }
        }
        let mut told = BTreeSet::new();
        for page in pages {
            let object = MapObject::from(page);
            if let Some(reason) = self.tables.get(&page.id).filter(|_| told.insert(page.id)).cloned() {
                wrong.push(Wrong::Table { pack: object, reason });
            }
            if let Some(reason) = self.wrong.get(&page.into()).cloned() {
                let page_offset = page.place.map(|place| place.offset);
                let range = page.first_lba..page.end_lba;
                wrong.push(Wrong::Part { object, page_offset, reason, range });
            }
        }
        Ok(())
    }

    /// Whether a page or an index is right. An error that is no damage is passed on.
    fn note<T>(&mut self, part: MapPart, loaded: &Result<T, MapError>) -> Result<bool, MapError> {
        match loaded {
            Ok(_) => {
                self.right.insert(part);
                Ok(true)
            }
            Err(reason) if reason.is_damage() => {
                self.wrong.insert(part, reason.clone());
                Ok(false)
            }
            Err(reason) => Err(reason.clone()),
        }
    }
}

/// Checks pages that lie in one object.
async fn check_object(source: &Arc<dyn PageSource>, pages: &[PageRef]) -> PackCheck {
    match pages {
        [page] if page.place.is_none() => {
            let checked = source.page(page, Access::Scan).await.map(|_| ());
            PackCheck { table: Ok(()), pages: vec![checked] }
        }
        pages => source.check_pack(pages).await,
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
    async fn a_damaged_page_leaves_holes_where_nothing_newer_speaks() {
        let source = MemorySource::with_small_pages();
        let (view, old) = two_runs(&source).await;
        let lost = old.iter().find(|page| page.first_lba <= 8 && 8 < page.end_lba).unwrap();
        let before = walked(&view).await;
        source.damage(lost.id, lost.place.unwrap().offset as usize + 1);
        let mut check = MapCheck::default();
        let (sound, unsound) = check.check(&view).await.unwrap();
        assert_eq!(unsound.len(), 1);
        assert_eq!(unsound[0].object, MapObject::from(lost));
        assert_eq!(unsound[0].page_offset, lost.place.map(|place| place.offset));
        let expected: Vec<Range<u64>> =
            [lost.first_lba..8, 12..lost.end_lba].into_iter().filter(|range| !range.is_empty()).collect();
        assert_eq!(unsound[0].ranges, expected);
        let lost_blocks = |extent: &Extent| expected.iter().any(|range| range.contains(&extent.lba));
        let left: Vec<Extent> = before.into_iter().filter(|extent| !lost_blocks(extent)).collect();
        assert_eq!(walked(&sound).await, left);
    }

    #[tokio::test]
    async fn a_lost_pack_takes_its_pages_along() {
        let source = MemorySource::with_small_pages();
        let (view, old) = two_runs(&source).await;
        let lost = old[old.len() / 2].id;
        let gone: Vec<Range<u64>> =
            old.iter().filter(|page| page.id == lost).map(|page| page.first_lba..page.end_lba).collect();
        let before = walked(&view).await;
        source.delete(lost);
        let mut check = MapCheck::default();
        let (sound, unsound) = check.check(&view).await.unwrap();
        assert!(gone.len() > 1 && unsound.len() == gone.len(), "{gone:?} {unsound:?}");
        let is_left = |extent: &Extent| gone.iter().all(|range| !range.contains(&extent.lba));
        let left: Vec<Extent> = before.into_iter().filter(is_left).collect();
        assert_eq!(walked(&sound).await, left);
    }

    #[tokio::test]
    async fn a_damaged_table_of_a_pack_is_told_each_time_and_hides_nothing() {
        let source = MemorySource::with_small_pages();
        let (view, old) = two_runs(&source).await;
        let before = walked(&view).await;
        source.damage(old[0].id, crate::codec::ENVELOPE_BYTES);
        let mut check = MapCheck::default();
        for _ in 0..2 {
            let (sound, unsound) = check.check(&view).await.unwrap();
            assert_eq!(unsound.len(), 1);
            assert!(unsound[0].only_table && unsound[0].ranges.is_empty(), "{unsound:?}");
            assert_eq!(unsound[0].object, MapObject::from(&old[0]));
            assert_eq!(walked(&sound).await, before);
            check.doubt();
        }
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
