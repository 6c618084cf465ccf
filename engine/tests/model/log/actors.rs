//! What the actors may do next. Each step is one atomic call to the store.

use holdfast_engine::ids::{GrantId, SessionId};
use holdfast_engine::log::{GrantMode, Op};

use super::state::{Rule, Store, World};
use crate::history::{RecordRef, ReplayedRef};

/// A writer in an open session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Writer {
    /// Where it appends next.
    next: u8,
    session: SessionId,
    state: ReplayedRef,
    /// Writes done.
    done: u8,
    /// The record in flight.
    pending: Option<RecordRef>,
}

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Idle,
    /// Replaying: the next number, the state so far, the checkpoint it began with.
    Replay(u8, ReplayedRef, u8),
    /// The log seemed to end there: about to put an Open.
    Open(u8, ReplayedRef, u8),
    /// The Open lies at this number: about to list the checkpoints again.
    Verify(u8, Writer, u8),
    /// There was a newer checkpoint: replaying from it, to see whether the session counts.
    Again(u8, ReplayedRef, SessionId, u8),
    Live(Writer),
    /// Retries its record with other content.
    Changed(Writer, RecordRef),
    Over,
}

/// A node, and how many sessions it has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    pub phase: Phase,
    pub opens: u8,
}

/// Where the controller stands, and how many grants are left to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Controller {
    pub step: Step,
    pub left: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    Idle,
    Replay(u8, ReplayedRef, u8),
    Put(u8, ReplayedRef, u8),
    /// Its record lies at this number; so many grants are left if it counts.
    Verify(u8, u8, u8),
    /// There was a newer checkpoint: what does it say?
    Check(u8, ReplayedRef, u8),
}

/// The next states of node `name`.
pub fn node(world: &mut World, name: char, node: Node, store: &Store, out: &mut Vec<(Node, Store)>) {
    let scope = world.scope;
    let to = |phase| Node { phase, ..node };
    match node.phase {
        Phase::Idle => {
            if node.opens < scope.opens {
                let (number, state) = store.newest();
                out.push((to(Phase::Replay(number + 1, state, number)), store.clone()));
            }
        }
        Phase::Replay(number, state, base) => {
            let next = if let Some(record) = store.log.get(&number) {
                Phase::Replay(number + 1, world.step(state, *record), base)
            } else if may_open(world, name, state) {
                Phase::Open(number, state, base)
            } else {
                Phase::Idle
            };
            out.push((to(next), store.clone()));
        }
        Phase::Open(number, state, base) => {
            if let Some(record) = store.log.get(&number) {
                out.push((to(Phase::Replay(number + 1, world.step(state, *record), base)), store.clone()));
            } else if number <= scope.highest {
                let open = open_record(world, name, node.opens, state);
                let session = world.history.get(open).id;
                let state = world.step(state, open);
                let writer = Writer { next: number + 1, session, state, done: 0, pending: None };
                let phase = if world.keeps(Rule::Relist) {
                    Phase::Verify(number, writer, base)
                } else {
                    Phase::Live(writer)
                };
                out.push((Node { phase, opens: node.opens + 1 }, store.with(number, open)));
            }
        }
        Phase::Verify(number, writer, base) => {
            let (newest, state) = store.newest();
            let next = if !world.keeps(Rule::ReplayAgain) {
                if newest >= number { Phase::Idle } else { Phase::Live(writer) }
            } else if newest == base {
                Phase::Live(writer)
            } else {
                Phase::Again(newest + 1, state, writer.session, newest)
            };
            out.push((to(next), store.clone()));
        }
        Phase::Again(number, state, session, base) => {
            let (newest, newest_state) = store.newest();
            let next = if let Some(record) = store.log.get(&number) {
                Phase::Again(number + 1, world.step(state, *record), session, base)
            } else if newest != base {
                Phase::Again(newest + 1, newest_state, session, newest)
            } else if world.control(state).session.as_ref().is_some_and(|current| current.id == session) {
                Phase::Live(Writer { next: number, session, state, done: 0, pending: None })
            } else {
                Phase::Idle
            };
            out.push((to(next), store.clone()));
        }
        Phase::Live(writer) => live(world, name, node, writer, store, out),
        Phase::Changed(writer, again) => changed(world, node, writer, again, store, out),
        Phase::Over => {}
    }
}

fn may_open(world: &World, name: char, state: ReplayedRef) -> bool {
    let holder = if world.scope.same_node { 'A' } else { name };
    let grant = &world.control(state).grant;
    !world.keeps(Rule::Grant) || grant.as_ref().is_some_and(|grant| grant.node == holder.to_string())
}

fn open_record(world: &mut World, name: char, opens: u8, state: ReplayedRef) -> RecordRef {
    let control = world.control(state);
    let grant = control.grant.as_ref().map_or(GrantId::NONE, |grant| grant.id);
    let resumes = control.session.as_ref().map_or(SessionId::NONE, |session| session.id);
    let prev = control.last;
    let endpoint = String::new();
    world.record(&format!("{name}s{opens}"), prev, None, Op::Open { grant, resumes, endpoint })
}

/// A write, which for the log is just a record of the session.
fn write_record(world: &mut World, name: &str, writer: &Writer) -> RecordRef {
    let prev = world.control(writer.state).last;
    world.record(name, prev, Some(writer.session), Op::Write { extents: Vec::new() })
}

fn live(
    world: &mut World,
    name: char,
    node: Node,
    writer: Writer,
    store: &Store,
    out: &mut Vec<(Node, Store)>,
) {
    let scope = world.scope;
    let to = |writer| Node { phase: Phase::Live(writer), ..node };
    // It may crash.
    out.push((Node { phase: Phase::Idle, ..node }, store.clone()));
    let Some(pending) = writer.pending else {
        if writer.done < scope.writes && writer.next <= scope.highest {
            let nonce = format!("{name}s{}w{}", node.opens - 1, writer.done);
            let record = write_record(world, &nonce, &writer);
            out.push((to(Writer { pending: Some(record), ..writer }), store.clone()));
        }
        let (newest, _) = store.newest();
        if writer.next - 1 > newest {
            let mut checkpointed = store.clone();
            checkpointed.roots.push((writer.next - 1, writer.state));
            out.push((to(writer), checkpointed));
        }
        if writer.next > newest {
            delete(world, to(writer), newest, store, out);
        }
        return;
    };
    let committed = Writer {
        next: writer.next + 1,
        state: world.step(writer.state, pending),
        done: writer.done + 1,
        pending: None,
        ..writer
    };
    match store.log.get(&writer.next) {
        Some(found) if world.history.get(*found).id == world.history.get(pending).id => {
            out.push((to(committed), acknowledge(store, pending)));
        }
        Some(found) => {
            if world.effect(writer.state, *found).is_some() || !world.keeps(Rule::Chain) {
                out.push((Node { phase: Phase::Over, ..node }, store.clone()));
            } else {
                // Inert: step over it.
                out.push((to(Writer { next: writer.next + 1, ..writer }), store.clone()));
            }
        }
        None if writer.next <= scope.highest => {
            let landed = store.with(writer.next, pending);
            out.push((to(committed), acknowledge(&landed, pending)));
            // Landed, and the reply was lost.
            out.push((to(writer), landed));
            if store.late.len() < scope.late {
                let mut late = store.clone();
                late.late.insert((writer.next, pending));
                let nonce = world.history.name(pending);
                if !world.keeps(Rule::SameBytes) && !nonce.ends_with('\'') {
                    let again = write_record(world, &format!("{nonce}'"), &writer);
                    out.push((Node { phase: Phase::Changed(writer, again), ..node }, late.clone()));
                }
                out.push((to(writer), late));
            }
        }
        None => {}
    }
}

/// Deletes a record that a checkpoint covers.
fn delete(world: &World, node: Node, covered: u8, store: &Store, out: &mut Vec<(Node, Store)>) {
    for (number, record) in store.log.range(..=covered) {
        if world.keeps(Rule::KeepSessionRecords) && world.history.get(*record).is_kept() {
            continue;
        }
        let mut deleted = store.clone();
        deleted.log.remove(number);
        out.push((node, deleted));
    }
}

/// Retried with other content; whatever is found under either nonce counts as ours.
fn changed(
    world: &mut World,
    node: Node,
    writer: Writer,
    again: RecordRef,
    store: &Store,
    out: &mut Vec<(Node, Store)>,
) {
    let committed = Writer {
        next: writer.next + 1,
        state: world.step(writer.state, again),
        done: writer.done + 1,
        pending: None,
        ..writer
    };
    let live = Node { phase: Phase::Live(committed), ..node };
    match store.log.get(&writer.next) {
        Some(found) if Some(*found) == writer.pending || *found == again => {
            out.push((live, acknowledge(store, again)));
        }
        Some(_) => out.push((Node { phase: Phase::Over, ..node }, store.clone())),
        None if writer.next <= world.scope.highest => {
            out.push((live, acknowledge(&store.with(writer.next, again), again)));
        }
        None => {}
    }
}

fn acknowledge(store: &Store, write: RecordRef) -> Store {
    let mut store = store.clone();
    store.acknowledged.insert(write);
    store
}

/// The next states of the controller.
pub fn controller(
    world: &mut World,
    controller: Controller,
    store: &Store,
    out: &mut Vec<(Controller, Store)>,
) {
    let Controller { step, left } = controller;
    let to = |step| Controller { step, left };
    let target = if left % 2 == 1 { 'B' } else { 'A' };
    match step {
        Step::Idle => {
            if left > 0 {
                let (number, state) = store.newest();
                out.push((to(Step::Replay(number + 1, state, number)), store.clone()));
            }
        }
        Step::Replay(number, state, base) => {
            let next = match store.log.get(&number) {
                Some(record) => Step::Replay(number + 1, world.step(state, *record), base),
                None => Step::Put(number, state, base),
            };
            out.push((to(next), store.clone()));
        }
        Step::Put(number, state, base) => {
            if let Some(record) = store.log.get(&number) {
                out.push((to(Step::Replay(number + 1, world.step(state, *record), base)), store.clone()));
            } else if number <= world.scope.highest {
                let control = world.control(state);
                let prev = control.last;
                let (kind, op, then) = match &control.grant {
                    Some(grant) => ('r', Op::Revoke { grant: grant.id }, left),
                    None => {
                        let grant = Op::Grant { node: target.to_string(), mode: GrantMode::ReadWrite };
                        ('g', grant, left - 1)
                    }
                };
                let record = world.record(&format!("c{kind}{left}@{number}"), prev, None, op);
                let next = if world.keeps(Rule::Relist) {
                    to(Step::Verify(number, then, base))
                } else {
                    Controller { step: Step::Idle, left: then }
                };
                out.push((next, store.with(number, record)));
            }
        }
        Step::Verify(number, then, base) => {
            let (newest, state) = store.newest();
            let next = if !world.keeps(Rule::ReplayAgain) {
                Controller { step: Step::Idle, left: if newest >= number { left } else { then } }
            } else if newest == base {
                Controller { step: Step::Idle, left: then }
            } else {
                to(Step::Check(newest + 1, state, then))
            };
            out.push((next, store.clone()));
        }
        Step::Check(number, state, then) => {
            let next = match store.log.get(&number) {
                Some(record) => to(Step::Check(number + 1, world.step(state, *record), then)),
                None => {
                    let holder = world.control(state).grant.as_ref().map(|grant| grant.node.clone());
                    let reached = then < left && holder == Some(target.to_string());
                    Controller { step: Step::Idle, left: if reached { then } else { left } }
                }
            };
            out.push((next, store.clone()));
        }
    }
}
