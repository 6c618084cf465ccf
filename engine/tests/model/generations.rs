//! Generations of snapshot maps: a collector rewrites the map of a snapshot that clones may need.
//!
//! A collector writes a new generation (a map and the segment that it names), switches to it with a record, and lists
//! the pins; what came before goes when there is no pin. It may die at any moment and begin anew. Meanwhile a clone of
//! the snapshot is created, and a clone of that clone, which begins with the same map; both come to need none of it and
//! let go of their pins.
//!
//! Checked: the generation that the snapshot names is there, and so is the one that a clone names.

use std::collections::BTreeMap;

use holdfast_engine::ids::SnapshotId;
use holdfast_engine::log::{Control, Grant, GrantMode, Op, Session, Snapshot};

use crate::history::{ControlOnly, History, Log, id};
use crate::search::{self, Model, holds};

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// What a generation consists of is there before the record that switches to it.
    WriteBeforeSwitch,
    /// The pins are listed after the switch.
    ListAfterSwitch,
    /// Any pin keeps the old generations.
    PinsKeep,
    /// A clone keeps the pin on its source as long as it names any ancestor.
    SourceLast,
    /// A creator looks again, with its pin in place, whether the generation is still the one that it has read.
    ConfirmGeneration,
}

/// Switches at most.
const SWITCHES: u8 = 2;
/// The snapshot.
const SNAPSHOT: SnapshotId = SnapshotId(1);
/// Whose pins there may be, and where in a listing they stand: the worst case is that the younger one stands first.
const CLONES: usize = 2;

/// Where the collector stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Collector {
    Idle,
    /// The new generation is written.
    Written,
    /// It lists the pins. This is the next place.
    Lists(usize),
    /// It has seen no pin: all generations before this one go.
    Deletes {
        before: u8,
    },
}

/// Where a clone stands. It begins with a map of some generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Descendant {
    Idle,
    Found(u8),
    Pinned(u8),
    Confirmed(u8),
    Exists(u8),
    /// It exists, and names nothing of its ancestors any more.
    Independent,
    GivenUp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    log: Log,
    /// Which generations are there, one bit each.
    there: u8,
    collector: Collector,
    /// The clone of the snapshot, and the clone of that clone.
    clones: [Descendant; CLONES],
    pins: [bool; CLONES],
    /// Whether the first clone has a snapshot, which begins with the map that the clone began with.
    source: Option<u8>,
}

impl State {
    fn has(&self, generation: u8) -> bool {
        self.there & (1 << generation) != 0
    }
}

#[derive(Debug)]
struct Generations {
    without: Option<Rule>,
    history: History<ControlOnly>,
}

impl Generations {
    fn new(without: Option<Rule>) -> Self {
        Self { without, history: History::new(ControlOnly) }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn generation(&self, state: &State) -> u8 {
        self.history.control(state.log.state).snapshots[&SNAPSHOT].generation as u8
    }

    /// Switches to the next generation.
    fn switch(&mut self, next: &mut State) {
        let generation = self.generation(next) + 1;
        let map = id(&format!("map{generation}"));
        let switch = Op::SwitchSnapshotMap { snapshot: SNAPSHOT, generation: u32::from(generation), map };
        next.log.append(&mut self.history, "switch", Some(id("session")), vec![switch]);
    }

    fn collect(&mut self, state: &State, out: &mut Vec<(&'static str, State)>) {
        let mut next = state.clone();
        let generation = self.generation(state);
        let lists = Collector::Lists(0);
        match state.collector {
            Collector::Idle => {
                // Older generations may be left from before a crash, or because they were pinned.
                if state.there != 1 << generation && self.keeps(Rule::ListAfterSwitch) {
                    out.push((
                        "the collector looks for pins again",
                        State { collector: lists, ..state.clone() },
                    ));
                }
                if generation == SWITCHES {
                    return;
                }
                next.collector = Collector::Written;
                if self.keeps(Rule::WriteBeforeSwitch) {
                    next.there |= 2 << generation;
                } else {
                    self.switch(&mut next);
                }
                out.push(("the collector writes a generation", next));
            }
            Collector::Written => {
                if !self.keeps(Rule::WriteBeforeSwitch) {
                    next.there |= 1 << generation;
                } else if self.keeps(Rule::ListAfterSwitch) {
                    self.switch(&mut next);
                }
                next.collector = match self.keeps(Rule::PinsKeep) {
                    true => lists,
                    false => Collector::Deletes { before: self.generation(&next) },
                };
                out.push(("the collector switches", next));
            }
            Collector::Lists(CLONES) => {
                if !self.keeps(Rule::ListAfterSwitch) {
                    self.switch(&mut next);
                }
                next.collector = Collector::Deletes { before: self.generation(&next) };
                out.push(("a listing is complete", next));
            }
            Collector::Lists(place) => {
                next.collector = match state.pins[CLONES - 1 - place] {
                    true => Collector::Idle,
                    false => Collector::Lists(place + 1),
                };
                out.push(("a listing passes a pin's place", next));
            }
            Collector::Deletes { before } => {
                next.there &= !((1 << before) - 1);
                next.collector = Collector::Idle;
                out.push(("the collector deletes what came before", next));
            }
        }
        if state.collector != Collector::Idle {
            out.push(("the collector dies", State { collector: Collector::Idle, ..state.clone() }));
        }
    }

    /// The creation of the clone at `place`, and its end as a clone.
    fn clone(&mut self, state: &State, place: usize, out: &mut Vec<(&'static str, State)>) {
        let mut next = state.clone();
        let source = if place == 0 { Some(self.generation(state)) } else { state.source };
        let to = &mut next.clones[place];
        match state.clones[place] {
            Descendant::Idle => {
                // One that finds the map object deleted looks again for the newest.
                if let Some(generation) = source.filter(|generation| place > 0 || state.has(*generation)) {
                    *to = Descendant::Found(generation);
                    out.push(("a creator finds a map", next));
                }
            }
            Descendant::Found(generation) => {
                *to = Descendant::Pinned(generation);
                next.pins[place] = true;
                out.push(("a creator puts its pin", next));
            }
            Descendant::Pinned(generation) => {
                let same = source == Some(generation) || (place == 0 && !self.keeps(Rule::ConfirmGeneration));
                let pinned = place == 0 || state.pins[0];
                *to = if same && pinned { Descendant::Confirmed(generation) } else { Descendant::GivenUp };
                out.push(("a creator looks again", next));
            }
            Descendant::Confirmed(generation) => {
                *to = Descendant::Exists(generation);
                if place == 0 {
                    next.source = Some(generation);
                }
                out.push(("a clone exists", next));
            }
            Descendant::Exists(_) => {
                *to = Descendant::Independent;
                out.push(("a clone names its ancestors no more", next));
            }
            Descendant::Independent if state.pins[place] && (place > 0 || state.source.is_none()) => {
                next.pins[place] = false;
                out.push(("a clone lets go of its pin", next));
            }
            Descendant::GivenUp if state.pins[place] => {
                next.pins[place] = false;
                out.push(("a creation that was given up is unpinned", next));
            }
            Descendant::Independent | Descendant::GivenUp => {}
        }
    }
}

impl Model for Generations {
    type State = State;

    fn starts(&mut self) -> Vec<State> {
        let snapshot = Snapshot {
            name: "s".into(),
            meta: String::new(),
            time_ms: 0,
            size_bytes: 1 << 20,
            deleted: false,
            generation: 0,
            map: Some(id("map0")),
        };
        let grant = id("grant");
        let control = Control {
            grant: Some(Grant { id: grant, node: "A".into(), mode: GrantMode::ReadWrite }),
            session: Some(Session { id: id("session"), grant, endpoint: String::new() }),
            snapshots: BTreeMap::from([(SNAPSHOT, snapshot)]),
            ..Control::default()
        };
        vec![State {
            log: Log::new(&mut self.history, control, ()),
            there: 1,
            collector: Collector::Idle,
            clones: [Descendant::Idle; CLONES],
            pins: [false; CLONES],
            source: None,
        }]
    }

    fn steps(&mut self, state: &State, out: &mut Vec<(&'static str, State)>) {
        self.collect(state, out);
        for place in 0..CLONES {
            self.clone(state, place, out);
        }
        // The model of clones shows that a confirmed pin of the second clone keeps that snapshot. Once that clone exists
        // it may come to need nothing of the first clone, and still something of what that descends from.
        let pinned = match state.clones[1] {
            Descendant::Confirmed(_) => true,
            Descendant::Exists(_) => self.keeps(Rule::SourceLast),
            _ => false,
        };
        if state.source.is_some() && !pinned {
            out.push(("the clone's snapshot is forgotten", State { source: None, ..state.clone() }));
        }
    }

    fn violation(&mut self, state: &State) -> Option<String> {
        let current = self.generation(state);
        if !state.has(current) {
            return Some(format!("the snapshot names generation {current}, which is not there"));
        }
        state.clones.iter().find_map(|clone| match clone {
            Descendant::Exists(generation) if !state.has(*generation) => {
                Some(format!("a clone names generation {generation}, which is gone"))
            }
            _ => None,
        })
    }

    /// Both clones were made of the first generation, and only the last one is left.
    fn is_complete(&mut self, state: &State) -> bool {
        state.clones == [Descendant::Independent; CLONES] && state.there == 1 << SWITCHES
    }

    fn show(&self, State { log, there, collector, clones, pins, .. }: &State) -> String {
        let log = log.show(&self.history);
        format!("log {log} | there {there:03b} | {collector:?} | clones {clones:?} | pins {pins:?}")
    }
}

#[track_caller]
fn violated(without: Rule) {
    search::violated(Generations::new(Some(without)), &[without]);
}

#[test]
fn the_rules_hold() {
    holds(Generations::new(None));
}

#[test]
fn a_generation_is_written_before_the_switch() {
    violated(Rule::WriteBeforeSwitch);
}

#[test]
fn pins_are_listed_after_the_switch() {
    violated(Rule::ListAfterSwitch);
}

#[test]
fn any_pin_keeps_the_old_generations() {
    violated(Rule::PinsKeep);
}

#[test]
fn a_clone_lets_go_of_its_source_last() {
    violated(Rule::SourceLast);
}

#[test]
fn a_creator_confirms_the_generation() {
    violated(Rule::ConfirmGeneration);
}
