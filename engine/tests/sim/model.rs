//! What a volume may show: a plain list of blocks, and which writes were answered and acknowledged.
//!
//! A block holds a *mark*: the number of the write that it comes from (0: zeros). Within a session, writes enter the log
//! in order, so whatever becomes of the session, what is left of it is a *prefix* of its writes: at least all that were
//! acknowledged (or answered, where the dirty buffer survives under the same grant), at most all that were begun. A
//! session that takes over such a buffer goes on where its predecessor was: it shows those writes before they are in the
//! log, and they may still get lost like any that nobody has flushed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, Handle, RecordNumber, SnapshotId};

/// The volume's size in blocks.
pub const BLOCKS: u64 = 96;

/// The marks of all blocks.
pub type Blocks = Vec<u64>;

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

#[derive(Debug)]
struct Session {
    name: String,
    /// Where its Open lies in the log.
    opened: RecordNumber,
    grant: GrantId,
    /// Which memory its dirty buffer lies in.
    memory: usize,
    /// What there was before its writes.
    base: Blocks,
    /// Its writes, behind those that it took over.
    writes: Vec<(std::ops::Range<u64>, u64)>,
    answered: usize,
    acknowledged: usize,
    /// How many of its writes a later opener has found.
    left: Option<usize>,
    /// How many were answered when its grant had been taken back.
    fenced: Option<usize>,
}

impl Session {
    /// The blocks after so many of its writes.
    fn after(&self, writes: usize) -> Blocks {
        let mut blocks = self.base.clone();
        for (range, mark) in &self.writes[..writes] {
            blocks[range.start as usize..range.end as usize].fill(*mark);
        }
        blocks
    }

    /// The largest prefix of its writes, of those that `allowed` says, that yields `blocks`.
    fn prefix(&self, allowed: std::ops::RangeInclusive<usize>, blocks: &[u64]) -> Option<usize> {
        allowed.rev().find(|writes| self.after(*writes) == blocks)
    }
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

    /// These grants were taken back: from now on nothing new is acknowledged under them.
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
    pub fn opened(
        &self,
        name: String,
        opened: RecordNumber,
        grant: GrantId,
        memory: usize,
        blocks: Blocks,
    ) -> Option<SessionRef> {
        self.with(|state| {
            if state.sessions.last().is_some_and(|last| last.opened >= opened) {
                return None;
            }
            let mut taken_over = None;
            match state.sessions.last_mut() {
                Some(last) => {
                    let kept = last.grant == grant && last.memory == memory;
                    let floor = if kept { last.answered } else { last.acknowledged };
                    last.left = last.prefix(floor..=last.writes.len(), &blocks);
                    if last.left.is_none() {
                        let what = differences(&last.after(last.answered), &blocks);
                        let violation = format!(
                            "{name} (open {opened}) does not find what {} (open {}) left: {} writes begun, {} answered, {} acknowledged, buffer {}: {what}",
                            last.name, last.opened, last.writes.len(), last.answered, last.acknowledged,
                            if kept { "kept" } else { "gone" },
                        );
                        self.common.violation(violation);
                    }
                    taken_over = last.left.filter(|_| kept).map(|left| {
                        (last.base.clone(), last.writes[..left].to_vec(), last.acknowledged)
                    });
                }
                None => self.check_first(&name, &blocks),
            }
            let (base, writes, acknowledged) = taken_over.unwrap_or((blocks, Vec::new(), 0));
            let revoked = state.grants.get(&grant).is_some_and(|grant| grant.revoked);
            let fenced = revoked.then_some(writes.len());
            let session = Session {
                name,
                opened,
                grant,
                memory,
                base,
                answered: writes.len(),
                writes,
                acknowledged,
                left: None,
                fenced,
            };
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

    /// A flush that began after so many answered writes was acknowledged.
    pub fn acknowledged(&self, session: SessionRef, writes: usize) {
        self.with(|state| {
            let session = &mut state.sessions[session.0];
            session.acknowledged = session.acknowledged.max(writes);
            if let Some(left) = session.left.filter(|left| *left < writes) {
                let violation = format!(
                    "{} acknowledged {writes} writes after a later session had found {left} of them",
                    session.name
                );
                self.common.violation(violation);
            }
            if let Some(answered) = session.fenced.filter(|answered| *answered < writes) {
                let violation = format!(
                    "{} acknowledged {writes} writes, {answered} of them answered before its grant was taken back",
                    session.name
                );
                self.common.violation(violation);
            }
        });
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
        self.acknowledged(session, at_least);
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

/// The first blocks that differ.
pub fn differences(expected: &[u64], found: &[u64]) -> String {
    let differing = expected.iter().zip(found).enumerate().filter(|(_, (expected, found))| expected != found);
    let some: Vec<_> = differing
        .take(8)
        .map(|(block, (expected, found))| format!("block {block}: expected {expected}, found {found}"))
        .collect();
    some.join("; ")
}

/// The bytes of `blocks` blocks from `from` on that carry `mark`.
pub fn bytes_of(mark: u64, range: std::ops::Range<u64>) -> Bytes {
    let words = |block: u64| (mark << 16 | block).to_le_bytes().repeat(BLOCK_BYTES as usize / 8);
    range.flat_map(words).collect()
}

/// The marks in `bytes`, which begin at block `from`; an error if a block is none that was ever written there.
pub fn marks_in(bytes: &[u8], from: u64) -> Result<Blocks, String> {
    let blocks = bytes.chunks_exact(BLOCK_BYTES as usize);
    (from..)
        .zip(blocks)
        .map(|(block, bytes)| {
            let mut first = [0; 8];
            first.copy_from_slice(&bytes[..8]);
            let word = u64::from_le_bytes(first);
            if bytes.chunks_exact(8).any(|word| word != first) {
                return Err(format!("block {block} is torn"));
            }
            match (word >> 16, word & 0xffff) {
                (0, 0) => Ok(0),
                (mark, at) if at == block => Ok(mark),
                (mark, at) => Err(format!("block {block} holds block {at} of write {mark}")),
            }
        })
        .collect()
}
