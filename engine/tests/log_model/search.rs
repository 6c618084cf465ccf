//! Breadth-first search through all states, so that a violation comes with the shortest way to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::rc::Rc;

use holdfast_engine::ids::ObjectId;
use holdfast_engine::log::{Control, GrantMode, Op};

use crate::actors::{self, Controller, Node, Phase, Step};
use crate::state::{Replayed, Rule, Scope, Store, World};

/// What a search has found.
#[derive(Debug)]
pub enum Outcome {
    Holds { states: usize },
    Violation(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    nodes: [Node; 2],
    controller: Controller,
    store: Store,
}

/// Explores every interleaving in `scope` with the rules `without` left out.
pub fn search(scope: Scope, without: &[Rule]) -> Outcome {
    let mut world = World::new(scope, without);
    let first = Rc::new(start(&mut world));
    let mut parents: HashMap<Rc<State>, usize> = HashMap::from([(Rc::clone(&first), usize::MAX)]);
    // All states met, in the order in which they were; those from `next` on are yet to be expanded.
    let mut queue = vec![first];
    let mut next = 0;
    while let Some(state) = queue.get(next).cloned() {
        for successor in successors(&mut world, &state) {
            if parents.contains_key(&successor) {
                continue;
            }
            let violation = violation(&mut world, &successor.store);
            let successor = Rc::new(successor);
            parents.insert(Rc::clone(&successor), next);
            queue.push(successor);
            if let Some(what) = violation {
                return Outcome::Violation(format!("{what}\n{}", trace(&world, &queue, &parents)));
            }
        }
        next += 1;
    }
    Outcome::Holds { states: next }
}

/// Record 1 grants the volume to A; a checkpoint covers the empty log before it.
fn start(world: &mut World) -> State {
    let created = ObjectId([0xff; 16]);
    let control = Control { last: created, size_bytes: 1 << 20, ..Control::default() };
    let state = world.intern(Replayed { control, writes: BTreeSet::new() });
    let grant = Op::Grant { node: "A".into(), mode: GrantMode::ReadWrite };
    let grant = world.record("g0", created, None, grant);
    let store = Store {
        log: BTreeMap::from([(1, grant)]),
        roots: vec![(0, state)],
        acknowledged: BTreeSet::new(),
        late: BTreeSet::new(),
    };
    let node = Node { phase: Phase::Idle, opens: 0 };
    State { nodes: [node; 2], controller: Controller { step: Step::Idle, left: world.scope.moves }, store }
}

fn successors(world: &mut World, state: &State) -> Vec<State> {
    let mut all = Vec::new();
    for (place, name) in [(0, 'A'), (1, 'B')] {
        let mut out = Vec::new();
        actors::node(world, name, state.nodes[place], &state.store, &mut out);
        all.extend(out.into_iter().map(|(node, store)| {
            let mut nodes = state.nodes;
            nodes[place] = node;
            State { nodes, controller: state.controller, store }
        }));
    }
    let mut out = Vec::new();
    actors::controller(world, state.controller, &state.store, &mut out);
    all.extend(out.into_iter().map(|(controller, store)| State { nodes: state.nodes, controller, store }));
    for (number, record) in &state.store.late {
        if !state.store.log.contains_key(number) {
            let mut store = state.store.with(*number, *record);
            store.late.remove(&(*number, *record));
            all.push(State { nodes: state.nodes, controller: state.controller, store });
        }
    }
    all
}

fn violation(world: &mut World, store: &Store) -> Option<String> {
    let state = world.replay(store);
    let Replayed { control, writes } = &world.replayed[state as usize];
    let lost: Vec<_> = store.acknowledged.difference(writes).map(|write| world.name(*write)).collect();
    if !lost.is_empty() {
        return Some(format!("acknowledged and lost: {lost:?}"));
    }
    let session = control.session.as_ref().filter(|_| !world.scope.same_node)?;
    let owner = (session.id.0[0] as char).to_string();
    let holds = control.grant.as_ref().is_some_and(|grant| grant.node == owner);
    (!holds).then(|| format!("a session of {owner}, which does not hold the grant"))
}

/// The way to the last state.
fn trace(world: &World, queue: &[Rc<State>], parents: &HashMap<Rc<State>, usize>) -> String {
    let mut way = Vec::new();
    let mut place = queue.len() - 1;
    while let Some(state) = queue.get(place) {
        way.push(state);
        place = parents[state];
    }
    let mut text = String::new();
    for (step, state) in way.iter().rev().enumerate() {
        let name = |record: &u16| world.name(*record);
        let log: Vec<_> = state.store.log.iter().map(|(n, record)| format!("{n}:{}", name(record))).collect();
        let roots: Vec<_> = state.store.roots.iter().map(|(number, _)| number).collect();
        let acknowledged: Vec<_> = state.store.acknowledged.iter().map(name).collect();
        let late: Vec<_> =
            state.store.late.iter().map(|(n, record)| format!("{n}:{}", name(record))).collect();
        let [a, b] = state.nodes.map(|node| phase(&node));
        let _ = writeln!(
            text,
            "{step:3} A {a:7} B {b:7} log {} | roots {roots:?} | acknowledged {acknowledged:?} | late {late:?}",
            log.join(" ")
        );
    }
    text
}

fn phase(node: &Node) -> &'static str {
    match node.phase {
        Phase::Idle => "idle",
        Phase::Replay(..) => "replay",
        Phase::Open(..) => "open",
        Phase::Verify(..) => "verify",
        Phase::Again(..) => "again",
        Phase::Live(..) => "live",
        Phase::Changed(..) => "changed",
        Phase::Over => "over",
    }
}
