//! Keeping the runs of a map few: neighbours are merged, a bounded amount at a time.
//!
//! # Policy
//! A run must have at least twice as many entries as all newer runs together; where one has fewer, the newer runs are
//! merged into it. So there are about log₃(pages) runs and a few smaller than a page, and each entry is rewritten a few
//! times for each of them. What a snapshot shares with the next one is thus most of its map, however little was written
//! in between.
//! What fits the budget is merged at once. What does not is merged range by range over many steps: after each, the
//! target has what the newer runs said about the range, and they say nothing about it any more. A map over a huge
//! volume is thus never rewritten in one go, and small runs do not pile up while a large merge is under way.
//!
//! Pages of the target about which the newer runs say nothing are kept as they are, and pages that they hide are
//! dropped without being read. The oldest run needs no holes.
//!
//! Where a page cannot be read, the runs of that merge and all older ones are let be for a while, and only newer ones
//! are merged: so runs do not pile up over a page that is damaged or away.
//!
//! # Guarantees
//! A map says the same after a step, also after one that failed. Runs never change; what no map needs any more the
//! collector finds out.
//!
//! # Crash behaviour
//! New pages that no root names are garbage of this session. How far a merge came is remembered by [`Compactor`]
//! alone; after a restart it begins again at the first block, where little is left to do.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::cursor::{LayerCursor, MapCursor, Reading, RunCursor};
use super::run::{RunWriter, splice};
use super::{MapError, MapPart, PageSource, RunRef, StoredMap};

/// Merges runs; remembers how far unfinished merges came.
#[derive(Debug, Clone, Default)]
pub struct Compactor {
    /// By how many runs are older than the target: where its merge goes on. Newer runs come and go, older ones stay.
    unfinished: BTreeMap<usize, u64>,
    /// So many of the oldest runs are let be, since a merge into the newest of them failed.
    failed: usize,
}

/// A run has so many times as many entries as all newer ones together.
const RATIO: usize = 2;

/// A run of fewer entries counts as if it had so many: a sixteenth of a page. Very small runs are not worth a layer.
const ENTRIES_MIN: usize = 160;

impl Compactor {
    /// How many pages to rewrite per checkpoint that wrote `pages`: more than an entry is ever rewritten on its way
    /// to the oldest run, so that merging keeps up.
    pub fn budget(pages: usize) -> usize {
        32 + 16 * pages
    }

    /// Asks for everything to be merged into the oldest run, over the next steps: when a walk shows that much of it
    /// is hidden by newer runs.
    pub fn request_full_merge(&mut self) {
        self.unfinished.entry(0).or_insert(0);
    }

    /// Tries again to merge what could not be read.
    pub fn retry(&mut self) {
        self.failed = 0;
    }

    /// Merges what is worth it in `stored`, reading and writing about `budget_pages` pages at most. After an error further
    /// steps keep to the runs newer than those that it was about, until [`Self::retry`].
    pub async fn step(
        &mut self,
        source: &Arc<dyn PageSource>,
        stored: &mut StoredMap,
        budget_pages: usize,
    ) -> Result<(), MapError> {
        let runs = &mut stored.runs;
        let mut left = budget_pages;
        while left > 0
            && let Some(target) = self.next_target(runs, left)
        {
            let older = runs.len() - 1 - target;
            let merge = Merge {
                reading: Reading::sequential(source.clone()),
                group: &runs[..=target],
                from: self.unfinished.get(&older).copied().unwrap_or(0),
                oldest: older == 0,
                budget: left,
            };
            let merged = merge.run().await.inspect_err(|_| self.failed = older + 1)?;
            left = left.saturating_sub(merged.pages.max(1));
            // What stands above the target is numbered anew if a run vanished.
            let grew_shorter = merged.newer.len() < target || merged.target.is_none();
            self.unfinished.retain(|at, _| *at < older || *at > older && !grew_shorter);
            if let (Some(reached), Some(_)) = (merged.reached, &merged.target) {
                self.unfinished.insert(older, reached);
            }
            runs.splice(..=target, merged.newer.into_iter().chain(merged.target));
        }
        Ok(())
    }

    /// Which run to merge all newer ones into. The largest group that fits the budget and has reason to be merged; if
    /// none does, the newest run with a reason.
    fn next_target(&self, runs: &[RunRef], budget: usize) -> Option<usize> {
        let (mut newer, mut newer_entries) = (0, 0);
        let mut newest = None;
        let mut fits = None;
        for (at, run) in runs.iter().enumerate().take(runs.len().saturating_sub(self.failed)) {
            let entries = run.entries().max(ENTRIES_MIN);
            let is_small = entries < RATIO * newer_entries;
            let wanted = at > 0 && (is_small || self.unfinished.contains_key(&(runs.len() - 1 - at)));
            newer += run.pages();
            newer_entries += entries;
            if wanted {
                newest = newest.or(Some(at));
                if newer <= budget {
                    fits = Some(at);
                }
            } else if fits.is_some() {
                break;
            }
        }
        fits.or(newest)
    }
}

/// What two neighbouring runs say together; none if that is nothing. `oldest`: nothing is older than they, so that
/// holes hide nothing.
pub(super) async fn merge_neighbours(
    source: &Arc<dyn PageSource>,
    newer: &RunRef,
    older: &RunRef,
    oldest: bool,
) -> Result<Option<RunRef>, MapError> {
    let group = [newer.clone(), older.clone()];
    let reading = Reading::sequential(source.clone());
    let merge = Merge { reading, group: &group, from: 0, oldest, budget: usize::MAX };
    // Without a budget nothing is left of the newer one.
    Ok(merge.run().await?.target)
}

/// Merging the newer runs of a group into the oldest, from a block on, as far as the budget goes.
struct Merge<'a> {
    reading: Reading,
    group: &'a [RunRef],
    from: u64,
    /// Nothing is older than the group: holes hide nothing.
    oldest: bool,
    budget: usize,
}

struct Merged {
    /// What is left of the newer runs.
    newer: Vec<RunRef>,
    target: Option<RunRef>,
    /// Where to go on; none if all that the newer runs said from `from` on is merged.
    reached: Option<u64>,
    /// Pages read, about.
    pages: usize,
}

impl Merge<'_> {
    async fn run(self) -> Result<Merged, MapError> {
        let Some((target, newer)) = self.group.split_last() else {
            return Ok(Merged { newer: Vec::new(), target: None, reached: None, pages: 0 });
        };
        let layers = newer.iter().map(|run| LayerCursor::Run(RunCursor::new(Arc::new(run.clone()))));
        let mut over = MapCursor::new(self.reading.clone(), layers.collect());
        let mut lba = self.from;
        let Some(first) = over.window(lba).await? else {
            let newer = newer.to_vec();
            return Ok(Merged { newer, target: Some(target.clone()), reached: None, pages: 0 });
        };
        let mut under = Target::new(&self, target, first.start).await?;
        let begin = under.at;
        let mut writer = RunWriter::new(self.reading.source.clone());
        let mut reached = None;
        'merge: while let Some(window) = over.window(lba).await? {
            lba = window.end;
            for extent in over.resolve(window).await? {
                let left = self.budget.saturating_sub(over.pages_passed());
                under.copy_until(extent.lba, &mut writer, left).await?;
                let mut end = extent.lba.min(under.at);
                if under.at == extent.lba {
                    under.skip_until(extent.end(), left).await?;
                    end = under.at;
                    if extent.location.is_some() || !self.oldest {
                        writer.push(extent.slice(extent.lba, end)).await?;
                    }
                }
                if over.pages_passed() + under.pages() >= self.budget {
                    reached = Some(end);
                    break 'merge;
                }
            }
        }
        under.finish_page(&mut writer).await?;
        let pages = over.pages_passed() + under.pages();
        let target = splice(&self.reading, target, begin..under.at, writer.finish().await?).await?;
        let merged = first.start..reached.unwrap_or(u64::MAX);
        let mut rest = Vec::new();
        for run in newer {
            rest.extend(self.without(run, merged.clone()).await?);
        }
        Ok(Merged { newer: rest, target, reached, pages })
    }

    /// What `run` says outside of `range`.
    async fn without(&self, run: &RunRef, range: Range<u64>) -> Result<Option<RunRef>, MapError> {
        let reading = Reading { pages_at_once: 1, ..self.reading.clone() };
        let mut cursor = RunCursor::new(Arc::new(run.clone()));
        let mut writer = RunWriter::new(reading.source.clone());
        if let Some(page) = cursor.page_from(&reading, range.start).await?
            && page.first_lba < range.start
        {
            let loaded = cursor.load(&reading, page).await?;
            for extent in loaded.extents(page.first_lba..range.start) {
                writer.push(extent).await?;
            }
            writer.flush().await?;
        }
        if let Some(page) = cursor.page_from(&reading, range.end).await?
            && page.first_lba < range.end
        {
            let loaded = cursor.load(&reading, page).await?;
            for extent in loaded.extents(range.end..page.end_lba) {
                writer.push(extent).await?;
            }
        }
        splice(&reading, run, range, writer.finish().await?).await
    }
}

/// The target of a merge, passed from page to page.
struct Target {
    reading: Reading,
    run: RunCursor,
    oldest: bool,
    /// Up to here it was copied, or is hidden.
    at: u64,
    last: Option<MapPart>,
    loaded: usize,
    passed: usize,
}

/// Pages that were passed without loading them, or written as they were, count as one each so many.
const CHEAP: usize = 32;

impl Target {
    /// Begins with the page that has `lba`, or there.
    async fn new(merge: &Merge<'_>, run: &RunRef, lba: u64) -> Result<Self, MapError> {
        let reading = Reading { pages_at_once: 1, ..merge.reading.clone() };
        let mut run = RunCursor::new(Arc::new(run.clone()));
        let page = run.page_from(&reading, lba).await?;
        let at = page.map_or(lba, |page| page.first_lba.min(lba));
        Ok(Self { reading, run, oldest: merge.oldest, at, last: None, loaded: 0, passed: 0 })
    }

    fn pages(&self) -> usize {
        self.loaded + self.passed / CHEAP
    }

    /// Copies what lies before `lba`; stops before at the end of a page if `budget` pages were read.
    async fn copy_until(&mut self, lba: u64, writer: &mut RunWriter, budget: usize) -> Result<(), MapError> {
        while self.at < lba {
            let page = match self.run.page_from(&self.reading, self.at).await? {
                Some(page) if page.first_lba < lba => page,
                _ => {
                    self.at = lba;
                    break;
                }
            };
            let whole = self.at <= page.first_lba && page.end_lba <= lba;
            if whole && writer.keep(page).await? {
                self.passed += 1;
            } else {
                let part = MapPart::from(&page);
                if self.last.replace(part) != Some(part) {
                    self.loaded += 1;
                }
                let loaded = self.run.load(&self.reading, page).await?;
                for extent in loaded.extents(self.at.max(page.first_lba)..lba.min(page.end_lba)) {
                    if extent.location.is_some() || !self.oldest {
                        writer.push(extent).await?;
                    }
                }
            }
            self.at = lba.min(page.end_lba);
            if self.pages() >= budget {
                break;
            }
        }
        Ok(())
    }

    /// Leaves out what lies before `lba`; stops before at the end of a page if `budget` pages were read.
    async fn skip_until(&mut self, lba: u64, budget: usize) -> Result<(), MapError> {
        while self.at < lba {
            let page = self.run.page_from(&self.reading, self.at).await?;
            if page.is_some_and(|page| page.end_lba <= lba) {
                self.passed += 1;
            }
            self.at = page.map_or(lba, |page| page.end_lba.min(lba));
            if self.pages() >= budget {
                break;
            }
        }
        Ok(())
    }

    /// Copies the rest of a page that was begun.
    async fn finish_page(&mut self, writer: &mut RunWriter) -> Result<(), MapError> {
        match self.run.page_from(&self.reading, self.at).await? {
            Some(page) if page.first_lba < self.at => self.copy_until(page.end_lba, writer, usize::MAX).await,
            _ => Ok(()),
        }
    }
}
