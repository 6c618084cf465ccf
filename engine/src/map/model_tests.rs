//! The whole map against a plain model, under any order of what can happen to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use proptest::prelude::*;

use super::cursor::with_holes;
use super::testing::{MemorySource, Model, VOLUME, extent, hole};
use super::{
    Access, Checkpoint, Compactor, Diff, Extent, Location, Map, MapObject, MapView, PageSource, Restater,
    RunRef, StoredMap, Walk, live_blocks, map_objects, restated,
};
use crate::codec::EncodedPage;
use crate::log::{Move, Op};

const BLOCKS: u64 = 600;

/// What can happen to a map.
#[derive(Debug, Clone)]
enum Step {
    /// A record with these entries.
    Write(Vec<Extent>),
    /// A record that links stored pages of them.
    WritePages(Vec<Extent>),
    /// A record that moves what the map said `ago` records ago about the blocks, to new segments, after this write.
    Relocate { ago: usize, lba: u64, blocks: u64, overwrite: Option<Extent> },
    /// A snapshot.
    Snapshot,
    /// The oldest snapshot is deleted.
    DeleteSnapshot,
    /// A checkpoint with this budget for compaction; a record may come meanwhile, and the map may be opened again.
    Checkpoint { budget: usize, racing: bool, reopen: bool },
    /// A walk has shown that much is hidden.
    RequestFullMerge,
}

fn any_extent() -> impl Strategy<Value = Extent> {
    let data = (0..BLOCKS - 16, 1u32..=16, 0u64..40, 0u32..40, 0u8..16).prop_map(
        |(lba, blocks, number, chunk, offset)| {
            extent(lba, blocks.min(16 - u32::from(offset)), number, chunk, offset)
        },
    );
    let discard = (0..BLOCKS - 200, 1u32..200).prop_map(|(lba, blocks)| hole(lba, blocks));
    prop_oneof![6 => data, 1 => discard]
}

/// Sorted, not overlapping.
fn any_extents() -> impl Strategy<Value = Vec<Extent>> {
    prop::collection::vec(any_extent(), 1..30).prop_map(|mut extents| {
        extents.sort_by_key(|extent| extent.lba);
        let mut end = 0;
        extents.retain(|extent| {
            let fits = extent.lba >= end;
            end = if fits { extent.end() } else { end };
            fits
        });
        extents
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let moved = (0usize..4, 0..BLOCKS - 100, 1u64..100, prop::option::of(any_extent()));
    prop_oneof![
        8 => any_extents().prop_map(Step::Write),
        2 => any_extents().prop_map(Step::WritePages),
        3 => moved.prop_map(|(ago, lba, blocks, overwrite)| Step::Relocate { ago, lba, blocks, overwrite }),
        2 => Just(Step::Snapshot),
        1 => Just(Step::DeleteSnapshot),
        5 => (0usize..30, any::<bool>(), any::<bool>()).prop_map(|(budget, racing, reopen)| Step::Checkpoint { budget, racing, reopen }),
        1 => Just(Step::RequestFullMerge),
    ]
}

/// A map, what it should be, and what it was.
struct World {
    source: Arc<MemorySource>,
    pages: Arc<dyn PageSource>,
    map: Map,
    model: Model,
    compactor: Compactor,
    snapshots: Vec<(MapView, Model)>,
    /// The model after each record, newest last.
    history: Vec<Model>,
    /// A number that no segment has yet.
    fresh: u64,
}

impl World {
    fn new() -> Self {
        let source = MemorySource::with_small_pages();
        let pages: Arc<dyn PageSource> = source.clone();
        let model = Model::empty(BLOCKS as usize);
        Self {
            map: Map::empty(pages.clone()),
            source,
            pages,
            history: vec![model.clone()],
            model,
            compactor: Compactor::default(),
            snapshots: Vec::new(),
            fresh: 1_000,
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Write(extents) => {
                extents.iter().for_each(|extent| self.model.write(extent));
                self.map.apply(&[Op::Write { extents }]).await.unwrap();
            }
            Step::WritePages(extents) => {
                extents.iter().for_each(|extent| self.model.write(extent));
                let mut pages = Vec::new();
                for pack in extents.chunks(3 * 7) {
                    let encoded = pack.chunks(7).map(|page| EncodedPage::new(page).unwrap());
                    pages.extend(self.pages.put_pages(encoded.collect()).await.unwrap());
                }
                self.map.apply(&[Op::WritePages { pages }]).await.unwrap();
            }
            Step::Relocate { ago, lba, blocks, overwrite } => {
                self.relocate(ago, lba, blocks, overwrite).await
            }
            Step::Snapshot => self.snapshots.push((self.map.freeze(), self.model.clone())),
            Step::DeleteSnapshot => {
                if !self.snapshots.is_empty() {
                    self.snapshots.remove(0);
                }
            }
            Step::Checkpoint { budget, racing, reopen } => self.checkpoint(budget, racing, reopen).await,
            Step::RequestFullMerge => self.compactor.request_full_merge(),
        }
        self.history.push(self.model.clone());
    }

    /// Moves every block that the map named `ago` records ago, as a collector that decided then would.
    async fn relocate(&mut self, ago: usize, lba: u64, blocks: u64, overwrite: Option<Extent>) {
        let seen = self.history[self.history.len().saturating_sub(1 + ago)].clone();
        let mut ops = Vec::new();
        if let Some(extent) = overwrite {
            self.model.write(&extent);
            ops.push(Op::Write { extents: vec![extent] });
        }
        let mut moves: Vec<Move> = Vec::new();
        for block in lba..lba + blocks {
            let Some(from) = seen.0[block as usize] else { continue };
            match moves.last_mut() {
                Some(Move { to, from: first })
                    if to.end() == block
                        && u32::from(first.chunk_offset) + to.blocks < u32::from(first.chunk_blocks)
                        && first.skip(to.blocks as u8) == from =>
                {
                    to.blocks += 1;
                }
                _ => {
                    self.fresh += 1;
                    moves.push(Move { to: extent(block, 1, self.fresh, 0, 0), from });
                }
            }
        }
        for Move { to, from } in &moves {
            for block in 0..to.blocks as u8 {
                let at = to.lba + u64::from(block);
                if self.model.0[at as usize].is_some_and(|now| now.same_place(&from.skip(block))) {
                    self.model.write(&to.slice(at, at + 1));
                }
            }
        }
        ops.push(Op::Relocate { moves });
        self.map.apply(&ops).await.unwrap();
    }

    async fn checkpoint(&mut self, budget: usize, racing: bool, reopen: bool) {
        let frozen = self.map.freeze();
        let views: Vec<&MapView> = self.snapshots.iter().map(|(view, _)| view).chain([&frozen]).collect();
        let checkpoint = Checkpoint::write(&views).await.unwrap();
        let mut stored = checkpoint.stored(&frozen).expect("all layers are written");
        for (view, _) in &mut self.snapshots {
            let written = checkpoint.stored(view).expect("all layers are written");
            *view = MapView::from_stored(self.pages.clone(), &written);
        }
        // A record that comes meanwhile stays on top.
        let late = racing.then(|| Op::Write { extents: vec![extent(3, 1, 77, 0, 0)] });
        self.map.apply(late.as_slice()).await.unwrap();

        let before = self.source.written();
        let groups = stored.runs.len();
        self.compactor.step(&self.pages, &mut stored, budget).await.unwrap();
        let written = self.source.written() - before;
        assert!(written <= 4 * budget + 4 * groups, "{written} written, {budget} allowed");
        assert!(self.map.replace(&frozen, &stored));
        self.delete_unnamed(&stored).await;
        if reopen {
            self.map = Map::from_stored(self.pages.clone(), &stored);
            // The log has what the checkpoint does not cover.
            self.map.apply(late.as_slice()).await.unwrap();
        }
        if racing {
            self.model.write(&extent(3, 1, 77, 0, 0));
        }
    }

    /// Moves all blocks of some segments, whoever names them, and restates the maps of the snapshots.
    async fn restate(&mut self, some: u8) {
        let moves_away =
            |location: &Location| location.segment.id.0.iter().fold(0, |sum, byte| sum ^ byte) % 4 == some;
        let mut moved: BTreeMap<(u64, Location), Move> = BTreeMap::new();
        for model in self.snapshots.iter().map(|(_, model)| model) {
            for (lba, location) in model.0.iter().enumerate() {
                let Some(from) = location.filter(moves_away) else { continue };
                moved.entry((lba as u64, from)).or_insert_with(|| {
                    self.fresh += 1;
                    Move { to: extent(lba as u64, 1, self.fresh, 0, 0), from }
                });
            }
        }
        let stored: Vec<StoredMap> = self
            .snapshots
            .iter()
            .map(|(view, _)| view.to_stored().expect("a checkpoint came before"))
            .collect();
        let mut restater =
            Restater::new(self.pages.clone(), VOLUME, moved.values().copied().collect(), &stored);
        let before: Vec<Vec<Extent>> = self.differences().await;
        for (view, model) in &mut self.snapshots {
            let stored = view.to_stored().expect("a checkpoint came before");
            let found = restater.restate(&stored).await.unwrap();
            let before = model.clone();
            for (lba, location) in model.0.iter_mut().enumerate() {
                let moved = location.and_then(|from| moved.get(&(lba as u64, from)));
                *location = moved.map_or(*location, |moved| moved.to.location);
            }
            // Entries that newer runs hide may be restated too.
            assert!(found.is_some() || before == *model);
            let found = found.unwrap_or(stored);
            assert!(found.runs.len() <= 16, "{} runs", found.runs.len());
            *view = MapView::from_stored(self.pages.clone(), &found);
        }
        let blocks = |extents: &[Extent]| Model::of(0..BLOCKS, &with_holes(0..BLOCKS, extents.to_vec()));
        for (before, after) in before.iter().zip(self.differences().await) {
            let after_moves: Vec<Extent> =
                before.iter().flat_map(|extent| restated(extent, restater.moves())).collect();
            assert_eq!(blocks(&after_moves), blocks(&after), "maps differ where they differed before");
        }
    }

    /// What each snapshot names and the next newer one does not.
    async fn differences(&self) -> Vec<Vec<Extent>> {
        let mut differences = Vec::new();
        for two in self.snapshots.windows(2) {
            let mut diff = Diff::new(&two[1].0, &two[0].0, 0);
            let mut only = Vec::new();
            while let Some(extent) = diff.next().await.unwrap() {
                only.extend(extent.location.map(|_| extent));
            }
            differences.push(only);
        }
        differences
    }

    /// Deletes the pages and packs that neither the map nor a snapshot names; how many.
    async fn delete_unnamed(&self, stored: &StoredMap) -> usize {
        let mut named = map_objects(&MapView::from_stored(self.pages.clone(), stored)).await.unwrap();
        for (view, _) in &self.snapshots {
            named.extend(map_objects(view).await.unwrap());
        }
        let mut unnamed = self.source.objects();
        unnamed.retain(|id| !named.contains(&MapObject { volume: VOLUME, id: *id }));
        unnamed.iter().for_each(|id| self.source.delete(*id));
        unnamed.len()
    }

    async fn check(&self) {
        let all = self.map.lookup(0..BLOCKS).await.unwrap();
        assert_eq!(Model::of(0..BLOCKS, &all), self.model);
        for (from, to) in [(0, 1), (1, 17), (100, 316), (BLOCKS - 9, BLOCKS)] {
            let part = self.map.lookup(from..to).await.unwrap();
            assert_eq!(Model::of(from..to, &part), self.model.part(from..to));
        }
        let head = self.map.freeze();
        check_walk(&head, &self.model).await;
        for (view, model) in &self.snapshots {
            check_walk(view, model).await;
            check_diff(view, model, &head, &self.model).await;
            check_diff(&head, &self.model, view, model).await;
        }
        let nothing = MapView::empty(self.pages.clone());
        check_diff(&nothing, &Model::empty(BLOCKS as usize), &head, &self.model).await;
        check_diff(&head, &self.model, &nothing, &Model::empty(BLOCKS as usize)).await;
        check_diff(&head, &self.model, &head, &self.model).await;
        for two in self.snapshots.windows(2) {
            check_diff(&two[0].0, &two[0].1, &two[1].0, &two[1].1).await;
        }
    }
}

async fn check_walk(view: &MapView, model: &Model) {
    let mut walked = Model::empty(BLOCKS as usize);
    let mut walk = Walk::new(view);
    let mut end = 0;
    while let Some(extents) = walk.next().await.unwrap() {
        assert!(!extents.is_empty());
        for extent in extents {
            assert!(extent.lba >= end, "out of order");
            end = extent.end();
            walked.write(&extent);
        }
    }
    assert_eq!(&walked, model);

    let mut live = BTreeMap::new();
    for location in model.0.iter().flatten() {
        *live.entry(location.segment).or_insert(0) += 1;
    }
    assert_eq!(live_blocks(view).await.unwrap(), live);
}

async fn check_diff(old: &MapView, before: &Model, new: &MapView, after: &Model) {
    for start in [0, 250] {
        let mut diff = Diff::new(old, new, start);
        let mut end = start;
        let mut patched = before.clone();
        while let Some(extent) = diff.next().await.unwrap() {
            assert!(extent.lba >= end, "out of order");
            end = extent.end();
            for block in extent.lba..end {
                let (ours, theirs) = (before.0[block as usize], after.0[block as usize]);
                let same = match (ours, theirs) {
                    (Some(ours), Some(theirs)) => ours.same_place(&theirs),
                    (ours, theirs) => ours == theirs,
                };
                assert!(!same, "block {block} does not differ");
            }
            patched.write(&extent);
        }
        let all = start..BLOCKS;
        assert_eq!(patched.part(all.clone()), after.part(all));
    }
}

/// Runs a future that waits for nothing but itself.
fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_map_says_what_the_model_says(steps in prop::collection::vec(any_step(), 1..40)) {
        run(async {
            let mut world = World::new();
            for step in steps {
                world.step(step).await;
            }
            world.check().await;
        });
    }

    #[test]
    fn maps_of_snapshots_name_moved_data_at_its_new_place(
        steps in prop::collection::vec(any_step(), 1..40),
        segments in prop::collection::vec(0u8..4, 1..6),
    ) {
        run(async {
            let mut world = World::new();
            for step in steps {
                world.step(step).await;
            }
            world.step(Step::Checkpoint { budget: 8, racing: false, reopen: false }).await;
            for some in segments {
                world.restate(some).await;
            }
            for (view, model) in &world.snapshots {
                check_walk(view, model).await;
            }
            for two in world.snapshots.windows(2) {
                check_diff(&two[0].0, &two[0].1, &two[1].0, &two[1].1).await;
            }
        });
    }

    #[test]
    fn every_state_of_a_long_merge_says_the_same(
        layers in prop::collection::vec(any_extents(), 2..12),
        budget in 1usize..6,
        full in any::<bool>(),
    ) {
        run(async {
            let mut world = World::new();
            for extents in layers {
                world.step(Step::Write(extents)).await;
                world.step(Step::Checkpoint { budget: 0, racing: false, reopen: false }).await;
            }
            if full {
                world.step(Step::RequestFullMerge).await;
            }
            let mut last = None;
            for steps in 0.. {
                assert!(steps < 1_000, "merging does not end");
                world.step(Step::Checkpoint { budget, racing: false, reopen: true }).await;
                world.check().await;
                let stored = world.map.freeze().to_stored();
                if last == stored {
                    break;
                }
                last = stored;
            }
        });
    }
}

#[test]
fn an_apply_that_fails_changes_nothing() {
    run(async {
        let mut world = World::new();
        world.step(Step::Write((0..30).map(|n| extent(n * 17, 16, n, 0, 0)).collect())).await;
        world.step(Step::Checkpoint { budget: 0, racing: false, reopen: true }).await;
        let stored = world.map.freeze();
        let stored = Checkpoint::write(&[&stored]).await.unwrap().stored(&stored).unwrap();
        let map = Map::from_stored(world.pages.clone(), &stored);
        let target = extent(170, 4, 500, 0, 0);
        let ops = [
            Op::Write { extents: vec![hole(0, 10)] },
            Op::Relocate {
                moves: vec![Move { to: target, from: extent(170, 1, 10, 0, 0).location.unwrap() }],
            },
        ];
        let objects = map_objects(&map.freeze()).await.unwrap();
        objects.iter().for_each(|object| world.source.delete(object.id));
        assert!(map.apply(&ops).await.is_err());
        assert_eq!(map.memory_bytes(), 0);
    });
}

#[test]
fn what_no_map_may_hold_is_refused() {
    run(async {
        let map = Map::empty(MemorySource::new());
        let spans = Extent { blocks: 16, ..extent(0, 1, 1, 0, 5) };
        assert!(map.apply(&[Op::Write { extents: vec![extent(0, 1, 1, 0, 0), spans] }]).await.is_err());
        let from = extent(0, 1, 1, 0, 14).location.unwrap();
        let moves = vec![Move { to: extent(0, 4, 2, 0, 0), from }];
        assert!(
            map.apply(&[Op::Relocate { moves }]).await.is_err(),
            "the source does not have so many blocks"
        );
        let moves = vec![Move { to: hole(0, 1), from }];
        assert!(map.apply(&[Op::Relocate { moves }]).await.is_err());
        assert_eq!(map.lookup(0..4).await.unwrap(), [hole(0, 4)]);
    });
}

#[test]
fn a_relocation_that_memory_decides_loads_no_page() {
    run(async {
        let mut world = World::new();
        world.step(Step::Write((0..30).map(|n| extent(n * 17, 16, n, 0, 0)).collect())).await;
        world.step(Step::Checkpoint { budget: 0, racing: false, reopen: true }).await;
        world.step(Step::Write(vec![extent(170, 4, 99, 0, 0)])).await;
        world.source.take_loads();
        let from = extent(170, 4, 10, 0, 0).location.unwrap();
        let moves = vec![Move { to: extent(170, 4, 500, 0, 0), from }];
        world.map.apply(&[Op::Relocate { moves }]).await.unwrap();
        assert_eq!(world.source.take_loads(), (0, 0));
        world.check().await;
    });
}

#[test]
fn relocations_load_each_page_once() {
    run(async {
        let mut world = World::new();
        world.step(Step::Write((0..30).map(|n| extent(n * 17, 16, n, 0, 0)).collect())).await;
        world.step(Step::Checkpoint { budget: 0, racing: false, reopen: true }).await;
        let pages: usize = world.map.freeze().to_stored().unwrap().runs.iter().map(RunRef::pages).sum();
        world.source.take_loads();
        world.step(Step::Relocate { ago: 0, lba: 0, blocks: BLOCKS, overwrite: None }).await;
        let (page_loads, _) = world.source.take_loads();
        assert!(page_loads <= pages, "{page_loads} loads of {pages} pages");
        world.check().await;
    });
}

#[test]
fn a_lookup_loads_at_most_an_index_and_a_page_of_each_run() {
    run(async {
        let source = MemorySource::with_small_pages();
        let map = Map::empty(source.clone());
        for round in 0..5 {
            let extents = (0..2_000).map(|n| extent(n * 16, 16, round, n as u32, 0)).collect();
            map.apply(&[Op::Write { extents }]).await.unwrap();
            let frozen = map.freeze();
            let checkpoint = Checkpoint::write(&[&frozen]).await.unwrap();
            assert!(map.replace(&frozen, &checkpoint.stored(&frozen).unwrap()));
        }
        let runs = map.layers();
        assert_eq!(runs, 5);
        for lba in [0, 16 * 777, 16 * 1_999] {
            source.take_loads();
            map.lookup(lba..lba + 16).await.unwrap();
            let (pages, indexes) = source.take_loads();
            assert!(pages <= runs && indexes <= runs, "{pages} pages and {indexes} indexes of {runs} runs");
        }
        // What is in memory needs none.
        map.apply(&[Op::Write { extents: vec![extent(160, 16, 9, 0, 0)] }]).await.unwrap();
        source.take_loads();
        assert_eq!(map.lookup(161..163).await.unwrap(), [extent(161, 2, 9, 0, 1)]);
        assert_eq!(source.take_loads(), (0, 0));
    });
}

#[test]
fn a_diff_steps_over_what_both_maps_share() {
    run(async {
        let source = MemorySource::with_small_pages();
        let map = Map::empty(source.clone());
        map.apply(&[Op::Write { extents: (0..2_000).map(|n| extent(n * 16, 16, 1, n as u32, 0)).collect() }])
            .await
            .unwrap();
        let old = map.freeze();
        let stored = Checkpoint::write(&[&old]).await.unwrap().stored(&old).unwrap();
        assert!(map.replace(&old, &stored));
        let old = map.freeze();
        map.apply(&[Op::Write { extents: vec![extent(8_000, 4, 2, 0, 0), hole(20_000, 3)] }]).await.unwrap();
        let frozen = map.freeze();
        let mut merged = Checkpoint::write(&[&frozen]).await.unwrap().stored(&frozen).unwrap();
        let pages = Arc::clone(old.source());
        let mut compactor = Compactor::default();
        compactor.request_full_merge();
        let before = source.written();
        compactor.step(&pages, &mut merged, 1_000).await.unwrap();
        assert_eq!(merged.runs.len(), 1, "merged into one run");
        assert!(source.written() - before < 30, "only what changed is rewritten");

        let new = MapView::from_stored(pages, &merged);
        source.take_loads();
        let mut diff = Diff::new(&old, &new, 0);
        let mut changed = Vec::new();
        while let Some(extent) = diff.next().await.unwrap() {
            changed.push(extent);
        }
        assert_eq!(changed, [extent(8_000, 4, 2, 0, 0), hole(20_000, 3)]);
        let (page_loads, index_loads) = source.take_loads();
        assert!(page_loads < 20 && index_loads < 60, "{page_loads} pages, {index_loads} indexes");
    });
}

#[test]
fn runs_stay_few_under_random_writes_and_merging_keeps_pace() {
    run(async {
        let source = MemorySource::with_small_pages();
        let pages: Arc<dyn PageSource> = source.clone();
        let mut stored = StoredMap::default();
        let mut compactor = Compactor::default();
        let (mut checkpointed, mut rewritten, mut most_runs) = (0, 0, 0);
        let mut random = 1u64;
        for round in 0..400 {
            let map = Map::from_stored(pages.clone(), &stored);
            let extents = (0..40).map(|_| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                extent((random >> 33) % 8_000 * 16, 16, round, 0, 0)
            });
            for extent in extents {
                map.apply(&[Op::Write { extents: vec![extent] }]).await.unwrap();
            }
            let frozen = map.freeze();
            let checkpoint = Checkpoint::write(&[&frozen]).await.unwrap();
            checkpointed += checkpoint.pages();
            stored = checkpoint.stored(&frozen).unwrap();
            let before = source.written();
            compactor.step(&pages, &mut stored, Compactor::budget(checkpoint.pages())).await.unwrap();
            rewritten += source.written() - before;
            most_runs = most_runs.max(stored.runs.len());
        }
        let total: usize = stored.runs.iter().map(RunRef::pages).sum();
        assert!(total > 600, "{total} pages");
        assert!(most_runs <= 10, "{most_runs} runs");
        let amplification = rewritten as f64 / checkpointed as f64;
        assert!(amplification < 16.0, "each page was rewritten {amplification} times");
    });
}

#[test]
fn runs_stay_few_over_pages_that_cannot_be_read() {
    run(async {
        let source = MemorySource::with_small_pages();
        let pages: Arc<dyn PageSource> = source.clone();
        let map = Map::empty(pages.clone());
        let mut model = Model::empty(BLOCKS as usize);
        let mut write = async |extents: Vec<Extent>| {
            extents.iter().for_each(|extent| model.write(extent));
            map.apply(&[Op::Write { extents }]).await.unwrap();
            let frozen = map.freeze();
            let stored = Checkpoint::write(&[&frozen]).await.unwrap().stored(&frozen).unwrap();
            (frozen, stored, model.clone())
        };
        let (frozen, stored, _) = write((0..30).map(|n| extent(n * 17, 16, n, 0, 0)).collect()).await;
        assert!(map.replace(&frozen, &stored));
        let away = source.objects();
        away.iter().for_each(|object| source.damage(*object, 40));

        let mut compactor = Compactor::default();
        let (mut failures, mut most_runs) = (0, 0);
        for n in 0..200 {
            let (frozen, mut stored, _) = write(vec![extent(n * 37 % BLOCKS, 1, 100 + n, 0, 0)]).await;
            failures += usize::from(compactor.step(&pages, &mut stored, 100).await.is_err());
            most_runs = most_runs.max(stored.runs.len());
            assert!(map.replace(&frozen, &stored));
        }
        assert_eq!(failures, 1, "what failed is let be");
        assert!(most_runs <= 8, "{most_runs} runs");

        away.iter().for_each(|object| source.damage(*object, 40));
        compactor.retry();
        let (_, mut stored, model) = write(vec![extent(0, 1, 99, 0, 0)]).await;
        compactor.step(&pages, &mut stored, 1_000).await.unwrap();
        assert_eq!(stored.runs.len(), 1, "read again, merged again");
        let said = MapView::from_stored(pages, &stored).lookup(0..BLOCKS).await.unwrap();
        assert_eq!(Model::of(0..BLOCKS, &said), model);
    });
}

/// How many pages a map names, and how many lie in the objects that it so keeps.
async fn pages_kept(pages: &Arc<dyn PageSource>, stored: &StoredMap) -> (usize, usize) {
    let mut packs = BTreeMap::new();
    let mut named = 0;
    for run in &stored.runs {
        let mut listed = Vec::new();
        match run {
            RunRef::Pages(pages) => listed.extend_from_slice(pages),
            RunRef::Indexed(indexes) => {
                for index in indexes {
                    listed.extend_from_slice(&pages.index(index, Access::Scan).await.unwrap());
                }
            }
        }
        named += listed.len();
        packs.extend(listed.iter().map(|page| (page.id, page.place.map_or(1, |p| usize::from(p.pages)))));
    }
    (named, packs.values().sum())
}

#[test]
fn pages_that_stay_keep_few_of_those_that_went() {
    run(async {
        let source = MemorySource::with_small_pages();
        let pages: Arc<dyn PageSource> = source.clone();
        let map = Map::empty(pages.clone());
        let written = (0..2_000).map(|n| extent(n * 16, 16, 1, n as u32, 0)).collect();
        map.apply(&[Op::Write { extents: written }]).await.unwrap();
        let mut kept = Vec::new();
        for _ in 0..2 {
            let frozen = map.freeze();
            let mut stored = Checkpoint::write(&[&frozen]).await.unwrap().stored(&frozen).unwrap();
            let mut compactor = Compactor::default();
            compactor.request_full_merge();
            compactor.step(&pages, &mut stored, 1_000).await.unwrap();
            assert_eq!(stored.runs.len(), 1);
            kept.push(pages_kept(&pages, &stored).await);
            assert!(map.replace(&frozen, &stored));
            // A page has twelve entries: what is left is one of each eight, which lie in two packs.
            let discards = (0..2_000).filter(|n| n % 96 >= 12).map(|n| hole(n * 16, 16)).collect();
            map.apply(&[Op::Write { extents: discards }]).await.unwrap();
        }
        let [(before, _), (named, kept)] = kept[..] else { unreachable!("two rounds") };
        assert!(before > 150 && named >= 20, "{before} and {named} pages");
        assert!(kept <= 2 * named, "{kept} pages are kept for {named}");
        let live = map.freeze();
        let left: u64 = live_blocks(&live).await.unwrap().values().sum();
        assert_eq!(left, (0..2_000).filter(|n| n % 96 < 12).count() as u64 * 16);
    });
}

#[test]
fn a_discarded_volume_has_an_empty_map_in_the_end() {
    run(async {
        let mut world = World::new();
        world.step(Step::Write((0..30).map(|n| extent(n * 17, 16, n, 0, 0)).collect())).await;
        world.step(Step::Checkpoint { budget: 0, racing: false, reopen: true }).await;
        world.step(Step::Write(vec![hole(0, BLOCKS as u32)])).await;
        let frozen = world.map.freeze();
        let mut merged = Checkpoint::write(&[&frozen]).await.unwrap().stored(&frozen).unwrap();
        let mut compactor = Compactor::default();
        compactor.request_full_merge();
        compactor.step(&world.pages, &mut merged, 1_000).await.unwrap();
        assert_eq!(merged, StoredMap::default());
    });
}

#[test]
fn a_lookup_racing_with_compaction_asks_again() {
    run(async {
        let mut world = World::new();
        world.step(Step::Write((0..30).map(|n| extent(n * 17, 16, n, 0, 0)).collect())).await;
        world.step(Step::Checkpoint { budget: 0, racing: false, reopen: true }).await;
        world.step(Step::Write(vec![extent(170, 4, 99, 0, 0)])).await;
        // The lookup has seen the old runs when their pages go.
        let mut lookup = Box::pin(world.map.lookup(0..BLOCKS));
        assert!(lookup.as_mut().now_or_never().is_none());
        let frozen = world.map.freeze();
        let mut merged = Checkpoint::write(&[&frozen]).await.unwrap().stored(&frozen).unwrap();
        let mut compactor = Compactor::default();
        compactor.request_full_merge();
        compactor.step(&world.pages, &mut merged, 1_000).await.unwrap();
        assert!(world.map.replace(&frozen, &merged));
        assert!(world.delete_unnamed(&merged).await > 0);
        assert_eq!(Model::of(0..BLOCKS, &lookup.await.unwrap()), world.model);
        assert!(world.map.lookup(0..BLOCKS).await.is_ok());
    });
}

#[test]
fn maps_that_share_runs_share_what_is_written_to_restate_them() {
    run(async {
        let mut written = Vec::new();
        for snapshots in [1, 10] {
            let mut world = World::new();
            world.step(Step::Write((0..30).map(|n| extent(n * 17, 16, n, 0, 0)).collect())).await;
            world.step(Step::Checkpoint { budget: 0, racing: false, reopen: false }).await;
            (0..snapshots).for_each(|_| world.snapshots.push((world.map.freeze(), world.model.clone())));
            let before = world.source.written();
            world.restate(0).await;
            written.push(world.source.written() - before);
        }
        assert!(written[0] > 0 && written[0] == written[1], "{written:?} pages and indexes");
    });
}
