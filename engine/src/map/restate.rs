//! Naming data that was moved in maps that never change otherwise: those of snapshots.
//!
//! # Policy
//! A *patch* of a run says, for each block that the run finds in a place that data was moved from, where the data lies
//! now. It stands right above its run, so that newer runs hide it where they hid the run. What it says depends on the
//! run and the moves alone: all maps that share the run share the patch, and the cost follows what was moved, neither
//! the number of snapshots nor the size of their maps. A map keeps few runs however often it is restated: of more than
//! [`RUNS_MAX`] those neighbours are merged that have the fewest entries for each map that shares them: mostly patches of
//! what many snapshots have. Maps that share neighbours share what they are merged into.
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
use super::own::own_pages;
use super::run::{RunWriter, run_of};
use super::{Extent, MapError, MapPart, PageSource, RunRef, StoredMap};
use crate::ids::{CHUNK_BLOCKS_MAX, VolumeId};
use crate::log::Move;

/// Runs of a restated map at most.
const RUNS_MAX: usize = 16;

/// A run by the pages or indexes that it consists of.
type RunName = Vec<MapPart>;

/// Restates maps after the same moves.
#[derive(Debug)]
pub struct Restater {
    source: Arc<dyn PageSource>,
    /// The volume whose data was moved.
    volume: VolumeId,
    /// By the blocks; several may concern a block, of which maps name different versions.
    moves: Vec<Move>,
    patches: BTreeMap<RunName, Option<RunRef>>,
    /// How many maps share a run.
    sharers: BTreeMap<RunName, usize>,
    /// What neighbours (the newer, the older, whether nothing is older) became.
    merged: BTreeMap<(RunName, RunName, bool), Option<RunRef>>,
}

impl Restater {
    /// For these moves of data of `volume`, and `maps` that are going to be restated.
    pub fn new<'a>(
        source: Arc<dyn PageSource>,
        volume: VolumeId,
        mut moves: Vec<Move>,
        maps: impl IntoIterator<Item = &'a StoredMap>,
    ) -> Self {
        moves.sort_by_key(|moved| moved.to.lba);
        let mut sharers = BTreeMap::new();
        for run in maps.into_iter().flat_map(|map| &map.runs) {
            *sharers.entry(name(run)).or_default() += 1;
        }
        Self { source, volume, moves, patches: BTreeMap::new(), sharers, merged: BTreeMap::new() }
    }

    /// The moves, in order of the blocks.
    pub fn moves(&self) -> &[Move] {
        &self.moves
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
        let key = name(run);
        if let Some(known) = self.patches.get(&key) {
            return Ok(known.clone());
        }
        let patch = self.write_patch(run).await?;
        if let Some(patch) = &patch {
            self.sharers.insert(name(patch), self.sharers(run));
        }
        self.patches.insert(key, patch.clone());
        Ok(patch)
    }

    async fn write_patch(&self, run: &RunRef) -> Result<Option<RunRef>, MapError> {
        // Others name nothing that was moved.
        let reading = Reading::scan(own_pages(&self.source, self.volume));
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

    /// Merges neighbours until the runs are few.
    async fn fold(&mut self, mut runs: Vec<RunRef>) -> Result<Vec<RunRef>, MapError> {
        while runs.len() > RUNS_MAX {
            let cost = |newer: &usize| self.merge_cost(&runs[*newer], &runs[newer + 1]);
            let Some(newer) = (0..runs.len() - 1).rev().min_by_key(cost) else { break };
            let merged = self.merge(&runs[newer], &runs[newer + 1], newer + 2 == runs.len()).await?;
            runs.splice(newer..newer + 2, merged);
        }
        Ok(runs)
    }

    /// Entries to write for each map that shares both, in thousandths.
    fn merge_cost(&self, newer: &RunRef, older: &RunRef) -> usize {
        (newer.entries() + older.entries()) * 1000 / self.sharers(newer).min(self.sharers(older))
    }

    /// At least the map in hand.
    fn sharers(&self, run: &RunRef) -> usize {
        self.sharers.get(&name(run)).copied().unwrap_or(1)
    }

    async fn merge(
        &mut self,
        newer: &RunRef,
        older: &RunRef,
        oldest: bool,
    ) -> Result<Option<RunRef>, MapError> {
        let key = (name(newer), name(older), oldest);
        if let Some(known) = self.merged.get(&key) {
            return Ok(known.clone());
        }
        let merged = merge_neighbours(&self.source, newer, older, oldest).await?;
        if let Some(merged) = &merged {
            let sharers = self.sharers(newer).min(self.sharers(older));
            self.sharers.insert(name(merged), sharers);
        }
        self.merged.insert(key, merged.clone());
        Ok(merged)
    }
}

fn name(run: &RunRef) -> RunName {
    match run {
        RunRef::Pages(pages) => pages.iter().map(MapPart::from).collect(),
        RunRef::Indexed(indexes) => indexes.iter().map(MapPart::from).collect(),
    }
}

/// What `extent` says after the moves (in order of the blocks), in order: the same of every map that says it.
pub fn restated(extent: &Extent, moves: &[Move]) -> Vec<Extent> {
    let first = moves.partition_point(|moved| moved.to.lba + u64::from(CHUNK_BLOCKS_MAX) <= extent.lba);
    let near = moves[first..].iter().take_while(|moved| moved.to.lba < extent.end());
    let mut places: Vec<Extent> = near.filter_map(|moved| new_place(extent, moved)).collect();
    places.sort_by_key(|place| place.lba);
    let mut said = Vec::with_capacity(1);
    let mut lba = extent.lba;
    for place in places {
        if lba < place.lba {
            said.push(extent.slice(lba, place.lba));
        }
        lba = place.end();
        said.push(place);
    }
    if lba < extent.end() {
        said.push(extent.slice(lba, extent.end()));
    }
    said
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
