//! Clones and pins: what a clone needs stays, however its creation, its ancestors' deletion and its own end interleave.
//!
//! Four volumes, each a clone of the snapshot of the one before, whose map may name all that came before. For each there
//! may be a creator, somebody who gives its creation up, somebody who deletes its snapshot, and an owner whose head comes
//! to name less and who lets go of pins. A listing is no moment: it passes the places of the pins one by one, in either
//! order, while the others go on.
//!
//! Checked: what an existing clone's head or snapshot names is there.

mod actors;
mod state;

use holdfast_engine::log::{Control, Op};

use crate::history::{ControlOnly, History, Log};
use crate::search::{self, Model, holds};
use state::{Creator, Deleter, Description, Rule, Set, Settler, State, VOLUMES, Volume};

/// What there is at first, and who acts.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Volumes that exist at first: the oldest ones. Each has its pins and a live snapshot.
    exist: usize,
    /// Volumes that there may be at all.
    volumes: usize,
    /// Whether creations are given up.
    settles: bool,
    /// Whether the oldest snapshot is deleted from the beginning.
    deleted: bool,
}

/// A clone of a snapshot that may be deleted meanwhile.
const CLONE: Scope = Scope { exist: 1, volumes: 2, settles: true, deleted: false };
/// A clone of a clone.
const GRANDCHILD: Scope = Scope { exist: 2, volumes: 3, settles: true, deleted: false };
/// A clone of a clone of a clone, of which only the first exists at first.
const GREAT_GRANDCHILD: Scope = Scope { exist: 2, volumes: 4, settles: false, deleted: true };

#[derive(Debug)]
pub struct World {
    scope: Scope,
    without: Option<Rule>,
    history: History<ControlOnly>,
}

impl World {
    fn new(scope: Scope, without: Option<Rule>) -> Self {
        Self { scope, without, history: History::new(ControlOnly) }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn volume(&mut self, place: usize) -> Volume {
        let mut log = Log::empty(&mut self.history, ());
        let exists = place < self.scope.exist;
        let ancestors: Vec<usize> = (0..place).collect();
        let ancestors = Set::of(&ancestors);
        if exists {
            let create = Op::Create { size_bytes: 1 << 20 };
            log.append(&mut self.history, "create", None, vec![create]);
            let cut = Op::Snapshot { name: "s".into(), meta: String::new() };
            log.append(&mut self.history, "cut", None, vec![Op::Maintain, cut]);
        }
        let pins: Vec<usize> = (place + 1..self.scope.exist).collect();
        Volume {
            log,
            description: if exists { Description::Parents(ancestors) } else { Description::Missing },
            pins: Set::of(&pins),
            data: true,
            names: if exists { ancestors } else { Set::default() },
            snapshot_names: if exists { ancestors.with(place) } else { Set::default() },
        }
    }
}

impl Model for World {
    type State = State;

    fn starts(&mut self) -> Vec<State> {
        let mut volumes = std::array::from_fn(|place| self.volume(place));
        let mut deleters = [Deleter::Idle; VOLUMES];
        if self.scope.deleted {
            let Volume { log, .. } = &mut volumes[0];
            let control: &Control = self.history.control(log.state);
            let deletes = control.snapshots.keys().map(|snapshot| Op::DeleteSnapshot { snapshot: *snapshot });
            let ops = std::iter::once(Op::Maintain).chain(deletes).collect();
            log.append(&mut self.history, "delete", None, ops);
            deleters[0] = Deleter::Deleted;
        }
        let state = |oldest_first| State {
            volumes: volumes.clone(),
            creators: [Creator::Idle; VOLUMES],
            settlers: [Settler::Idle; VOLUMES],
            deleters,
            oldest_first,
        };
        vec![state(true), state(false)]
    }

    fn steps(&mut self, state: &State, out: &mut Vec<(&'static str, State)>) {
        for volume in 0..self.scope.volumes {
            if volume >= self.scope.exist {
                actors::create(self, state, volume, out);
                if self.scope.settles {
                    actors::settle(self, state, volume, out);
                }
            }
            if volume + 1 < self.scope.volumes {
                actors::delete(self, state, volume, out);
            }
            actors::live(self, state, volume, out);
        }
    }

    fn violation(&mut self, state: &State) -> Option<String> {
        for (place, volume) in state.volumes.iter().enumerate() {
            let needs = volume.needs(place, &self.history);
            let gone = needs.iter().find(|ancestor| !state.volumes[*ancestor].data);
            if let Some(ancestor) = gone {
                return Some(format!("volume {place} needs what is gone of volume {ancestor}"));
            }
        }
        None
    }

    /// The youngest clone exists, and what it needs no more is deleted.
    fn is_complete(&mut self, state: &State) -> bool {
        state.volumes[self.scope.volumes - 1].exists(&self.history) && !state.volumes[0].data
    }

    fn show(&self, state: &State) -> String {
        let volume = |place: usize| {
            let Volume { log, pins, data, names, snapshot_names, .. } = &state.volumes[place];
            let list = |set: &Set| set.iter().map(|volume| volume.to_string()).collect::<String>();
            let (pins, names, of_snapshot) = (list(pins), list(names), list(snapshot_names));
            let data = if *data { "" } else { " GONE" };
            format!(
                "{place}{data} [{}] names {names} snapshot {of_snapshot} pins {pins}",
                log.show(&self.history)
            )
        };
        let volumes: Vec<String> = (0..self.scope.volumes).map(volume).collect();
        volumes.join(" | ")
    }
}

#[track_caller]
fn violated(scope: Scope, without: Rule) {
    search::violated(World::new(scope, Some(without)), &[without]);
}

#[test]
fn the_rules_hold_for_a_clone() {
    holds(World::new(CLONE, None));
}

#[test]
fn the_rules_hold_for_a_clone_of_a_clone() {
    holds(World::new(GRANDCHILD, None));
}

#[test]
fn the_rules_hold_for_a_clone_of_a_clone_of_a_clone() {
    holds(World::new(GREAT_GRANDCHILD, None));
}

#[test]
fn a_creator_looks_again_after_its_pins() {
    violated(CLONE, Rule::ConfirmAfterPins);
}

#[test]
fn a_deleter_appends_its_record_before_it_lists() {
    violated(CLONE, Rule::DeleteBeforeList);
}

#[test]
fn dead_comes_before_pins_are_removed() {
    violated(CLONE, Rule::DeadBeforeUnpin);
}

/// As long as the pin on the source is there, the source's snapshot is, whose map names the ancestors too.
#[test]
fn pins_on_further_ancestors_are_a_second_line() {
    holds(World::new(GRANDCHILD, Some(Rule::PinEvery)));
}

/// As long as the snapshot is there its map names the ancestor, so that its owner holds the pin.
#[test]
fn to_look_for_the_pins_of_the_source_is_a_second_line() {
    holds(World::new(GRANDCHILD, Some(Rule::ConfirmSourcesPins)));
}

#[test]
fn a_pin_stays_for_a_deleted_snapshot_that_is_pinned_itself() {
    violated(GRANDCHILD, Rule::PinnedMapsCount);
}

#[test]
fn a_clone_lets_go_of_its_source_last() {
    violated(GRANDCHILD, Rule::SourceLast);
}
