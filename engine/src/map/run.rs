//! Writing runs, and putting new pages into the place of old ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};

use super::cursor::Reading;
use super::page::PAGE_SPAN_MAX;
use super::{Access, Extent, IndexRef, MapError, PageLimits, PageRef, PageSource, RunRef};
use crate::codec::{self, EncodedPage};
use crate::ids::{ObjectId, VolumeId};

/// A page that holds less than this part of a full one is worth rewriting when its neighbours are rewritten; an index
/// too.
const SMALL_PART: usize = 8;

/// Puts under way at once: two megabytes of memory each. The same for indexes, of which there is one for each sixteen
/// packs, so that more at once would save little.
const PUTS_AT_ONCE: usize = 2;

/// What the extents of a page will take when stored: 24 bytes each, and the names of segments and volumes once.
#[derive(Debug, Default)]
struct Fill {
    segments: BTreeSet<ObjectId>,
    volumes: BTreeSet<VolumeId>,
    bytes: usize,
}

impl Fill {
    const EXTENT_BYTES: usize = 24;
    const SEGMENT_BYTES: usize = 32;
    const VOLUME_BYTES: usize = 16;

    fn add(&mut self, extent: &Extent) {
        self.bytes += Self::EXTENT_BYTES;
        if let Some(location) = &extent.location {
            if self.segments.insert(location.segment.id) {
                self.bytes += Self::SEGMENT_BYTES;
            }
            if self.volumes.insert(location.segment.volume) {
                self.bytes += Self::VOLUME_BYTES;
            }
        }
    }

    /// Whether one more extent might be too much.
    fn is_full(&self, page_bytes: usize) -> bool {
        self.bytes + Self::EXTENT_BYTES + Self::SEGMENT_BYTES + Self::VOLUME_BYTES > page_bytes
    }
}

/// Cuts sorted extents into pages and stores those that come one after the other together.
#[derive(Debug)]
pub(super) struct RunWriter {
    source: Arc<dyn PageSource>,
    limits: PageLimits,
    /// A full page, held back so that the last two can share what they hold.
    full: Option<VecDeque<Extent>>,
    open: VecDeque<Extent>,
    fill: Fill,
    /// Pages to be put together.
    pack: Vec<EncodedPage>,
    puts: FuturesUnordered<BoxFuture<'static, Result<Vec<PageRef>, MapError>>>,
    /// Those that are stored, in any order.
    pages: Vec<PageRef>,
}

impl RunWriter {
    pub(super) fn new(source: Arc<dyn PageSource>) -> Self {
        Self {
            limits: source.limits(),
            source,
            full: None,
            open: VecDeque::new(),
            fill: Fill::default(),
            pack: Vec::new(),
            puts: FuturesUnordered::new(),
            pages: Vec::new(),
        }
    }

    /// Adds an extent after all others.
    pub(super) async fn push(&mut self, extent: Extent) -> Result<(), MapError> {
        if let Some(last) = self.open.back_mut()
            && last.joins(&extent)
            && last.end() + u64::from(extent.blocks) - self.open[0].lba <= PAGE_SPAN_MAX
        {
            if let Some(last) = self.open.back_mut() {
                last.blocks += extent.blocks;
            }
            return Ok(());
        }
        // Pages that share what they hold must not span too much together either.
        let first = self.full.as_ref().and_then(|full| full.front()).or(self.open.front());
        if first.is_some_and(|first| extent.end() - first.lba > PAGE_SPAN_MAX) {
            self.flush().await?;
        }
        self.fill.add(&extent);
        self.open.push_back(extent);
        if self.fill.is_full(self.limits.page_bytes) {
            self.fill = Fill::default();
            let open = std::mem::take(&mut self.open);
            if let Some(full) = self.full.replace(open) {
                self.add(full).await?;
            }
        }
        Ok(())
    }

    /// Adds a page that is stored already, unless it is small and better joined with its neighbours: false.
    pub(super) async fn keep(&mut self, page: PageRef) -> Result<bool, MapError> {
        let idle = self.open.is_empty() && self.full.is_none();
        if !idle && (page.extents as usize) * Fill::EXTENT_BYTES < self.limits.page_bytes / SMALL_PART {
            return Ok(false);
        }
        self.flush().await?;
        self.pages.push(page);
        Ok(true)
    }

    /// Ends the current page.
    pub(super) async fn flush(&mut self) -> Result<(), MapError> {
        if let Some(mut full) = self.full.take() {
            while self.fill.bytes < self.limits.page_bytes / 2 && !self.open.is_empty() && full.len() > 1 {
                let Some(extent) = full.pop_back() else { break };
                self.fill.add(&extent);
                self.open.push_front(extent);
            }
            self.add(full).await?;
        }
        self.fill = Fill::default();
        let open = std::mem::take(&mut self.open);
        if open.is_empty() { Ok(()) } else { self.add(open).await }
    }

    /// Waits for the last put; the pages in order.
    pub(super) async fn finish(mut self) -> Result<Vec<PageRef>, MapError> {
        self.flush().await?;
        self.put().await?;
        while let Some(pages) = self.puts.try_next().await? {
            self.pages.extend(pages);
        }
        self.pages.sort_unstable_by_key(|page| page.first_lba);
        Ok(self.pages)
    }

    async fn add(&mut self, mut extents: VecDeque<Extent>) -> Result<(), MapError> {
        let page = EncodedPage::new(extents.make_contiguous())?;
        if self.pack.len() >= self.limits.pack_pages || !codec::fits_pack(&self.pack, &page) {
            self.put().await?;
        }
        self.pack.push(page);
        Ok(())
    }

    async fn put(&mut self) -> Result<(), MapError> {
        let pages = std::mem::take(&mut self.pack);
        if !pages.is_empty() {
            let source = self.source.clone();
            self.puts.push(Box::pin(async move { source.put_pages(pages).await }));
        }
        if self.puts.len() >= PUTS_AT_ONCE
            && let Some(pages) = self.puts.try_next().await?
        {
            self.pages.extend(pages);
        }
        Ok(())
    }
}

/// The run of these pages; none without pages.
pub(super) async fn run_of(
    source: &Arc<dyn PageSource>,
    pages: Vec<PageRef>,
) -> Result<Option<RunRef>, MapError> {
    if pages.len() > source.limits().inline_pages {
        return Ok(Some(RunRef::Indexed(put_indexes(source, &pages).await?)));
    }
    Ok((!pages.is_empty()).then_some(RunRef::Pages(pages)))
}

/// Stores indexes over `pages`, about equally long.
async fn put_indexes(source: &Arc<dyn PageSource>, pages: &[PageRef]) -> Result<Vec<IndexRef>, MapError> {
    let indexes = pages.len().div_ceil(source.limits().index_pages).max(1);
    let each = pages.len().div_ceil(indexes).max(1);
    let puts: Vec<_> = pages
        .chunks(each)
        .map(|pages| {
            let (source, pages) = (source.clone(), pages.to_vec());
            async move { source.put_index(&pages).await }
        })
        .collect();
    futures::stream::iter(puts).buffered(PUTS_AT_ONCE).try_collect().await
}

/// The pages of `run` that overlap `range` give way to `pages`, which lie within what they and the range span. None if
/// nothing is left.
pub(super) async fn splice(
    reading: &Reading,
    run: &RunRef,
    range: Range<u64>,
    pages: Vec<PageRef>,
) -> Result<Option<RunRef>, MapError> {
    let indexes = match run {
        RunRef::Pages(old) => {
            let pages = without_stragglers(&reading.source, spliced(old, range, pages)).await?;
            return run_of(&reading.source, pages).await;
        }
        RunRef::Indexed(indexes) => indexes,
    };
    let mut from = indexes.partition_point(|index| index.end_lba <= range.start);
    let mut to = indexes.partition_point(|index| index.first_lba < range.end).max(from);
    if from == to {
        if pages.is_empty() {
            return Ok(Some(run.clone()));
        }
        // Pages for a gap between indexes: one of the neighbours lists them.
        if from > 0 { from -= 1 } else { to += 1 }
    }
    let mut old = Vec::new();
    for index in &indexes[from..to] {
        old.extend_from_slice(&reading.source.index(index, reading.access).await?);
    }
    let mut listed = without_stragglers(&reading.source, spliced(&old, range, pages)).await?;
    let others =
        |from: usize, to: usize| indexes[..from].iter().chain(&indexes[to..]).map(|i| i.pages as usize).sum();
    let mut rest: usize = others(from, to);
    let limits = reading.source.limits();
    let small = |listed: usize, rest: usize| {
        listed < limits.index_pages / SMALL_PART || listed + rest <= limits.inline_pages
    };
    while rest > 0 && small(listed.len(), rest) {
        if to < indexes.len() {
            listed.extend_from_slice(&reading.source.index(&indexes[to], reading.access).await?);
            to += 1;
        } else {
            from -= 1;
            let before = reading.source.index(&indexes[from], reading.access).await?;
            listed.splice(..0, before.iter().copied());
        }
        rest = others(from, to);
    }
    if rest == 0 {
        return run_of(&reading.source, listed).await;
    }
    let mut new = indexes[..from].to_vec();
    new.extend(put_indexes(&reading.source, &listed).await?);
    new.extend_from_slice(&indexes[to..]);
    Ok(Some(RunRef::Indexed(new)))
}

/// `old` with `new` in the place of what overlaps `range`.
fn spliced(old: &[PageRef], range: Range<u64>, new: Vec<PageRef>) -> Vec<PageRef> {
    let from = old.partition_point(|page| page.end_lba <= range.start);
    let to = old.partition_point(|page| page.first_lba < range.end).max(from);
    [&old[..from], &new, &old[to..]].concat()
}

/// `pages` of a run, where those are put anew whose packs have fewer than half of their pages here: one page that is left
/// would keep all of its pack in the store. So a page that goes costs about the copy of one other, at most.
async fn without_stragglers(
    source: &Arc<dyn PageSource>,
    pages: Vec<PageRef>,
) -> Result<Vec<PageRef>, MapError> {
    let mut left: BTreeMap<ObjectId, usize> = BTreeMap::new();
    pages.iter().for_each(|page| *left.entry(page.id).or_default() += 1);
    let straggles = |page: &PageRef| page.place.is_some_and(|p| 2 * left[&page.id] < usize::from(p.pages));
    if !pages.iter().any(straggles) {
        return Ok(pages);
    }
    let mut writer = RunWriter::new(source.clone());
    for page in pages {
        if straggles(&page) || !writer.keep(page).await? {
            let loaded = source.page(&page, Access::Scan).await?;
            for extent in loaded.extents(page.first_lba..page.end_lba) {
                writer.push(extent).await?;
            }
        }
    }
    writer.finish().await
}

/// Stores `extents` (sorted, not overlapping) as pages, for [`crate::log::Op::WritePages`].
pub async fn write_pages(
    source: &Arc<dyn PageSource>,
    extents: impl IntoIterator<Item = Extent>,
) -> Result<Vec<PageRef>, MapError> {
    let mut writer = RunWriter::new(Arc::clone(source));
    for extent in extents {
        writer.push(extent).await?;
    }
    writer.finish().await
}
