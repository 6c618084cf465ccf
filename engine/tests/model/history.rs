//! Records and the states that replays yield: kept once each, and named by small numbers.

use std::collections::HashMap;
use std::fmt::Debug;

use holdfast_engine::ids::{ObjectId, RecordNumber, SessionId, VolumeId};
use holdfast_engine::log::{Control, Inert, Op, Record};

/// A record, by its place in [`History::records`].
pub type RecordRef = u16;
/// A replayed state, by its place in [`History::replayed`].
pub type ReplayedRef = u16;

/// How a model replays: what it follows besides the control state, and which rules of the engine it bends.
pub trait Replay {
    /// What a replay follows besides the control state.
    type Follows: Clone + Debug;

    /// Applies a record, or says why it is inert; then nothing of the state counts. [`Control::apply`] unless the model
    /// leaves out a rule of that.
    fn apply(
        &self,
        control: &mut Control,
        follows: &mut Self::Follows,
        record: (RecordRef, &Record),
    ) -> Result<(), Inert>;
}

/// Follows nothing and bends nothing.
#[derive(Debug)]
pub struct ControlOnly;

impl Replay for ControlOnly {
    type Follows = ();

    fn apply(
        &self,
        control: &mut Control,
        (): &mut (),
        (_, record): (RecordRef, &Record),
    ) -> Result<(), Inert> {
        control.apply(record)
    }
}

/// What a record is made of, besides its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Its place in the log.
    pub number: u8,
    /// The session that appends it; none for the controller.
    pub session: Option<SessionId>,
    /// The record before it.
    pub prev: ObjectId,
    /// The entries of the buffer that it completes.
    pub complete: u64,
    /// What it does.
    pub ops: Vec<Op>,
}

/// Every record and every replayed state met so far.
#[derive(Debug)]
pub struct History<R: Replay> {
    /// How records are applied.
    pub rules: R,
    /// The records.
    pub records: Vec<Record>,
    /// The states.
    pub replayed: Vec<(Control, R::Follows)>,
    known_records: HashMap<String, RecordRef>,
    known_states: HashMap<String, ReplayedRef>,
    /// What a record makes of a state; none if it is inert.
    effects: HashMap<(ReplayedRef, RecordRef), Option<ReplayedRef>>,
}

impl<R: Replay> History<R> {
    /// No records yet.
    pub fn new(rules: R) -> Self {
        Self {
            rules,
            records: Vec::new(),
            replayed: Vec::new(),
            known_records: HashMap::new(),
            known_states: HashMap::new(),
            effects: HashMap::new(),
        }
    }

    /// The record called `name`. The name is the nonce: it must differ where nonces differ, and only there.
    pub fn record(&mut self, name: &str, draft: Draft) -> RecordRef {
        let place = self.records.len() as RecordRef;
        let found = *self.known_records.entry(format!("{name} {draft:?}")).or_insert(place);
        if found < place {
            return found;
        }
        let id = id(name);
        let opens = draft.ops.iter().any(|op| matches!(op, Op::Open { .. }));
        self.records.push(Record {
            volume: VolumeId([1; 16]),
            number: RecordNumber(u64::from(draft.number)),
            id,
            session: draft.session.unwrap_or(if opens { id } else { SessionId::NONE }),
            prev: draft.prev,
            time_ms: 0,
            buffer_complete: draft.complete,
            ops: draft.ops,
        });
        place
    }

    /// The place of a replayed state.
    pub fn state(&mut self, control: Control, follows: R::Follows) -> ReplayedRef {
        let place = self.replayed.len() as ReplayedRef;
        let found = *self.known_states.entry(format!("{control:?} {follows:?}")).or_insert(place);
        if found == place {
            self.replayed.push((control, follows));
        }
        found
    }

    /// What `record` makes of `state`; none if it is inert.
    pub fn effect(&mut self, state: ReplayedRef, record: RecordRef) -> Option<ReplayedRef> {
        if let Some(known) = self.effects.get(&(state, record)) {
            return *known;
        }
        let (mut control, mut follows) = self.replayed[usize::from(state)].clone();
        let applied =
            self.rules.apply(&mut control, &mut follows, (record, &self.records[usize::from(record)]));
        let next = applied.ok().map(|()| self.state(control, follows));
        self.effects.insert((state, record), next);
        next
    }

    /// The state after `record`, whether it takes effect or not.
    pub fn step(&mut self, state: ReplayedRef, record: RecordRef) -> ReplayedRef {
        self.effect(state, record).unwrap_or(state)
    }

    /// The control state.
    pub fn control(&self, state: ReplayedRef) -> &Control {
        &self.replayed[usize::from(state)].0
    }

    /// What the replay follows besides.
    pub fn follows(&self, state: ReplayedRef) -> &R::Follows {
        &self.replayed[usize::from(state)].1
    }

    /// The record.
    pub fn get(&self, record: RecordRef) -> &Record {
        &self.records[usize::from(record)]
    }

    /// Its name.
    pub fn name(&self, record: RecordRef) -> String {
        name(self.get(record).id)
    }
}

/// The id that stands for `name`.
pub fn id(name: &str) -> ObjectId {
    let mut id = ObjectId::NONE;
    id.0[..name.len()].copy_from_slice(name.as_bytes());
    id
}

/// The name that `id` was made from.
pub fn name(id: ObjectId) -> String {
    String::from_utf8_lossy(&id.0).trim_end_matches('\0').to_owned()
}

/// A log of which every record stays and takes effect: what the model of the [log](crate::log) shows of the real one.
/// A decision and its append are one step: had the log grown in between, the append would not have counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Log {
    /// The number of the first of them.
    first: u8,
    /// The records.
    pub records: Vec<RecordRef>,
    /// The state after them.
    pub state: ReplayedRef,
}

impl Log {
    /// The log of a volume that exists; its first record is not among `records`.
    pub fn new<R: Replay>(history: &mut History<R>, control: Control, follows: R::Follows) -> Self {
        let control = Control { last: id("created"), size_bytes: 1 << 20, ..control };
        Self { first: 2, records: Vec::new(), state: history.state(control, follows) }
    }

    /// The log of a volume that is not created yet.
    pub fn empty<R: Replay>(history: &mut History<R>, follows: R::Follows) -> Self {
        Self { first: 1, records: Vec::new(), state: history.state(Control::default(), follows) }
    }

    /// The number of the next record.
    pub fn next(&self) -> u8 {
        self.first + self.records.len() as u8
    }

    /// The record at `number`, if it is there.
    pub fn get(&self, number: u8) -> Option<RecordRef> {
        self.records.get(usize::from(number - self.first)).copied()
    }

    /// A record of `actor` at the end.
    pub fn draft<R: Replay>(
        &self,
        history: &mut History<R>,
        actor: &str,
        session: Option<SessionId>,
        ops: Vec<Op>,
    ) -> RecordRef {
        let number = self.next();
        let prev = history.control(self.state).last;
        history.record(&format!("{actor}{number}"), Draft { number, session, prev, complete: 0, ops })
    }

    /// Puts `record` at the end; it must have been made for this state. Says whether it was legal; else it is not put.
    pub fn put<R: Replay>(&mut self, history: &mut History<R>, record: RecordRef) -> bool {
        let Some(state) = history.effect(self.state, record) else { return false };
        self.records.push(record);
        self.state = state;
        true
    }

    /// Decides and appends.
    pub fn append<R: Replay>(
        &mut self,
        history: &mut History<R>,
        actor: &str,
        session: Option<SessionId>,
        ops: Vec<Op>,
    ) -> bool {
        let record = self.draft(history, actor, session, ops);
        self.put(history, record)
    }

    /// The names of the records.
    pub fn show<R: Replay>(&self, history: &History<R>) -> String {
        let names: Vec<String> = self.records.iter().map(|record| history.name(*record)).collect();
        names.join(" ")
    }
}
