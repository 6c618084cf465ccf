//! What a session does: it opens, writes, cuts snapshots, takes checkpoints and collects.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::ids::{SessionId, SnapshotId};
use holdfast_engine::log::Op;
use holdfast_engine::map::Extent;

use super::Checkpoints;
use super::state::{Head, Object, Root, Rule, Session, State, Work, map_id, map_object};
use crate::history::ReplayedRef;

impl Checkpoints {
    pub fn open(&mut self, state: &State) -> Option<State> {
        let (number, root) = state.newest();
        let control = self.history.control(state.log.state);
        if state.sessions.len() == self.scope.sessions || control.dead {
            return None;
        }
        let mut next = state.clone();
        next.sessions.push(Session {
            id: SessionId::NONE,
            next: 0,
            state: root.state,
            page: root.page,
            work: Work::Opens { root: number },
            checkpoints: 0,
            collections: 0,
            root: number,
            has_root: false,
        });
        Some(next)
    }

    /// Appends `ops` in the session at `place`, or finds it over.
    fn append(&mut self, state: &State, place: usize, ops: Vec<Op>) -> State {
        let mut next = state.clone();
        let session = &state.sessions[place];
        if state.log.next() != session.next
            || !next.log.append(&mut self.history, &format!("{place}."), Some(session.id), ops)
        {
            next.sessions[place].work = Work::Over;
            return next;
        }
        let record = next.log.get(session.next).expect("it was just appended");
        next.sessions[place].state = self.history.step(session.state, record);
        next.sessions[place].next += 1;
        next
    }

    pub fn session(&mut self, state: &State, place: usize, out: &mut Vec<(&'static str, State)>) {
        let session = &state.sessions[place];
        match &session.work {
            Work::Opens { root } => out.extend(self.put_open(state, place, *root)),
            Work::Lists { root } => {
                let (newest, _) = state.newest();
                let from = if self.keeps(Rule::ListAfterOpen) { newest } else { *root };
                out.push(("an opener lists the roots again", self.built_on(state, place, from)));
            }
            Work::Idle => self.idle(state, place, out),
            Work::Checkpoint { number, state: frozen, steps } => {
                self.write(state, place, out);
                self.checkpoint(state, place, (*number, *frozen, *steps), out);
            }
            Work::Appends(noted) => {
                let mut next = self.append(state, place, vec![Op::Noop]);
                if next.sessions[place].work != Work::Over {
                    next.sessions[place].work = Work::Looks(noted.clone());
                }
                out.push(("a collector appends", next));
            }
            Work::Looks(noted) => {
                let mut next = state.clone();
                let mut garbage = self.garbage(state, place);
                garbage.retain(|object| noted.contains(object) || !self.keeps(Rule::LookTwice));
                next.sessions[place].work = Work::Deletes(garbage);
                out.push(("a collector looks again", next));
            }
            Work::Deletes(garbage) => {
                let mut next = state.clone();
                let mut left = garbage.clone();
                next.sessions[place].work = match left.pop_first() {
                    Some(object) => {
                        next.objects.remove(&object);
                        Work::Deletes(left)
                    }
                    None => Work::Idle,
                };
                out.push(("a collector deletes", next));
            }
            Work::Over => {}
        }
    }

    fn put_open(&mut self, state: &State, place: usize, root: u8) -> Option<(&'static str, State)> {
        let control = self.history.control(state.log.state);
        let grant = control.grant.as_ref()?.id;
        let resumes = control.session.as_ref().map_or(SessionId::NONE, |session| session.id);
        let open = Op::Open { grant, resumes, endpoint: String::new() };
        let mut next = state.clone();
        next.log.append(&mut self.history, &format!("open{place}."), None, vec![open]).then_some(())?;
        let id = self.history.control(next.log.state).last;
        let number = next.log.next();
        // It has read the root that it replayed from, even if that is deleted by now.
        let mut replayed = state.sessions[place].state;
        for number in root + 1..number {
            let record = next.log.get(number).expect("the log has no gaps");
            replayed = self.history.step(replayed, record);
        }
        let session = &mut next.sessions[place];
        session.id = id;
        session.next = number;
        session.state = replayed;
        session.work = Work::Lists { root };
        self.forget_others(&mut next, place);
        Some(("an opener appends its Open", next))
    }

    /// An opener builds on the root of that number, if it is newer than the one that it began with.
    fn built_on(&mut self, state: &State, place: usize, from: u8) -> State {
        let mut next = state.clone();
        if from != state.sessions[place].root {
            let mut replayed = state.roots[&from].state;
            for number in from + 1..state.sessions[place].next {
                let record = state.log.get(number).expect("the log has no gaps");
                replayed = self.history.step(replayed, record);
            }
            next.sessions[place].state = replayed;
            next.sessions[place].page = state.roots[&from].page;
            next.sessions[place].root = from;
        }
        next.sessions[place].work = Work::Idle;
        self.forget_others(&mut next, place);
        next
    }

    /// Without [`Rule::MapsOfOthers`] an opener takes the snapshots that it has met for complete.
    fn forget_others(&mut self, next: &mut State, place: usize) {
        if !self.keeps(Rule::MapsOfOthers) {
            let replayed = next.sessions[place].state;
            let control = self.history.control(replayed).clone();
            let head = Head { cuts: BTreeMap::new(), ..self.history.follows(replayed).clone() };
            next.sessions[place].state = self.history.state(control, head);
        }
    }

    fn idle(&mut self, state: &State, place: usize, out: &mut Vec<(&'static str, State)>) {
        self.write(state, place, out);
        let session = &state.sessions[place];
        let number = session.next - 1;
        if session.checkpoints < self.scope.checkpoints && number > session.root {
            let mut next = state.clone();
            next.sessions[place].checkpoints += 1;
            next.sessions[place].work = Work::Checkpoint { number, state: session.state, steps: 0 };
            out.push(("a session begins a checkpoint", next));
        }
        let may_collect = session.has_root || !self.keeps(Rule::OwnRootFirst);
        if may_collect && session.collections < self.scope.collections {
            let mut next = state.clone();
            next.sessions[place].collections += 1;
            let noted = self.garbage(state, place);
            next.sessions[place].work =
                if self.keeps(Rule::AppendBeforeDelete) { Work::Appends(noted) } else { Work::Looks(noted) };
            out.push(("a collector looks", next));
        }
        let mut closed = self.append(state, place, vec![Op::Close]);
        closed.sessions[place].work = Work::Over;
        out.push(("a session closes", closed));
    }

    /// A write or a snapshot, which may also come while a checkpoint is under way.
    fn write(&mut self, state: &State, place: usize, out: &mut Vec<(&'static str, State)>) {
        if state.writes < self.scope.writes {
            let value = state.writes + 1;
            let write =
                Op::Write { extents: vec![Extent { lba: u64::from(value), blocks: 1, location: None }] };
            let mut next = self.append(state, place, vec![write]);
            next.writes = value;
            next.objects.insert(Object::Segment(value));
            out.push(("a session writes", next));
        }
        if state.cuts < self.scope.cuts {
            let cut = Op::Snapshot { name: "owner".into(), meta: String::new() };
            let mut next = self.append(state, place, vec![cut]);
            next.cuts += 1;
            out.push(("a session cuts a snapshot", next));
        }
    }

    fn checkpoint(
        &mut self,
        state: &State,
        place: usize,
        (number, frozen, steps): (u8, ReplayedRef, u8),
        out: &mut Vec<(&'static str, State)>,
    ) {
        let mut next = state.clone();
        let maps = if self.keeps(Rule::MapsWithRoot) { self.unmapped(frozen) } else { BTreeMap::new() };
        let page = Object::Page { session: place, number };
        let objects_first = self.keeps(Rule::ObjectsBeforeRoot);
        if objects_first == (steps == 0) {
            let of =
                |(snapshot, value): (&SnapshotId, &u8)| map_object(map_id(snapshot.0 as u8, *value, place));
            next.objects.extend(maps.iter().map(of).chain([page]));
        } else {
            let mut control_and_head = self.mapped(frozen, &maps, place);
            let control = self.history.control(control_and_head).clone();
            let head = Head { cuts: BTreeMap::new(), ..self.history.follows(control_and_head).clone() };
            control_and_head = self.history.state(control, head);
            next.roots.insert(number, Root { state: control_and_head, page });
            let installed = self.mapped(state.sessions[place].state, &maps, place);
            let session = &mut next.sessions[place];
            session.state = installed;
            session.page = page;
            session.root = number;
            session.has_root = true;
        }
        next.sessions[place].work =
            if steps == 0 { Work::Checkpoint { number, state: frozen, steps: 1 } } else { Work::Idle };
        out.push(("a session goes on with its checkpoint", next));
    }

    /// What neither the session at `place` nor one of the two newest roots needs.
    fn garbage(&self, state: &State, place: usize) -> BTreeSet<Object> {
        let session = &state.sessions[place];
        let mut needed = BTreeSet::from([session.page]);
        self.named(session.state, &mut needed);
        if self.keeps(Rule::MarkUnmapped) {
            needed.extend(self.unmapped(session.state).values().map(|value| Object::Segment(*value)));
        }
        for root in state.roots.values().rev().take(2) {
            needed.insert(root.page);
            self.named(root.state, &mut needed);
        }
        state.objects.difference(&needed).copied().collect()
    }
}
