//! The states of the model: small numbers that stand for records and replayed states, which are kept once each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_engine::ids::{ObjectId, RecordNumber, SessionId, VolumeId};
use holdfast_engine::log::{Control, Grant, GrantMode, Op, Record};

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
    /// After its append a newcomer lists the checkpoints again.
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

/// A record, by its place in [`World::records`].
pub type RecordRef = u16;
/// A replayed state, by its place in [`World::replayed`].
pub type ReplayedRef = u16;

/// What a replay yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The engine's state.
    pub control: Control,
    /// The writes that took effect.
    pub writes: BTreeSet<RecordRef>,
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

/// Every record and every replayed state met so far.
#[derive(Debug)]
pub struct World {
    pub scope: Scope,
    without: Vec<Rule>,
    pub records: Vec<Record>,
    names: HashMap<String, RecordRef>,
    pub replayed: Vec<Replayed>,
    found: HashMap<String, ReplayedRef>,
    /// What a record makes of a state; none if it is inert.
    steps: HashMap<(ReplayedRef, RecordRef), Option<ReplayedRef>>,
}

impl World {
    pub fn new(scope: Scope, without: &[Rule]) -> Self {
        Self {
            scope,
            without: without.to_vec(),
            records: Vec::new(),
            names: HashMap::new(),
            replayed: Vec::new(),
            found: HashMap::new(),
            steps: HashMap::new(),
        }
    }

    /// Whether `rule` is in force.
    pub fn keeps(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    /// The record called `name` that follows `prev`.
    pub fn record(&mut self, name: &str, prev: ObjectId, session: Option<SessionId>, op: Op) -> RecordRef {
        let full = format!("{name} {prev} {session:?} {op:?}");
        if let Some(found) = self.names.get(&full) {
            return *found;
        }
        // The name is the nonce: it must differ where the model's nonces differ, and only there.
        let mut id = ObjectId::NONE;
        id.0[..name.len()].copy_from_slice(name.as_bytes());
        let record = Record {
            volume: VolumeId([1; 16]),
            number: RecordNumber(0),
            id,
            session: session.unwrap_or(if matches!(op, Op::Open { .. }) { id } else { SessionId::NONE }),
            prev,
            time_ms: 0,
            buffer_complete: 0,
            ops: vec![op],
        };
        self.records.push(record);
        let place = (self.records.len() - 1) as RecordRef;
        self.names.insert(full, place);
        place
    }

    /// The place of a replayed state.
    pub fn intern(&mut self, replayed: Replayed) -> ReplayedRef {
        let place = self.replayed.len() as ReplayedRef;
        let found = *self.found.entry(format!("{replayed:?}")).or_insert(place);
        if found == place {
            self.replayed.push(replayed);
        }
        found
    }

    /// What `record` makes of `state`; none if it is inert.
    pub fn effect(&mut self, state: ReplayedRef, record: RecordRef) -> Option<ReplayedRef> {
        if let Some(known) = self.steps.get(&(state, record)) {
            return *known;
        }
        let before = self.replayed[state as usize].clone();
        let next = self.apply(before, record).map(|after| self.intern(after));
        self.steps.insert((state, record), next);
        next
    }

    fn apply(&self, before: Replayed, place: RecordRef) -> Option<Replayed> {
        let mut record = self.records[place as usize].clone();
        let Replayed { mut control, mut writes } = before;
        if !self.keeps(Rule::Chain) {
            record.prev = control.last;
        }
        let held = control.grant.clone();
        let is_open = matches!(record.ops[0], Op::Open { .. });
        if let (Op::Open { grant, resumes, .. }, false) = (&mut record.ops[0], self.keeps(Rule::Grant)) {
            *resumes = control.session.as_ref().map_or(SessionId::NONE, |session| session.id);
            control.grant = Some(Grant { id: *grant, node: String::new(), mode: GrantMode::ReadWrite });
        }
        control.apply(&record).ok()?;
        if is_open && !self.keeps(Rule::Grant) {
            control.grant = held;
        }
        if matches!(record.ops[0], Op::Write { .. }) {
            writes.insert(place);
        }
        Some(Replayed { control, writes })
    }

    /// The state after `record`, whether it takes effect or not.
    pub fn step(&mut self, state: ReplayedRef, record: RecordRef) -> ReplayedRef {
        self.effect(state, record).unwrap_or(state)
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
        &self.replayed[state as usize].control
    }

    /// The nonce of a record.
    pub fn name(&self, record: RecordRef) -> String {
        let id = self.records[record as usize].id;
        String::from_utf8_lossy(&id.0).trim_end_matches('\0').to_owned()
    }
}
