//! What a volume may show: a plain list of blocks, and which writes were answered and acknowledged.
//!
//! A block holds a *mark*: the number of the write that it comes from (0: zeros). Within a session, writes enter the log
//! in order, so whatever becomes of the session, what is left of it is a *prefix* of its writes: at least all that were
//! acknowledged (or answered, where the dirty buffer survives under the same grant), at most all that were begun. A
//! session that takes over such a buffer goes on where its predecessor was: it shows those writes before they are in the
//! log, and they may still get lost like any that nobody has flushed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, RecordNumber, SnapshotId, VolumeId};

/// The volume's size in blocks.
pub const BLOCKS: u64 = 96;

/// The marks of all blocks.
pub type Blocks = Vec<u64>;

/// Everything known about one volume. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Model {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    sessions: Vec<Session>,
    /// The grants that were made, and of each whether it was taken back.
    grants: BTreeMap<GrantId, Grant>,
    cuts: Vec<Cut>,
    /// Clones: their names, the volumes, and the snapshots that they were made of.
    clones: Vec<(String, VolumeId, String)>,
    marks: u64,
    violations: Vec<String>,
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
}

/// A session, as its clients name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRef(usize);

impl Model {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("no holder panics"))
    }

    pub fn violation(&self, what: String) {
        self.with(|state| state.violations.push(what));
    }

    pub fn violations(&self) -> Vec<String> {
        self.with(|state| state.violations.clone())
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
            let empty = vec![0; BLOCKS as usize];
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
                        state.violations.push(violation);
                    }
                    taken_over = last.left.filter(|_| kept).map(|left| {
                        (last.base.clone(), last.writes[..left].to_vec(), last.acknowledged)
                    });
                }
                None if blocks != empty => {
                    state.violations.push(format!("{name} finds data in an empty volume"));
                }
                None => {}
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
            state.marks += u64::from(data);
            let mark = if data { state.marks } else { 0 };
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
                state.violations.push(violation);
            }
            if let Some(answered) = session.fenced.filter(|answered| *answered < writes) {
                let violation = format!(
                    "{} acknowledged {writes} writes, {answered} of them answered before its grant was taken back",
                    session.name
                );
                state.violations.push(violation);
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

    /// A clone of snapshot `cut` was made.
    pub fn cloned(&self, name: String, clone: VolumeId, cut: String) {
        self.with(|state| state.clones.push((name, clone, cut)));
    }

    /// The clones that were made.
    pub fn clones(&self) -> Vec<(String, VolumeId, String)> {
        self.with(|state| state.clones.clone())
    }

    /// Snapshot `name`, or a clone of it, shows `blocks`.
    pub fn check_cut(&self, who: &str, name: &str, blocks: &[u64]) {
        self.with(|state| {
            let Some(cut) = state.cuts.iter().find(|cut| cut.name == name) else {
                return state.violations.push(format!("snapshot {name} was never asked for"));
            };
            let session = &state.sessions[cut.session];
            let most = cut.at_most.unwrap_or(session.writes.len()).min(session.left.unwrap_or(usize::MAX));
            if session.prefix(cut.at_least..=most, blocks).is_none() {
                let what = differences(&session.after(most.min(session.writes.len())), blocks);
                let violation = format!(
                    "{who} of snapshot {name} of {} holds no prefix of {}..={most} writes: {what}",
                    session.name, cut.at_least
                );
                state.violations.push(violation);
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
