//! What a volume may show: a plain list of blocks, and which writes were answered and acknowledged.
//!
//! A block holds a *mark*: the number of the write that it comes from (0: zeros). Within a session, writes enter the log
//! in order, so whatever becomes of the session, what is left of it is a *prefix* of its writes: at least those that it
//! has promised ([`crate::session`]), at most all that were begun. A session that takes over the buffer or the journal of
//! another goes on where its predecessor was: it shows those writes before they are in the log, and they may still get
//! lost like any that are not in the store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use holdfast_engine::ids::{GrantId, Handle, RecordNumber, SnapshotId};
use tokio::time::Instant;

use crate::marks::{Blocks, differences};
use crate::session::{InJournal, Remains, Session};

/// Everything known about one volume. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Model {
    state: Arc<Mutex<State>>,
    common: Arc<Common>,
    /// The snapshot that the volume is a clone of, and the model of that one's volume.
    source: Option<(Box<Model>, String)>,
}

/// What the models of all volumes share.
#[derive(Debug, Default)]
struct Common {
    marks: AtomicU64,
    violations: Mutex<Vec<String>>,
}

impl Common {
    fn violation(&self, what: String) {
        self.violations.lock().expect("no holder panics").push(what);
    }
}

#[derive(Debug, Default)]
struct State {
    sessions: Vec<Session>,
    /// The grants that were made, and of each whether it was taken back.
    grants: BTreeMap<GrantId, Grant>,
    cuts: Vec<Cut>,
    points: Vec<Point>,
}

#[derive(Debug)]
struct Grant {
    node: String,
    revoked: bool,
}

/// A snapshot that was asked for.
#[derive(Debug)]
struct Cut {
    name: String,
    session: usize,
    /// The writes that it must hold.
    at_least: usize,
    /// The writes that it may hold, if it was answered; else any.
    at_most: Option<usize>,
    /// What it is called by, if it was answered.
    id: Option<SnapshotId>,
    /// Whether somebody has asked to delete it.
    deleted: bool,
    /// What it has shown: it shows the same ever after.
    shown: Option<Blocks>,
}

/// A copy of a snapshot in the archive.
#[derive(Debug, Clone)]
pub struct Point {
    pub name: String,
    /// The snapshot.
    pub cut: String,
    /// What it is called by, if it was answered.
    pub handle: Option<Handle>,
    /// Whether somebody has asked to remove it.
    pub removed: bool,
}

/// Somebody who has opened the volume.
#[derive(Debug)]
pub struct Opening {
    pub name: String,
    /// Where its Open lies in the log.
    pub opened: RecordNumber,
    pub grant: GrantId,
    /// Which memory its dirty buffer lies in.
    pub memory: usize,
    pub journal: Option<InJournal>,
    /// What it saw.
    pub blocks: Blocks,
}

/// A session, as its clients name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRef(usize);

impl Model {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("no holder panics"))
    }

    /// The model of a clone of snapshot `cut`.
    pub fn of_clone(&self, cut: String) -> Self {
        let common = Arc::clone(&self.common);
        Self { state: Arc::default(), common, source: Some((Box::new(self.clone()), cut)) }
    }

    pub fn violation(&self, what: String) {
        self.common.violation(what);
    }

    /// What is wrong, with any of the volumes.
    pub fn violations(&self) -> Vec<String> {
        self.common.violations.lock().expect("no holder panics").clone()
    }

    /// Somebody who is the first to open the volume finds `blocks`.
    fn check_first(&self, who: &str, blocks: &[u64]) {
        match &self.source {
            Some((model, cut)) => model.check_cut(who, cut, blocks),
            None if blocks.iter().any(|mark| *mark != 0) => {
                self.violation(format!("{who} finds data in an empty volume"));
            }
            None => {}
        }
    }

    /// `node` was given the volume.
    pub fn granted(&self, grant: GrantId, node: &str) {
        self.with(|state| {
            state.grants.entry(grant).or_insert(Grant { node: node.into(), revoked: false });
        });
    }

    /// The grants that `node` was given so far.
    pub fn grants_of(&self, node: &str) -> Vec<GrantId> {
        self.with(|state| {
            let of_node = state.grants.iter().filter(|(_, grant)| grant.node == node);
            of_node.map(|(id, _)| *id).collect()
        })
    }

    /// These grants were taken back: from now on nothing new gets into the store under them.
    pub fn revoked(&self, grants: &[GrantId]) {
        self.with(|state| {
            for grant in grants {
                state.grants.get_mut(grant).expect("it was granted").revoked = true;
            }
            for session in state.sessions.iter_mut().filter(|session| grants.contains(&session.grant)) {
                session.fenced.get_or_insert(session.answered);
            }
        });
    }

    /// Whether a grant was taken back.
    pub fn is_revoked(&self, grant: GrantId) -> bool {
        self.with(|state| state.grants.get(&grant).is_some_and(|grant| grant.revoked))
    }

    /// A session was opened and saw `blocks`. `None` if a later session is known already: this one is superseded and
    /// only does not know it yet.
    pub fn opened(&self, opening: Opening) -> Option<SessionRef> {
        self.with(|state| {
            let Opening { name, opened, grant, memory, journal, blocks } = opening;
            if state.sessions.last().is_some_and(|last| last.opened >= opened) {
                return None;
            }
            let mut successor = None;
            match state.sessions.last_mut() {
                Some(last) => {
                    let remains = last.remains(grant, memory, journal);
                    last.left = last.prefix(last.floor(remains)..=last.writes.len(), &blocks);
                    match last.left {
                        Some(left) if remains != Remains::Store => {
                            successor = Some(last.successor(name.clone(), opened, memory, left, journal));
                        }
                        Some(_) => {}
                        None => {
                            let what = differences(&last.after(last.answered), &blocks);
                            let violation = format!(
                                "{name} (open {opened}) does not find what {} (open {}) left: {} writes begun, {} \
                                 answered, {} acknowledged, {} stored, and there is its {remains:?}: {what}",
                                last.name, last.opened, last.writes.len(), last.answered, last.acknowledged, last.stored,
                            );
                            self.common.violation(violation);
                        }
                    }
                }
                None => self.check_first(&name, &blocks),
            }
            let mut session = successor.unwrap_or_else(|| Session {
                name,
                opened,
                grant,
                memory,
                journal,
                base: blocks,
                writes: Vec::new(),
                answered: 0,
                acknowledged: 0,
                stored: 0,
                framed: Vec::new(),
                in_frames: 0,
                left: None,
                fenced: None,
            });
            if state.grants.get(&grant).is_some_and(|grant| grant.revoked) {
                session.fenced = Some(session.answered);
            }
            state.sessions.push(session);
            Some(SessionRef(state.sessions.len() - 1))
        })
    }

    /// A write to `range` begins; a discard if not `data`. Returns its mark.
    pub fn begins(&self, session: SessionRef, range: std::ops::Range<u64>, data: bool) -> u64 {
        self.with(|state| {
            let mark = if data { self.common.marks.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
            state.sessions[session.0].writes.push((range, mark));
            mark
        })
    }

    /// All writes begun so far were answered.
    pub fn answered(&self, session: SessionRef) {
        self.with(|state| {
            let session = &mut state.sessions[session.0];
            session.answered = session.writes.len();
        });
    }

    /// How many writes were answered.
    pub fn count(&self, session: SessionRef) -> usize {
        self.with(|state| state.sessions[session.0].answered)
    }

    /// The session has a journal from now on.
    pub fn joined(&self, session: SessionRef, journal: InJournal) {
        self.with(|state| state.sessions[session.0].journal = Some(journal));
    }

    /// So many writes were acknowledged, and are in the store.
    pub fn stored(&self, session: SessionRef, writes: usize) {
        let told = self.with(|state| state.sessions[session.0].in_store(writes));
        told.unwrap_or_else(|violation| self.violation(violation));
    }

    /// So many writes were acknowledged to a flush that began at `began`, and are in the journal if not in the store.
    pub fn journaled(&self, session: SessionRef, writes: usize, began: Instant) {
        let told = self.with(|state| state.sessions[session.0].in_journal(writes, began));
        told.unwrap_or_else(|violation| self.violation(violation));
    }

    /// What a session reads, while none of its writes is under way.
    pub fn expected(&self, session: SessionRef) -> Blocks {
        self.with(|state| {
            let session = &state.sessions[session.0];
            session.after(session.answered)
        })
    }

    /// A snapshot is asked for.
    pub fn cut_begins(&self, session: SessionRef, name: String) {
        self.with(|state| {
            let at_least = state.sessions[session.0].answered;
            state.cuts.push(Cut {
                name,
                session: session.0,
                at_least,
                at_most: None,
                id: None,
                deleted: false,
                shown: None,
            });
        });
    }

    /// It was taken.
    pub fn cut_taken(&self, session: SessionRef, name: &str, id: SnapshotId) {
        let at_least = self.with(|state| {
            let begun = state.sessions[session.0].writes.len();
            let cut = state.cuts.iter_mut().find(|cut| cut.name == name).expect("it was asked for");
            cut.at_most = Some(begun);
            cut.id = Some(id);
            cut.at_least
        });
        self.stored(session, at_least);
    }

    /// Somebody asks to delete it.
    pub fn cut_deleted(&self, name: &str) {
        self.with(|state| {
            state.cuts.iter_mut().filter(|cut| cut.name == name).for_each(|cut| cut.deleted = true);
        });
    }

    /// The snapshots that were taken for sure and that nobody has asked to delete.
    pub fn taken(&self) -> Vec<(SnapshotId, String)> {
        let taken = |cut: &Cut| Some((cut.id.filter(|_| !cut.deleted)?, cut.name.clone()));
        self.with(|state| state.cuts.iter().filter_map(taken).collect())
    }

    /// Somebody begins to copy snapshot `cut` into the archive.
    pub fn point_begins(&self, name: String, cut: String) {
        self.with(|state| state.points.push(Point { name, cut, handle: None, removed: false }));
    }

    /// The copy is made.
    pub fn point_made(&self, name: &str, handle: Handle) {
        self.with(|state| {
            let point = state.points.iter_mut().find(|point| point.name == name).expect("it was begun");
            let before = point.handle.replace(handle);
            if before.is_some_and(|before| before != handle) {
                self.common.violation(format!("{name} is made twice: as {before:?} and as {handle:?}"));
            }
        });
    }

    /// Somebody asks to remove it.
    pub fn point_removed(&self, name: &str) {
        self.with(|state| {
            state.points.iter_mut().filter(|point| point.name == name).for_each(|point| point.removed = true);
        });
    }

    /// All copies that were ever begun.
    pub fn points(&self) -> Vec<Point> {
        self.with(|state| state.points.clone())
    }

    /// Snapshot `name`, or a copy of it, shows `blocks`.
    pub fn check_cut(&self, who: &str, name: &str, blocks: &[u64]) {
        self.with(|state| {
            let Some(cut) = state.cuts.iter_mut().find(|cut| cut.name == name) else {
                return self.common.violation(format!("snapshot {name} was never asked for"));
            };
            let session = &state.sessions[cut.session];
            let most = cut.at_most.unwrap_or(session.writes.len()).min(session.left.unwrap_or(usize::MAX));
            if session.prefix(cut.at_least..=most, blocks).is_none() {
                let what = differences(&session.after(most.min(session.writes.len())), blocks);
                self.common.violation(format!(
                    "{who} of snapshot {name} of {} holds no prefix of {}..={most} writes: {what}",
                    session.name, cut.at_least
                ));
            }
            let shown = cut.shown.get_or_insert_with(|| blocks.to_vec());
            if shown != blocks {
                let what = differences(shown, blocks);
                self.common.violation(format!(
                    "{who} of snapshot {name} shows what it has not shown before: {what}"
                ));
            }
        });
    }
}
