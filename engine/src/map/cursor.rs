//! Reading layers from a place onwards: one page of each run in hand, whatever the size of the map.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Fuse, join_all, try_join_all};

use super::view::Layer;
use super::{Access, Extent, IndexRef, LoadedPage, MapError, MapPart, Memtable, PageRef, PageSource, RunRef};
use crate::ids::ObjectId;

/// How a cursor reads.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) source: Arc<dyn PageSource>,
    pub(super) access: Access,
    /// How many pages of a run are loaded at once: one for who jumps around, more for who reads on.
    pub(super) pages_at_once: usize,
}

impl Reading {
    /// For who asks for a few blocks.
    pub(super) fn lookup(source: Arc<dyn PageSource>) -> Self {
        Self { source, access: Access::Lookup, pages_at_once: 1 }
    }

    /// For who passes over the map and looks at some of it.
    pub(super) fn scan(source: Arc<dyn PageSource>) -> Self {
        Self { source, access: Access::Scan, pages_at_once: 1 }
    }

    /// For who reads all of it: eight pages at once hide the latency of a store, and a megabyte a run is little.
    pub(super) fn sequential(source: Arc<dyn PageSource>) -> Self {
        Self { source, access: Access::Scan, pages_at_once: 8 }
    }
}

/// Finds pages of a run by block.
#[derive(Debug)]
pub(super) struct PageFinder {
    run: Arc<RunRef>,
    /// The last two indexes: who reads ahead comes back.
    listed: [Option<(ObjectId, Arc<[PageRef]>)>; 2],
}

impl PageFinder {
    pub(super) fn new(run: Arc<RunRef>) -> Self {
        Self { run, listed: [None, None] }
    }

    /// The first page that ends after `lba`.
    pub(super) async fn page_from(
        &mut self,
        reading: &Reading,
        lba: u64,
    ) -> Result<Option<PageRef>, MapError> {
        let first = |pages: &[PageRef]| pages.get(pages.partition_point(|page| page.end_lba <= lba)).copied();
        if let RunRef::Pages(pages) = &*self.run {
            return Ok(first(pages));
        }
        let Some(index) = self.index_from(lba) else { return Ok(None) };
        if let Some((_, pages)) = self.listed.iter().flatten().find(|(id, _)| *id == index.id) {
            return Ok(first(pages));
        }
        let pages = reading.source.index(&index, reading.access).await?;
        let found = first(&pages);
        self.listed.swap(0, 1);
        self.listed[0] = Some((index.id, pages));
        Ok(found)
    }

    /// The first index that ends after `lba`, in a run that has indexes.
    fn index_from(&self, lba: u64) -> Option<IndexRef> {
        match &*self.run {
            RunRef::Pages(_) => None,
            RunRef::Indexed(indexes) => {
                indexes.get(indexes.partition_point(|index| index.end_lba <= lba)).copied()
            }
        }
    }
}

/// Reads a run.
#[derive(Debug)]
pub(super) struct RunCursor {
    finder: PageFinder,
    /// Pages that any of these runs has too are stepped over.
    except: Vec<PageFinder>,
    /// The last answers to "which page ends after", with the blocks that they were asked for.
    known: VecDeque<(u64, Option<PageRef>)>,
    loaded: Vec<(MapPart, Arc<LoadedPage>)>,
}

impl RunCursor {
    pub(super) fn new(run: Arc<RunRef>) -> Self {
        Self::except(run, &[])
    }

    /// Reads only the pages that none of `others` has.
    pub(super) fn except(run: Arc<RunRef>, others: &[Arc<RunRef>]) -> Self {
        let except = others.iter().cloned().map(PageFinder::new).collect();
        Self { finder: PageFinder::new(run), except, known: VecDeque::new(), loaded: Vec::new() }
    }

    /// The first page that ends after `lba`.
    pub(super) async fn page_from(
        &mut self,
        reading: &Reading,
        lba: u64,
    ) -> Result<Option<PageRef>, MapError> {
        let answers = |(asked, page): &&(u64, Option<PageRef>)| {
            *asked <= lba && page.is_none_or(|page| lba < page.end_lba)
        };
        if let Some((_, page)) = self.known.iter().find(answers) {
            return Ok(*page);
        }
        let page = self.find(reading, lba).await?;
        if self.known.len() > 2 * reading.pages_at_once {
            self.known.pop_front();
        }
        self.known.push_back((lba, page));
        Ok(page)
    }

    async fn find(&mut self, reading: &Reading, mut lba: u64) -> Result<Option<PageRef>, MapError> {
        'next: loop {
            if let Some(index) = self.finder.index_from(lba) {
                let same = |other: &PageFinder| {
                    other.index_from(index.first_lba).is_some_and(|theirs| theirs.id == index.id)
                };
                if self.except.iter().any(same) {
                    lba = index.end_lba;
                    continue;
                }
            }
            let Some(page) = self.finder.page_from(reading, lba).await? else { return Ok(None) };
            for other in &mut self.except {
                let theirs = other.page_from(reading, page.first_lba).await?;
                if theirs.is_some_and(|theirs| MapPart::from(&theirs) == MapPart::from(&page)) {
                    lba = page.end_lba;
                    continue 'next;
                }
            }
            return Ok(Some(page));
        }
    }

    /// Loads a page, and those after it that the reading asks for at once.
    pub(super) async fn load(
        &mut self,
        reading: &Reading,
        page: PageRef,
    ) -> Result<Arc<LoadedPage>, MapError> {
        if let Some((_, loaded)) = self.loaded.iter().find(|(part, _)| *part == (&page).into()) {
            return Ok(loaded.clone());
        }
        let mut pages = vec![page];
        while pages.len() < reading.pages_at_once {
            let end = pages[pages.len() - 1].end_lba;
            match self.page_from(reading, end).await? {
                Some(next) => pages.push(next),
                None => break,
            }
        }
        let loads = pages.iter().map(|page| reading.source.page(page, reading.access));
        let loaded = try_join_all(loads).await?;
        self.loaded = pages.iter().map(MapPart::from).zip(loaded).collect();
        Ok(self.loaded[0].1.clone())
    }

    /// Appends the extents that overlap `range`, cut to it.
    pub(super) async fn extents(
        &mut self,
        reading: &Reading,
        range: Range<u64>,
        found: &mut Vec<Extent>,
    ) -> Result<(), MapError> {
        let mut lba = range.start;
        while let Some(page) = self.page_from(reading, lba).await?
            && page.first_lba < range.end
        {
            found.extend(self.load(reading, page).await?.extents(lba..range.end));
            if page.end_lba >= range.end {
                break;
            }
            lba = page.end_lba;
        }
        Ok(())
    }

    /// Loads the page where `range` begins, if it has one.
    async fn warm(&mut self, reading: &Reading, range: Range<u64>) -> Result<(), MapError> {
        if let Some(page) = self.page_from(reading, range.start).await?
            && page.first_lba < range.end
        {
            self.load(reading, page).await?;
        }
        Ok(())
    }
}

/// Reads a layer.
#[derive(Debug)]
pub(super) enum LayerCursor {
    Memory(Arc<Memtable>),
    Run(RunCursor),
}

impl From<&Layer> for LayerCursor {
    fn from(layer: &Layer) -> Self {
        match layer {
            Layer::Memory(memtable) => Self::Memory(memtable.clone()),
            Layer::Run(run) => Self::Run(RunCursor::new(run.clone())),
        }
    }
}

/// Reads layers, newest first, as one map. Jumping around is allowed; reading on is cheap.
#[derive(Debug)]
pub(super) struct MapCursor {
    reading: Reading,
    layers: Vec<LayerCursor>,
    /// Where the page ended that the last window saw of each layer.
    seen: Vec<u64>,
    passed: usize,
}

/// A window sees no more entries of a memtable than of a page.
const STRETCH: usize = 4096;

impl MapCursor {
    pub(super) fn new(reading: Reading, layers: Vec<LayerCursor>) -> Self {
        Self { reading, seen: vec![0; layers.len()], layers, passed: 0 }
    }

    /// The next range at or after `lba` about which the layers may say something, and in which no layer needs more
    /// than one page: a walk over all windows holds little, and sees everything.
    pub(super) async fn window(&mut self, lba: u64) -> Result<Option<Range<u64>>, MapError> {
        let mut window: Option<Range<u64>> = None;
        for (layer, seen) in self.layers.iter_mut().zip(&mut self.seen) {
            let stretch = match layer {
                LayerCursor::Memory(memtable) => memtable.stretch(lba, STRETCH),
                LayerCursor::Run(run) => {
                    run.page_from(&self.reading, lba).await?.map(|page| page.first_lba..page.end_lba)
                }
            };
            let Some(stretch) = stretch else { continue };
            if *seen != stretch.end {
                *seen = stretch.end;
                self.passed += 1;
            }
            window = Some(match window {
                None => stretch,
                Some(w) => w.start.min(stretch.start)..w.end.min(stretch.end),
            });
        }
        Ok(window.map(|w| w.start.max(lba)..w.end))
    }

    /// How many pages windows have come to.
    pub(super) fn pages_passed(&self) -> usize {
        self.passed
    }

    /// What the layers say about `range`, in order; where no layer says anything there is no extent.
    pub(super) async fn resolve(&mut self, range: Range<u64>) -> Result<Vec<Extent>, MapError> {
        self.resolve_below(Vec::new(), range).await
    }

    /// The same, below what a newer layer said (`found`, sorted, within `range`).
    pub(super) async fn resolve_below(
        &mut self,
        mut found: Vec<Extent>,
        range: Range<u64>,
    ) -> Result<Vec<Extent>, MapError> {
        let mut gaps = Vec::new();
        push_gaps(range, &found, &mut gaps);
        let mut ahead: Fuse<BoxFuture<'static, ()>> = Fuse::terminated();
        let mut warm = self.reading.access == Access::Scan;
        for at in 0..self.layers.len() {
            let (Some(first), Some(last)) = (gaps.first(), gaps.last()) else { break };
            if !warm && matches!(self.layers[at], LayerCursor::Run(_)) {
                ahead = self.load_below(at, first.start..last.end).fuse();
                warm = true;
            }
            let mut deeper = Vec::new();
            for gap in gaps {
                let before = found.len();
                match &mut self.layers[at] {
                    LayerCursor::Memory(memtable) => found.extend(memtable.extents(gap.clone())),
                    LayerCursor::Run(run) => {
                        let mut extents = pin!(run.extents(&self.reading, gap.clone(), &mut found));
                        loop {
                            tokio::select! {
                                biased;
                                outcome = &mut extents => break outcome?,
                                () = &mut ahead => {}
                            }
                        }
                    }
                }
                push_gaps(gap, &found[before..], &mut deeper);
            }
            gaps = deeper;
        }
        found.sort_unstable_by_key(|extent| extent.lba);
        Ok(found)
    }

    /// Loads what the runs below the layer `at` have where `range` begins, or a cold lookup would wait for each in turn.
    /// Nobody has to wait for it, and a failure is none yet: newer layers may hide a page that cannot be had.
    fn load_below(&self, at: usize, range: Range<u64>) -> BoxFuture<'static, ()> {
        let runs = self.layers[at + 1..].iter().filter_map(|layer| match layer {
            LayerCursor::Memory(_) => None,
            LayerCursor::Run(run) => Some(RunCursor::new(run.finder.run.clone())),
        });
        let loads = runs.map(|mut run| {
            let (reading, range) = (self.reading.clone(), range.clone());
            async move { run.warm(&reading, range).await.unwrap_or_default() }
        });
        join_all(loads.collect::<Vec<_>>()).map(drop).boxed()
    }
}

/// Appends the parts of `range` that `found` (sorted, within it) says nothing about.
fn push_gaps(range: Range<u64>, found: &[Extent], gaps: &mut Vec<Range<u64>>) {
    let mut lba = range.start;
    for extent in found {
        if extent.lba > lba {
            gaps.push(lba..extent.lba);
        }
        lba = extent.end();
    }
    if lba < range.end {
        gaps.push(lba..range.end);
    }
}

/// `found` (sorted, within `range`) with holes where it says nothing; holes that touch become one.
pub(super) fn with_holes(range: Range<u64>, found: Vec<Extent>) -> Vec<Extent> {
    let mut filled: Vec<Extent> = Vec::with_capacity(found.len());
    let mut push = |extent: Extent| match filled.last_mut() {
        Some(last) if last.joins(&extent) => last.blocks += extent.blocks,
        _ => filled.push(extent),
    };
    let mut lba = range.start;
    let end = Extent { lba: range.end, blocks: 0, location: None };
    for extent in found.into_iter().chain([end]) {
        while lba < extent.lba {
            let blocks = (extent.lba - lba).min(u64::from(u32::MAX)) as u32;
            push(Extent { lba, blocks, location: None });
            lba += u64::from(blocks);
        }
        if extent.blocks > 0 {
            push(extent);
        }
        lba = extent.end();
    }
    filled
}
