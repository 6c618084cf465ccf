//! The map of a volume's head.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cursor::Reading;
use super::view::{Layer, MapView};
use super::{Extent, MapError, Memtable, Origin, PageRef, PageSource, RunRef, StoredMap};
use crate::log::{Move, Op};
use crate::store::StoreError;

/// The map of a volume's head: a memtable over a view of everything older.
///
/// # Guarantees
/// - [`Map::apply`] takes effect as a whole or, on an error or when dropped, not at all; a lookup sees all of a
///   record or nothing.
/// - The outcome depends on the records alone, not on when checkpoints and compactions happened: a replay yields what
///   the owner had.
/// - Lookups run while records are applied and runs are replaced.
///
/// # Crash behaviour
/// Nothing here is durable; a checkpoint and the log are.
#[derive(Debug)]
pub struct Map {
    state: Mutex<State>,
    /// Held while a record is applied: the next one builds on what this one did.
    applying: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    newest: Memtable,
    below: MapView,
}

impl Map {
    /// The map of an empty volume.
    pub fn empty(source: Arc<dyn PageSource>) -> Self {
        Self::over(MapView::empty(source))
    }

    /// The map of a checkpoint. Nothing is loaded.
    pub fn from_stored(source: Arc<dyn PageSource>, stored: &StoredMap) -> Self {
        Self::over(MapView::from_stored(source, stored))
    }

    fn over(below: MapView) -> Self {
        let state = State { newest: Memtable::new(), below };
        Self { state: Mutex::new(state), applying: tokio::sync::Mutex::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that changes the state can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `range` (in blocks) consists of; see [`MapView::lookup`].
    pub async fn lookup(&self, range: Range<u64>) -> Result<Vec<Extent>, MapError> {
        loop {
            let (found, below) = {
                let state = self.state();
                (state.newest.extents(range.clone()).collect(), state.below.clone())
            };
            match below.lookup_below(found, range.clone()).await {
                // A page may go once newer runs have taken its place: then those say the same.
                Err(MapError::Store(StoreError::NotFound { .. }))
                    if !self.state().below.since(&below).is_some_and(<[_]>::is_empty) => {}
                answer => return answer,
            }
        }
    }

    /// The volumes that it names objects of.
    pub fn origins(&self) -> Vec<Origin> {
        self.state().below.origins().to_vec()
    }

    /// Does what the record's `ops` do to the map. Ops that do not concern it are passed over; who applies a record
    /// with a snapshot calls [`Map::freeze`] next.
    pub async fn apply(&self, ops: &[Op]) -> Result<(), MapError> {
        check(ops)?;
        let _applying = self.applying.lock().await;
        let mut delta = Delta::default();
        for op in ops {
            match op {
                Op::Write { extents } => delta.newest.extend(extents),
                Op::WritePages { pages } => delta.link(pages),
                Op::Relocate { moves } => delta.relocate(self, moves).await?,
                Op::Create { .. }
                | Op::Dead
                | Op::Grant { .. }
                | Op::Revoke { .. }
                | Op::Open { .. }
                | Op::Close
                | Op::Maintain
                | Op::Snapshot { .. }
                | Op::DeleteSnapshot { .. }
                | Op::Annotate { .. }
                | Op::Resize { .. }
                | Op::SwitchSnapshotMap { .. }
                | Op::ForgetSnapshot { .. }
                | Op::RunCommitted { .. }
                | Op::RunEnded { .. }
                | Op::Noop => {}
            }
        }
        let mut state = self.state();
        if delta.linked {
            state.freeze();
            state.below = state.below.under(delta.older);
        } else {
            for layer in delta.older.iter().rev() {
                if let Layer::Memory(memtable) = layer {
                    memtable.iter().for_each(|extent| state.newest.insert(extent));
                }
            }
        }
        delta.newest.into_iter().for_each(|extent| state.newest.insert(extent));
        Ok(())
    }

    /// Everything applied so far, as a view that never changes: for a snapshot, a checkpoint or a diff.
    pub fn freeze(&self) -> MapView {
        let mut state = self.state();
        state.freeze();
        state.below.clone()
    }

    /// Puts `stored`, which says what `frozen` says, in its place; newer layers stay on top of it. False, and nothing
    /// has changed, if the map did not grow from `frozen`.
    pub fn replace(&self, frozen: &MapView, stored: &StoredMap) -> bool {
        let mut state = self.state();
        let Some(newer) = state.below.since(frozen) else { return false };
        let stored = MapView::from_stored(frozen.source().clone(), stored);
        state.below = stored.under(newer.iter().cloned());
        true
    }

    /// About how many bytes the entries take that are in memory only: what a checkpoint would write.
    pub fn memory_bytes(&self) -> usize {
        let state = self.state();
        let frozen = state.below.layers().iter().map(|layer| match layer {
            Layer::Memory(memtable) => memtable.bytes(),
            Layer::Run(_) => 0,
        });
        frozen.sum::<usize>() + state.newest.bytes()
    }

    /// How many layers a lookup may have to look into below the newest entries.
    pub fn layers(&self) -> usize {
        self.state().below.layers().len()
    }
}

impl State {
    fn freeze(&mut self) {
        if !self.newest.is_empty() {
            let newest = Layer::Memory(Arc::new(std::mem::take(&mut self.newest)));
            self.below = self.below.under([newest]);
        }
    }
}

/// What a record does, while it is worked out.
#[derive(Debug, Default)]
struct Delta {
    /// In order; later ones hide earlier ones.
    newest: Vec<Extent>,
    /// Newest first.
    older: Vec<Layer>,
    /// Whether `older` has a run.
    linked: bool,
}

impl Delta {
    fn seal(&mut self) {
        if !self.newest.is_empty() {
            let mut memtable = Memtable::new();
            self.newest.drain(..).for_each(|extent| memtable.insert(extent));
            self.older.insert(0, Layer::Memory(Arc::new(memtable)));
        }
    }

    fn link(&mut self, pages: &[PageRef]) {
        if !pages.is_empty() {
            self.seal();
            self.older.insert(0, Layer::Run(Arc::new(RunRef::Pages(pages.to_vec()))));
            self.linked = true;
        }
    }

    async fn relocate(&mut self, map: &Map, moves: &[Move]) -> Result<(), MapError> {
        self.seal();
        let (near, below) = {
            let state = map.state();
            let mut near = Memtable::new();
            for Move { to, .. } in moves {
                state.newest.extents(to.lba..to.end()).for_each(|extent| near.insert(extent));
            }
            (near, state.below.clone())
        };
        let view = below.under(self.older.iter().cloned().chain([Layer::Memory(Arc::new(near))]));
        let mut cursor = view.cursor(Reading::scan(view.source().clone()));
        for Move { to, from } in moves {
            for named in cursor.resolve(to.lba..to.end()).await? {
                let source = from.skip((named.lba - to.lba) as u8);
                if named.location.is_some_and(|location| location.same_place(&source)) {
                    self.newest.push(to.slice(named.lba, named.end()));
                }
            }
        }
        Ok(())
    }
}

/// Refuses what no map may hold, before anything is changed.
fn check(ops: &[Op]) -> Result<(), MapError> {
    let refused = |what| MapError::Refused { what };
    for op in ops {
        match op {
            Op::Write { extents } => extents.iter().try_for_each(Extent::check).map_err(refused)?,
            Op::Relocate { moves } => {
                for Move { to, from } in moves {
                    to.check().map_err(refused)?;
                    Extent { location: Some(*from), ..*to }.check().map_err(refused)?;
                    to.location.ok_or(refused("a move to nowhere"))?;
                }
            }
            Op::WritePages { pages } => {
                let ordered = pages.windows(2).all(|two| two[0].end_lba <= two[1].first_lba);
                if !ordered || pages.iter().any(|page| page.first_lba >= page.end_lba) {
                    return Err(refused("pages that are not in order"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
