//! Naming data that was moved in maps that never change otherwise: those of snapshots.
//!
//! # Policy
//! A *patch* of a run says, for each block that the run finds in a place that data was moved from, where the data lies
//! now. It stands right above its run, so that newer runs hide it where they hid the run. What it says depends on the
//! run and the moves alone: all maps that share the run share the patch, and the cost follows what was moved, neither
//! the number of snapshots nor the size of their maps. Neighbouring runs are merged where the newer one has at least
//! half as many entries as the older, so that a map keeps few runs however often it is restated; maps that share
//! neighbours share what they are merged into.
//!
//! # Guarantees
//! The restated map reads the same bytes: it names copies of the same data. What is not moved, or hidden in every map,
//! is named as before.
//!
//! # Crash behaviour
//! New pages that no map names are garbage of the session.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::compact::merge_neighbours;
use super::cursor::{Reading, RunCursor};
use super::run::{RunWriter, run_of};
use super::{Extent, MapError, MapPart, PageSource, RunRef, StoredMap};
use crate::log::Move;

/// A run by the pages or indexes that it consists of.
type RunName = Vec<MapPart>;

/// Restates maps after the same moves.
#[derive(Debug)]
pub struct Restater {
    source: Arc<dyn PageSource>,
    /// By the blocks; several may concern a block, of which maps name different versions.
    moves: Vec<Move>,
    patches: BTreeMap<RunName, Option<RunRef>>,
    /// What neighbours (the newer, the older, whether nothing is older) became.
    merged: BTreeMap<(RunName, RunName, bool), Option<RunRef>>,
}

impl Restater {
    /// For these moves.
    pub fn new(source: Arc<dyn PageSource>, mut moves: Vec<Move>) -> Self {
        moves.sort_by_key(|moved| moved.to.lba);
        Self { source, moves, patches: BTreeMap::new(), merged: BTreeMap::new() }
    }

    /// The map with what was moved named at its new place; none if it names nothing of it.
    pub async fn restate(&mut self, stored: &StoredMap) -> Result<Option<StoredMap>, MapError> {
        let mut runs = Vec::new();
        let mut patched = false;
        for run in &stored.runs {
            let patch = self.patch(run).await?;
            patched |= patch.is_some();
            runs.extend(patch);
            runs.push(run.clone());
        }
        if !patched {
            return Ok(None);
        }
        let runs = self.fold(runs).await?;
        Ok(Some(StoredMap { runs, origins: stored.origins.clone() }))
    }

    async fn patch(&mut self, run: &RunRef) -> Result<Option<RunRef>, MapError> {
        let name = name(run);
        if let Some(known) = self.patches.get(&name) {
            return Ok(known.clone());
        }
        let patch = self.write_patch(run).await?;
        self.patches.insert(name, patch.clone());
        Ok(patch)
    }

    async fn write_patch(&self, run: &RunRef) -> Result<Option<RunRef>, MapError> {
        let reading = Reading::scan(self.source.clone());
        let mut cursor = RunCursor::new(Arc::new(run.clone()));
        let mut writer = RunWriter::new(self.source.clone());
        let mut found = Vec::new();
        for (range, moves) in Stretches(&self.moves) {
            found.clear();
            cursor.extents(&reading, range, &mut found).await?;
            for extent in &found {
                let mut places: Vec<Extent> =
                    moves.iter().filter_map(|moved| new_place(extent, moved)).collect();
                places.sort_by_key(|place| place.lba);
                for place in places {
                    writer.push(place).await?;
                }
            }
        }
        run_of(&self.source, writer.finish().await?).await
    }

    /// Merges neighbours, the oldest first, until each run has more than twice the entries of the next newer one.
    async fn fold(&mut self, runs: Vec<RunRef>) -> Result<Vec<RunRef>, MapError> {
        let mut oldest_first: Vec<RunRef> = Vec::new();
        for run in runs.into_iter().rev() {
            oldest_first.push(run);
            while let [.., older, newer] = &oldest_first[..]
                && 2 * self.entries(newer) >= self.entries(older)
            {
                let oldest = oldest_first.len() == 2;
                let key = (name(newer), name(older), oldest);
                let merged = match self.merged.get(&key) {
                    Some(known) => known.clone(),
                    None => {
                        let merged = merge_neighbours(&self.source, newer, older, oldest).await?;
                        self.merged.insert(key, merged.clone());
                        merged
                    }
                };
                oldest_first.truncate(oldest_first.len() - 2);
                oldest_first.extend(merged);
            }
        }
        oldest_first.reverse();
        Ok(oldest_first)
    }

    /// About how many entries a run has.
    fn entries(&self, run: &RunRef) -> usize {
        match run {
            RunRef::Pages(pages) => pages.iter().map(|page| page.extents as usize).sum(),
            RunRef::Indexed(_) => run.pages() * (self.source.limits().page_bytes / ENTRY_BYTES),
        }
    }
}

/// Bytes of an entry in a page.
const ENTRY_BYTES: usize = 24;

fn name(run: &RunRef) -> RunName {
    match run {
        RunRef::Pages(pages) => pages.iter().map(MapPart::from).collect(),
        RunRef::Indexed(indexes) => indexes.iter().map(MapPart::from).collect(),
    }
}

/// Where the part of `extent` lies now that `moved` is about.
fn new_place(extent: &Extent, moved: &Move) -> Option<Extent> {
    let (lba, end) = (extent.lba.max(moved.to.lba), extent.end().min(moved.to.end()));
    if lba >= end {
        return None;
    }
    let named = extent.slice(lba, end).location?;
    let source = moved.from.skip((lba - moved.to.lba) as u8);
    named.same_place(&source).then(|| moved.to.slice(lba, end))
}

/// The moves in groups whose blocks overlap, with the blocks that each group is about.
struct Stretches<'a>(&'a [Move]);

impl<'a> Iterator for Stretches<'a> {
    type Item = (Range<u64>, &'a [Move]);

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.0.first()?;
        let mut range = first.to.lba..first.to.end();
        let mut many = 1;
        while let Some(next) = self.0.get(many)
            && next.to.lba < range.end
        {
            range.end = range.end.max(next.to.end());
            many += 1;
        }
        let (group, rest) = self.0.split_at(many);
        self.0 = rest;
        Some((range, group))
    }
}
