//! Ridding a map of the pages and indexes of other volumes.
//!
//! The map of a clone begins as the one of its source, and merging rewrites only what newer runs say something about. A
//! page that says nothing but that blocks are discarded would stay for ever, whatever is copied, and keep the source
//! needed. Nor does merging come to an end while the volume is written all over. So pages are written anew wherever they
//! are, and merging only spares those that newer runs hide.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::cursor::{Reading, RunCursor};
use super::run::{RunWriter, splice};
use super::{Access, MapError, PageRef, PageSource, RunRef, StoredMap};
use crate::ids::VolumeId;

/// Pages that are written anew at once, at most.
const PAGES: usize = 256;

/// Whether `stored` names pages or indexes of one of `volumes`.
pub async fn names_pages_of(
    source: &Arc<dyn PageSource>,
    stored: &StoredMap,
    volumes: &BTreeSet<VolumeId>,
) -> Result<bool, MapError> {
    for run in &stored.runs {
        if span_of(source, run, volumes).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What `stored` says, with some more of the pages and indexes of `volumes` written anew by the owner of `source`; none
/// if there is nothing to do.
pub async fn without_pages_of(
    source: &Arc<dyn PageSource>,
    stored: &StoredMap,
    volumes: &BTreeSet<VolumeId>,
) -> Result<Option<StoredMap>, MapError> {
    for (at, run) in stored.runs.iter().enumerate() {
        let Some(span) = span_of(source, run, volumes).await? else { continue };
        let oldest = at + 1 == stored.runs.len();
        let rewritten = rewrite(source, run, span, volumes, oldest).await?;
        let mut runs = stored.runs.clone();
        runs.splice(at..=at, rewritten);
        return Ok(Some(StoredMap { runs, origins: stored.origins.clone() }));
    }
    Ok(None)
}

/// The run with the first pages of `span` in place of those of `volumes`; none if nothing is left. `oldest`: no run is
/// older, so that holes hide nothing.
async fn rewrite(
    source: &Arc<dyn PageSource>,
    run: &RunRef,
    span: Range<u64>,
    volumes: &BTreeSet<VolumeId>,
    oldest: bool,
) -> Result<Option<RunRef>, MapError> {
    let reading = Reading::sequential(source.clone());
    let mut cursor = RunCursor::new(Arc::new(run.clone()));
    let mut writer = RunWriter::new(source.clone());
    let (mut lba, mut rewritten) = (span.start, 0);
    while rewritten < PAGES
        && let Some(page) = cursor.page_from(&reading, lba).await?
        && page.first_lba < span.end
    {
        lba = page.end_lba;
        if !volumes.contains(&page.volume) && writer.keep(page).await? {
            continue;
        }
        rewritten += 1;
        for extent in cursor.load(&reading, page).await?.extents(page.first_lba..page.end_lba) {
            if extent.location.is_some() || !oldest {
                writer.push(extent).await?;
            }
        }
    }
    splice(&reading, run, span.start..lba, writer.finish().await?).await
}

/// From the first to the last page of `run` that belongs to one of `volumes`, or whose index does.
async fn span_of(
    source: &Arc<dyn PageSource>,
    run: &RunRef,
    volumes: &BTreeSet<VolumeId>,
) -> Result<Option<Range<u64>>, MapError> {
    let within = |pages: &[PageRef]| {
        let mut theirs = pages.iter().filter(|page| volumes.contains(&page.volume));
        let first = theirs.next()?;
        Some(first.first_lba..theirs.next_back().unwrap_or(first).end_lba)
    };
    let indexes = match run {
        RunRef::Pages(pages) => return Ok(within(pages)),
        RunRef::Indexed(indexes) => indexes,
    };
    let mut span: Option<Range<u64>> = None;
    for index in indexes {
        let found = if volumes.contains(&index.volume) {
            Some(index.first_lba..index.end_lba)
        } else {
            within(&source.index(index, Access::Scan).await?)
        };
        if let Some(found) = found {
            let first_lba = span.map_or(found.start, |span| span.start);
            span = Some(first_lba..found.end);
        }
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MemorySource, Model, VOLUME, extent, hole};
    use super::super::{Checkpoint, Compactor, Extent, Map, MapView};
    use super::*;
    use crate::log::Op;

    const CLONE: VolumeId = VolumeId([8; 16]);
    const BLOCKS: u64 = 20_000;

    async fn stored(
        pages: &Arc<dyn PageSource>,
        before: Option<&StoredMap>,
        extents: Vec<Extent>,
    ) -> StoredMap {
        let map = match before {
            Some(before) => Map::from_stored(pages.clone(), before),
            None => Map::empty(pages.clone()),
        };
        map.apply(&[Op::Write { extents }]).await.unwrap();
        let frozen = map.freeze();
        Checkpoint::write(&[&frozen]).await.unwrap().stored(&frozen).unwrap()
    }

    const DATA: u64 = BLOCKS / 2;

    /// Pages of data between pages of discarded blocks.
    fn is_data(n: u64) -> bool {
        n % 200 < 60
    }

    /// What `map` says about all blocks.
    async fn said(pages: &Arc<dyn PageSource>, map: &StoredMap) -> Model {
        let view = MapView::from_stored(pages.clone(), map);
        Model::of(0..BLOCKS, &view.lookup(0..BLOCKS).await.unwrap())
    }

    /// A map of [`VOLUME`], and the one of its clone after all data were copied.
    async fn copied(source: &MemorySource, pages: &Arc<dyn PageSource>) -> StoredMap {
        let entry = |n: u64| if is_data(n) { extent(n * 2, 1, n, 0, 0) } else { hole(n * 2, 1) };
        let of_source = stored(pages, None, (0..DATA).map(entry).collect()).await;
        source.write_as(CLONE);
        let copied = (0..DATA).filter(|n| is_data(*n)).map(|n| extent(n * 2, 1, BLOCKS + n, 0, 0));
        stored(pages, Some(&of_source), copied.collect()).await
    }

    #[tokio::test]
    async fn a_clone_whose_blocks_are_copied_names_nothing_of_its_source_in_the_end() {
        let source = MemorySource::with_small_pages();
        let pages: Arc<dyn PageSource> = source.clone();
        let mut map = copied(&source, &pages).await;

        let theirs = BTreeSet::from([VOLUME]);
        let mut compactor = Compactor::default();
        compactor.request_full_merge();
        let mut before = StoredMap::default();
        while map != before {
            before = map.clone();
            compactor.step(&pages, &mut map, 32).await.unwrap();
        }
        assert!(names_pages_of(&pages, &map, &theirs).await.unwrap(), "pages of holes stay");
        let before = said(&pages, &map).await;
        let mut rounds = 0;
        while let Some(without) = without_pages_of(&pages, &map, &theirs).await.unwrap() {
            map = without;
            rounds += 1;
            assert!(rounds < 10, "it makes no progress");
        }
        assert!(rounds > 1, "a few pages at a time");
        assert!(!names_pages_of(&pages, &map, &theirs).await.unwrap());
        assert_eq!(said(&pages, &map).await, before);
    }

    #[tokio::test]
    async fn nor_in_the_end_does_one_that_is_written_all_over_meanwhile() {
        let source = MemorySource::with_small_pages();
        let pages: Arc<dyn PageSource> = source.clone();
        let mut map = copied(&source, &pages).await;
        let theirs = BTreeSet::from([VOLUME]);
        let mut compactor = Compactor::default();
        let mut model = said(&pages, &map).await;
        let mut rounds = 0;
        while names_pages_of(&pages, &map, &theirs).await.unwrap() {
            rounds += 1;
            assert!(rounds < 20, "it makes no progress");
            let written: Vec<Extent> = (0..100)
                .map(|n| extent((n * 199 + rounds * 7) % BLOCKS, 1, BLOCKS * rounds + n, 0, 0))
                .collect();
            written.iter().for_each(|extent| model.write(extent));
            map = stored(&pages, Some(&map), written).await;
            compactor.request_full_merge();
            compactor.step(&pages, &mut map, 32).await.unwrap();
            map = without_pages_of(&pages, &map, &theirs).await.unwrap().unwrap_or(map);
        }
        assert!(map.runs.len() > 1, "merging has not ended");
        assert_eq!(said(&pages, &map).await, model);
    }
}
