//! Checkpoints, snapshots and the collector: what a replay needs is there, whoever sleeps in between.
//!
//! Sessions follow each other under one grant; each may pause for ever at any step while its successors go on, and its
//! next put or delete may come at any later time. A session writes one block (a segment for each value), cuts snapshots,
//! takes checkpoints (the maps of snapshots that have none, a page, the root) and deletes what nothing needs. With no
//! session open the controller cuts a snapshot, with a record and nothing else, or deletes the volume.
//!
//! Checked: what a fresh replay yields can be read; each snapshot in it reads what the block held when it was cut; and
//! so does what the session that owns the volume builds on.

mod session;
mod state;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::ids::SnapshotId;
use holdfast_engine::log::{Control, GrantMode, Op};

use crate::history::{History, Log, ReplayedRef};
use crate::search::{self, Model, holds};
use state::{FIRST_PAGE, Head, Object, Root, Rule, Rules, Scope, State, Work, map_id, map_object};

const SNAPSHOTS: Scope = Scope {
    writes: 2,
    cuts: 1,
    controller_cuts: 1,
    sessions: 2,
    checkpoints: 1,
    collections: 1,
    deletes: true,
};
const COLLECTION: Scope = Scope {
    writes: 1,
    cuts: 0,
    controller_cuts: 0,
    sessions: 2,
    checkpoints: 2,
    collections: 1,
    deletes: false,
};

#[derive(Debug)]
pub struct Checkpoints {
    scope: Scope,
    without: Option<Rule>,
    history: History<Rules>,
}

impl Checkpoints {
    fn new(scope: Scope, without: Option<Rule>) -> Self {
        Self { scope, without, history: History::new(Rules) }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// The state at the log's end, from the root of that number.
    fn replay(&mut self, state: &State, number: u8) -> ReplayedRef {
        let mut replayed = state.roots[&number].state;
        let mut next = number + 1;
        while let Some(record) = state.log.get(next) {
            replayed = self.history.step(replayed, record);
            next += 1;
        }
        replayed
    }

    /// Snapshots of `state` that have no map yet, and what they hold.
    fn unmapped(&self, state: ReplayedRef) -> BTreeMap<SnapshotId, u8> {
        let control = self.history.control(state);
        let missing = |snapshot: &SnapshotId| control.snapshots[snapshot].map.is_none();
        let cuts = &self.history.follows(state).cuts;
        cuts.iter()
            .filter(|(snapshot, _)| missing(snapshot))
            .map(|(snapshot, value)| (*snapshot, *value))
            .collect()
    }

    /// `state` with maps for `snapshots`, written by the session at `place`.
    fn mapped(
        &mut self,
        state: ReplayedRef,
        snapshots: &BTreeMap<SnapshotId, u8>,
        place: usize,
    ) -> ReplayedRef {
        let mut control = self.history.control(state).clone();
        let mut head = self.history.follows(state).clone();
        for (snapshot, value) in snapshots {
            if let Some(found) = control.snapshots.get_mut(snapshot) {
                found.map.get_or_insert(map_id(snapshot.0 as u8, *value, place));
            }
            head.cuts.remove(snapshot);
        }
        self.history.state(control, head)
    }

    /// Everything that `state` names: its head's segment, its snapshots' maps and their segments.
    fn named(&self, state: ReplayedRef, needed: &mut BTreeSet<Object>) {
        needed.insert(Object::Segment(self.history.follows(state).value));
        for map in self.history.control(state).snapshots.values().filter_map(|snapshot| snapshot.map) {
            let object = map_object(map);
            needed.insert(object);
            if let Object::Map { value, .. } = object {
                needed.insert(Object::Segment(value));
            }
        }
    }

    fn controller(&mut self, state: &State, out: &mut Vec<(&'static str, State)>) {
        if state.controller_cuts < self.scope.controller_cuts {
            let cut = Op::Snapshot { name: "controller".into(), meta: String::new() };
            let mut next = state.clone();
            next.controller_cuts += 1;
            if next.log.append(&mut self.history, "cut", None, vec![Op::Maintain, cut]) {
                out.push(("the controller cuts a snapshot", next));
            }
        }
        let control = self.history.control(state.log.state);
        if !self.scope.deletes || control.dead {
            return;
        }
        let mut next = state.clone();
        if let Some(grant) = control.grant.as_ref().map(|grant| grant.id) {
            next.detached = true;
            next.log.append(&mut self.history, "revoke", None, vec![Op::Revoke { grant }]);
            out.push(("the controller detaches the volume", next));
            return;
        }
        let replayed = self.replay(state, state.newest().0);
        let complete =
            self.history.control(replayed).snapshots.values().all(|snapshot| snapshot.map.is_some());
        if complete || !self.keeps(Rule::CompleteBeforeDead) {
            next.log.append(&mut self.history, "dead", None, vec![Op::Maintain, Op::Dead]);
            out.push(("the controller deletes the volume", next));
        }
    }

    /// What is wrong with a state that a fresh replay yields, or that a session builds on.
    fn wrong(&self, state: &State, replayed: ReplayedRef, is_fresh: bool) -> Option<String> {
        let truth = &self.history.follows(state.log.state).cuts;
        let control = self.history.control(replayed);
        let head = self.history.follows(replayed);
        if !state.objects.contains(&Object::Segment(head.value)) {
            return Some(format!("the head's value {} is gone", head.value));
        }
        for (snapshot, found) in &control.snapshots {
            let held = match found.map.map(map_object) {
                Some(map) if !state.objects.contains(&map) => return Some(format!("{map:?} is gone")),
                Some(Object::Map { value, .. }) => Some(value),
                Some(other) => return Some(format!("{other:?} stands for a map")),
                None if !is_fresh => continue,
                None if control.dead => {
                    return Some(format!("nobody writes the map of snapshot {snapshot} any more"));
                }
                None => head.cuts.get(snapshot).copied(),
            };
            if held != Some(truth[snapshot]) {
                return Some(format!("snapshot {snapshot} is {held:?}, and was {}", truth[snapshot]));
            }
            if !state.objects.contains(&Object::Segment(truth[snapshot])) {
                return Some(format!("what snapshot {snapshot} holds is gone"));
            }
        }
        None
    }
}

impl Model for Checkpoints {
    type State = State;

    fn starts(&mut self) -> Vec<State> {
        let mut log = Log::new(&mut self.history, Control::default(), Head::default());
        let roots = BTreeMap::from([(1, Root { state: log.state, page: FIRST_PAGE })]);
        let grant = Op::Grant { node: "A".into(), mode: GrantMode::ReadWrite };
        log.append(&mut self.history, "grant", None, vec![grant]);
        vec![State {
            log,
            roots,
            objects: BTreeSet::from([FIRST_PAGE, Object::Segment(0)]),
            sessions: Vec::new(),
            writes: 0,
            cuts: 0,
            controller_cuts: 0,
            detached: false,
        }]
    }

    fn steps(&mut self, state: &State, out: &mut Vec<(&'static str, State)>) {
        out.extend(self.open(state).map(|next| ("somebody replays to open the volume", next)));
        for place in 0..state.sessions.len() {
            self.session(state, place, out);
        }
        self.controller(state, out);
    }

    fn violation(&mut self, state: &State) -> Option<String> {
        let (number, root) = state.newest();
        if !state.objects.contains(&root.page) {
            return Some(format!("the newest root, {number}, names {:?}, which is gone", root.page));
        }
        let replayed = self.replay(state, number);
        if let Some(wrong) = self.wrong(state, replayed, true) {
            return Some(wrong);
        }
        let owner = self.history.control(state.log.state).session.as_ref()?.id;
        let settled = |work: &Work| !matches!(work, Work::Opens { .. } | Work::Lists { .. });
        let session = state.sessions.iter().find(|session| session.id == owner && settled(&session.work))?;
        if !state.objects.contains(&session.page) {
            return Some(format!("the owner builds on {:?}, which is gone", session.page));
        }
        self.wrong(state, session.state, false)
    }

    /// All that the scope has was done, the second session has collected, and the snapshots have their maps.
    fn is_complete(&mut self, state: &State) -> bool {
        let done = state.sessions.iter().filter(|session| session.has_root).count() == self.scope.sessions
            && (state.writes, state.cuts, state.controller_cuts)
                == (self.scope.writes, self.scope.cuts, self.scope.controller_cuts);
        let replayed = self.replay(state, state.newest().0);
        done && self.unmapped(replayed).is_empty() && !state.objects.contains(&FIRST_PAGE)
    }

    fn show(&self, state: &State) -> String {
        let State { log, roots, objects, sessions, .. } = state;
        let works: Vec<&Work> = sessions.iter().map(|session| &session.work).collect();
        let roots: Vec<&u8> = roots.keys().collect();
        format!(
            "log {} | roots {roots:?} | objects {objects:?} | sessions {works:?}",
            log.show(&self.history)
        )
    }
}

#[track_caller]
fn violated(scope: Scope, without: Rule) {
    search::violated(Checkpoints::new(scope, Some(without)), &[without]);
}

#[test]
fn the_rules_hold_for_snapshots() {
    holds(Checkpoints::new(SNAPSHOTS, None));
}

#[test]
fn the_rules_hold_for_collection() {
    holds(Checkpoints::new(COLLECTION, None));
}

#[test]
fn no_checkpoint_passes_a_snapshot_without_a_map() {
    violated(SNAPSHOTS, Rule::MapsWithRoot);
}

#[test]
fn the_next_opener_writes_a_map_that_is_missing() {
    violated(SNAPSHOTS, Rule::MapsOfOthers);
}

#[test]
fn what_a_root_names_is_there_before_it() {
    violated(SNAPSHOTS, Rule::ObjectsBeforeRoot);
}

#[test]
fn the_collector_spares_snapshots_without_maps() {
    violated(SNAPSHOTS, Rule::MarkUnmapped);
}

#[test]
fn a_volume_is_deleted_when_its_snapshots_are_complete() {
    violated(SNAPSHOTS, Rule::CompleteBeforeDead);
}

#[test]
fn a_collector_first_puts_a_root_of_its_own() {
    violated(COLLECTION, Rule::OwnRootFirst);
}

#[test]
fn a_collector_appends_before_it_deletes() {
    violated(COLLECTION, Rule::AppendBeforeDelete);
}

#[test]
fn a_collector_looks_before_and_after_that_append() {
    violated(COLLECTION, Rule::LookTwice);
}

#[test]
fn an_opener_builds_on_the_newest_root_after_its_open() {
    violated(COLLECTION, Rule::ListAfterOpen);
}
