//! The states of the model.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::ids::{ObjectId, SessionId};
use holdfast_engine::log::{Control, Grant, GrantMode, Inert, Op, Record};

use crate::history::{Draft, History, RecordRef, Replay, ReplayedRef};

/// How far the search goes.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// The highest number in the log.
    pub highest: u8,
    /// Writes of a session.
    pub writes: u8,
    /// Grants that the controller makes.
    pub moves: u8,
    /// Sessions of a node.
    pub opens: u8,
    /// Puts that are late at once.
    pub late: usize,
    /// Both actors are processes of the node that holds the grant.
    pub same_node: bool,
}

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Records that end sessions are never deleted.
    KeepSessionRecords,
    /// After its append a newcomer lists the checkpoints.
    Relist,
    /// An Open needs the latest grant.
    Grant,
    /// A retried put carries the same content.
    SameBytes,
    /// Records name their predecessor.
    Chain,
    /// A newcomer that finds a newer checkpoint replays again from it (instead of only comparing numbers).
    ReplayAgain,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Store {
    /// The log.
    pub log: BTreeMap<u8, RecordRef>,
    /// The checkpoints, oldest first.
    pub roots: Vec<(u8, ReplayedRef)>,
    /// The writes that were acknowledged.
    pub acknowledged: BTreeSet<RecordRef>,
    /// Puts that may still land.
    pub late: BTreeSet<(u8, RecordRef)>,
}

impl Store {
    /// The newest checkpoint.
    pub fn newest(&self) -> (u8, ReplayedRef) {
        *self.roots.last().expect("the model begins with a checkpoint")
    }

    /// This store with one more record.
    pub fn with(&self, number: u8, record: RecordRef) -> Self {
        let mut store = self.clone();
        store.log.insert(number, record);
        store
    }
}

/// Replays follow the set of writes that took effect.
#[derive(Debug)]
pub struct Rules {
    without: Vec<Rule>,
}

impl Rules {
    fn keeps(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }
}

impl Replay for Rules {
    type Follows = BTreeSet<RecordRef>;

    fn apply(
        &self,
        control: &mut Control,
        writes: &mut BTreeSet<RecordRef>,
        (place, record): (RecordRef, &Record),
    ) -> Result<(), Inert> {
        let mut record = record.clone();
        if !self.keeps(Rule::Chain) {
            record.prev = control.last;
        }
        let held = control.grant.clone();
        let is_open = matches!(record.ops[0], Op::Open { .. });
        if let (Op::Open { grant, resumes, .. }, false) = (&mut record.ops[0], self.keeps(Rule::Grant)) {
            *resumes = control.session.as_ref().map_or(SessionId::NONE, |session| session.id);
            control.grant = Some(Grant { id: *grant, node: String::new(), mode: GrantMode::ReadWrite });
        }
        control.apply(&record)?;
        if is_open && !self.keeps(Rule::Grant) {
            control.grant = held;
        }
        if matches!(record.ops[0], Op::Write { .. }) {
            writes.insert(place);
        }
        Ok(())
    }
}

/// The scope, the rules and what was met so far.
#[derive(Debug)]
pub struct World {
    pub scope: Scope,
    pub history: History<Rules>,
}

impl World {
    pub fn new(scope: Scope, without: &[Rule]) -> Self {
        Self { scope, history: History::new(Rules { without: without.to_vec() }) }
    }

    /// Whether `rule` is in force.
    pub fn keeps(&self, rule: Rule) -> bool {
        self.history.rules.keeps(rule)
    }

    /// The record called `name` that follows `prev`. Where it lies does not matter here.
    pub fn record(&mut self, name: &str, prev: ObjectId, session: Option<SessionId>, op: Op) -> RecordRef {
        self.history.record(name, Draft { number: 0, session, prev, complete: 0, ops: vec![op] })
    }

    /// What `record` makes of `state`; none if it is inert.
    pub fn effect(&mut self, state: ReplayedRef, record: RecordRef) -> Option<ReplayedRef> {
        self.history.effect(state, record)
    }

    /// The state after `record`, whether it takes effect or not.
    pub fn step(&mut self, state: ReplayedRef, record: RecordRef) -> ReplayedRef {
        self.history.step(state, record)
    }

    /// What a fresh, undisturbed replay yields.
    pub fn replay(&mut self, store: &Store) -> ReplayedRef {
        let (mut number, mut state) = store.newest();
        number += 1;
        while let Some(record) = store.log.get(&number) {
            state = self.step(state, *record);
            number += 1;
        }
        state
    }

    pub fn control(&self, state: ReplayedRef) -> &Control {
        self.history.control(state)
    }
}
