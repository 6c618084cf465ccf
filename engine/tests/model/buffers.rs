//! The dirty buffer and its takeover: what was answered is neither lost nor repeated over newer data.
//!
//! One block of a volume is written; the values count up, so a head whose value falls has gone back. The buffer outlives
//! the processes of node A, which put its entries into the log a part at a time. A put's reply may get lost, and the put
//! of a process that has died may still land. Then the volume may move to another node, which writes, and back.
//!
//! Checked: the head never goes back; what a flush has answered for is in the log; and as long as the grant is in force,
//! what was answered is in the log or in the buffer.

use holdfast_engine::ids::{GrantId, SessionId};
use holdfast_engine::log::{Control, GrantMode, Inert, Op, Record};
use holdfast_engine::map::Extent;

use crate::history::{Draft, History, Log, RecordRef, Replay, ReplayedRef};
use crate::search::{self, Model, holds};

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// A write is answered when it lies in the buffer.
    AnswerWhenBuffered,
    /// An entry is freed when the log has it.
    FreeWhenLogged,
    /// A restarted process opens a session of its own before it commits what the buffer holds.
    NewSession,
    /// A successor skips the entries that the log has.
    SkipLogged,
    /// Entries belong to a grant, and are dropped under another.
    DropOfOtherGrant,
    /// A successor waits for its predecessor's death.
    WaitForDeath,
}

/// Values that are written at most.
const VALUES: u8 = 4;
/// Sessions of node A at most.
const SESSIONS: u8 = 3;

/// The value of the head, and whether it ever fell.
#[derive(Debug, Clone, Copy)]
struct Head {
    value: u8,
    fell: bool,
}

/// Nothing of what replays decide is left out here.
#[derive(Debug)]
struct Rules;

impl Replay for Rules {
    type Follows = Head;

    fn apply(
        &self,
        control: &mut Control,
        head: &mut Head,
        (_, record): (RecordRef, &Record),
    ) -> Result<(), Inert> {
        control.apply(record)?;
        if let Some(value) = written(record) {
            *head = Head { value, fell: head.fell || value < head.value };
        }
        Ok(())
    }
}

/// A value stands in a record as an address.
fn write(value: u8) -> Op {
    Op::Write { extents: vec![Extent { lba: u64::from(value), blocks: 1, location: None }] }
}

fn written(record: &Record) -> Option<u8> {
    record.ops.iter().find_map(|op| match op {
        Op::Write { extents } => extents.first().map(|extent| extent.lba as u8),
        _ => None,
    })
}

/// The buffer: values, of which the first has the number after `freed`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Buffer {
    grant: GrantId,
    freed: u8,
    entries: Vec<u8>,
}

impl Buffer {
    fn last(&self) -> u8 {
        self.freed + self.entries.len() as u8
    }

    fn free(&mut self, number: u8) {
        if number > self.freed {
            self.entries.drain(..usize::from(number - self.freed).min(self.entries.len()));
            self.freed = number;
        }
    }

    /// Puts an entry in its place. Where two processes count by themselves, it may be another's, or be freed already.
    fn put(&mut self, number: u8, value: u8) {
        match usize::from(number).checked_sub(usize::from(self.freed) + 1) {
            Some(place) if place < self.entries.len() => self.entries[place] = value,
            Some(_) => self.entries.push(value),
            None => {}
        }
    }
}

/// A process of node A with an open session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    session: SessionId,
    /// Where it appends next, and the state before that.
    next: u8,
    state: ReplayedRef,
    /// The record in flight, its value, and the entry up to which it completes.
    pending: Option<(RecordRef, u8, u8)>,
    /// The number of its newest entry.
    last: u8,
    /// A value that was answered before it lies in the buffer.
    held: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    log: Log,
    /// A put that may still land.
    late: Option<(u8, RecordRef)>,
    buffer: Buffer,
    processes: Vec<Process>,
    sessions: u8,
    /// The newest value written anywhere, answered under the grant in force, and flushed.
    written: u8,
    answered: u8,
    flushed: u8,
    moved: bool,
}

#[derive(Debug)]
struct Takeover {
    without: Option<Rule>,
    history: History<Rules>,
}

impl Takeover {
    fn new(without: Option<Rule>) -> Self {
        Self { without, history: History::new(Rules) }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// A process starts, under the grant in force, and finds what the buffer holds.
    fn start(&mut self, state: &State) -> Option<State> {
        let control = self.history.control(state.log.state);
        let grant = control.grant.as_ref().filter(|grant| grant.node == "A")?.id;
        let predecessor = control.session.as_ref().map(|session| session.id);
        let mut next = state.clone();
        let session = match predecessor.filter(|_| !self.keeps(Rule::NewSession)) {
            Some(predecessor) => predecessor,
            None => {
                let resumes = predecessor.unwrap_or(SessionId::NONE);
                let open = Op::Open { grant, resumes, endpoint: String::new() };
                next.log.append(&mut self.history, "open", None, vec![open]).then_some(())?;
                self.history.control(next.log.state).last
            }
        };
        if next.buffer.grant != grant && self.keeps(Rule::DropOfOtherGrant) {
            next.buffer = Buffer { grant, freed: 0, entries: Vec::new() };
        }
        if self.keeps(Rule::SkipLogged) {
            next.buffer.free(self.history.control(next.log.state).buffer_complete as u8);
        }
        let last = next.buffer.last();
        let place = (next.log.next(), next.log.state);
        next.processes.push(Process {
            session,
            next: place.0,
            state: place.1,
            pending: None,
            last,
            held: None,
        });
        next.sessions += 1;
        Some(next)
    }

    /// What the process at `place` may do.
    fn process(&mut self, state: &State, place: usize, out: &mut Vec<(&'static str, State)>) {
        let process = &state.processes[place];
        let mut dies = state.clone();
        dies.processes.remove(place);
        if let Some((record, ..)) = process.pending {
            let mut late = dies.clone();
            late.late = Some((process.next, record));
            out.push(("dies, its put on the way", late));
        }
        out.push(("dies", dies));
        if let Some(value) = process.held {
            let mut buffered = state.clone();
            buffered.processes[place].held = None;
            buffered.processes[place].last += 1;
            buffered.buffer.put(process.last + 1, value);
            out.push(("puts what it answered into the buffer", buffered));
        } else if state.written < VALUES {
            let mut answered = state.clone();
            answered.written += 1;
            // What is answered under a grant that was taken back may be dropped.
            let grant = |state: ReplayedRef| self.history.control(state).grant.as_ref().map(|grant| grant.id);
            if grant(process.state) == grant(state.log.state) {
                answered.answered = answered.written;
            }
            if self.keeps(Rule::AnswerWhenBuffered) {
                answered.processes[place].last += 1;
                answered.buffer.put(process.last + 1, answered.written);
            } else {
                answered.processes[place].held = Some(answered.written);
            }
            out.push(("buffers and answers a write", answered));
        }
        match process.pending {
            None => self.begin(state, place, out),
            Some(pending) => self.put(state, place, pending, out),
        }
    }

    /// Makes a record of the oldest entries: of one, or more.
    fn begin(&mut self, state: &State, place: usize, out: &mut Vec<(&'static str, State)>) {
        let process = &state.processes[place];
        for (entry, value) in state.buffer.entries.iter().enumerate() {
            let number = state.buffer.freed + entry as u8 + 1;
            let draft = Draft {
                number: process.next,
                session: Some(process.session),
                prev: self.history.control(process.state).last,
                complete: u64::from(number),
                ops: vec![write(*value)],
            };
            // Two processes may make one at the same place, of the same entries.
            let name = format!("w{}.{value}.{}", process.next, state.sessions);
            let record = self.history.record(&name, draft);
            let mut begun = state.clone();
            begun.processes[place].pending = Some((record, *value, number));
            if !self.keeps(Rule::FreeWhenLogged) {
                begun.buffer.free(number);
            }
            out.push(("makes a record", begun));
        }
    }

    fn put(
        &mut self,
        state: &State,
        place: usize,
        (record, value, number): (RecordRef, u8, u8),
        out: &mut Vec<(&'static str, State)>,
    ) {
        let process = &state.processes[place];
        let mut landed = state.clone();
        match state.log.get(process.next) {
            None => {
                if !landed.log.put(&mut self.history, record) {
                    return;
                }
                out.push(("puts its record, the reply is lost", landed.clone()));
            }
            // Only it writes in its session, one record at a time, so this one is its own.
            Some(found) if self.history.get(found).session == process.session => {}
            Some(_) => {
                landed.processes.remove(place);
                out.push(("finds its session over", landed));
                return;
            }
        }
        let mine = &mut landed.processes[place];
        mine.next += 1;
        mine.state = self.history.step(mine.state, record);
        mine.pending = None;
        landed.buffer.free(number);
        landed.flushed = landed.flushed.max(value);
        out.push(("has its record in the log", landed));
    }

    /// Takes the volume from A.
    fn detach(&mut self, state: &State) -> Option<State> {
        let grant = self.history.control(state.log.state).grant.as_ref()?.id;
        let mut next = state.clone();
        next.log.append(&mut self.history, "revoke", None, vec![Op::Revoke { grant }]).then_some(())?;
        next.answered = 0;
        Some(next)
    }

    /// Has another node write, and gives the volume to A again.
    fn come_back(&mut self, state: &State) -> Option<State> {
        if self.history.control(state.log.state).grant.is_some() || state.written == VALUES {
            return None;
        }
        let mut next = state.clone();
        next.moved = true;
        next.written += 1;
        next.flushed = next.written;
        let history = &mut self.history;
        let log = &mut next.log;
        let grant = |node: &str| vec![Op::Grant { node: node.into(), mode: GrantMode::ReadWrite }];
        log.append(history, "grantB", None, grant("B"));
        let held = history.control(log.state).last;
        let open = Op::Open { grant: held, resumes: SessionId::NONE, endpoint: String::new() };
        log.append(history, "openB", None, vec![open]);
        let session = history.control(log.state).last;
        log.append(history, "writeB", Some(session), vec![write(next.written)]);
        log.append(history, "revokeB", None, vec![Op::Revoke { grant: held }]);
        log.append(history, "grantA", None, grant("A")).then_some(next)
    }
}

impl Model for Takeover {
    type State = State;

    fn starts(&mut self) -> Vec<State> {
        let head = Head { value: 0, fell: false };
        let mut log = Log::new(&mut self.history, Control::default(), head);
        let grant = Op::Grant { node: "A".into(), mode: GrantMode::ReadWrite };
        log.append(&mut self.history, "grant", None, vec![grant]);
        vec![State {
            log,
            late: None,
            buffer: Buffer { grant: GrantId::NONE, freed: 0, entries: Vec::new() },
            processes: Vec::new(),
            sessions: 0,
            written: 0,
            answered: 0,
            flushed: 0,
            moved: false,
        }]
    }

    fn steps(&mut self, state: &State, out: &mut Vec<(&'static str, State)>) {
        let room =
            state.processes.is_empty() || (!self.keeps(Rule::WaitForDeath) && state.processes.len() == 1);
        if state.sessions < SESSIONS && room {
            out.extend(self.start(state).map(|next| ("a process takes over", next)));
        }
        for place in 0..state.processes.len() {
            self.process(state, place, out);
        }
        if let Some((number, record)) = state.late {
            let mut next = State { late: None, ..state.clone() };
            if next.log.next() == number && next.log.put(&mut self.history, record) {
                out.push(("a late put lands", next));
            }
        }
        if !state.moved {
            out.extend(self.detach(state).map(|next| ("the volume is detached", next)));
            out.extend(self.come_back(state).map(|next| ("another node writes, and gives back", next)));
        }
    }

    fn violation(&mut self, state: &State) -> Option<String> {
        let head = self.history.follows(state.log.state);
        if head.fell {
            return Some("an old write was repeated over a newer one".into());
        }
        if head.value < state.flushed {
            return Some(format!("a flush has answered for write {}, which is lost", state.flushed));
        }
        let kept = head.value.max(state.buffer.entries.last().copied().unwrap_or_default());
        (kept < state.answered).then(|| format!("write {} was answered and is lost", state.answered))
    }

    /// The volume has moved and come back, and what was written after that is in the log.
    fn is_complete(&mut self, state: &State) -> bool {
        state.moved && state.flushed == VALUES && state.buffer.entries.is_empty()
    }

    fn show(&self, state: &State) -> String {
        let State { buffer, processes, answered, flushed, late, .. } = state;
        let late = late.map(|(number, record)| format!("{number}:{}", self.history.name(record)));
        let log = state.log.show(&self.history);
        let (freed, entries, processes) = (buffer.freed, &buffer.entries, processes.len());
        format!(
            "log {log} | late {late:?} | {processes} processes | buffer {freed}+{entries:?} | answered {answered} | \
             flushed {flushed}"
        )
    }
}

#[track_caller]
fn violated(without: Rule) {
    search::violated(Takeover::new(Some(without)), &[without]);
}

#[test]
fn the_rules_hold() {
    holds(Takeover::new(None));
}

#[test]
fn a_write_is_answered_when_it_lies_in_the_buffer() {
    violated(Rule::AnswerWhenBuffered);
}

#[test]
fn an_entry_is_freed_when_the_log_has_it() {
    violated(Rule::FreeWhenLogged);
}

#[test]
fn a_restarted_process_is_a_new_session() {
    violated(Rule::NewSession);
}

#[test]
fn a_successor_skips_what_the_log_has() {
    violated(Rule::SkipLogged);
}

#[test]
fn entries_of_another_grant_are_dropped() {
    violated(Rule::DropOfOtherGrant);
}

#[test]
fn a_successor_waits_for_its_predecessors_death() {
    violated(Rule::WaitForDeath);
}
