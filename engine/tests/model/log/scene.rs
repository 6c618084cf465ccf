//! Two nodes, a controller and a store, as a model to search.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::ids::ObjectId;
use holdfast_engine::log::{Control, GrantMode, Op};

use super::actors::{self, Controller, Node, Phase, Step};
use super::state::{Store, World};
use crate::search::Model;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    nodes: [Node; 2],
    controller: Controller,
    store: Store,
}

impl Model for World {
    type State = State;

    /// Record 1 grants the volume to A; a checkpoint covers the empty log before it.
    fn starts(&mut self) -> Vec<State> {
        let created = ObjectId([0xff; 16]);
        let control = Control { last: created, size_bytes: 1 << 20, ..Control::default() };
        let state = self.history.state(control, BTreeSet::new());
        let grant = Op::Grant { node: "A".into(), mode: GrantMode::ReadWrite };
        let grant = self.record("g0", created, None, grant);
        let store = Store {
            log: BTreeMap::from([(1, grant)]),
            roots: vec![(0, state)],
            acknowledged: BTreeSet::new(),
            late: BTreeSet::new(),
        };
        let node = Node { phase: Phase::Idle, opens: 0 };
        let controller = Controller { step: Step::Idle, left: self.scope.moves };
        vec![State { nodes: [node; 2], controller, store }]
    }

    fn steps(&mut self, state: &State, all: &mut Vec<(&'static str, State)>) {
        for (place, name) in [(0, 'A'), (1, 'B')] {
            let mut out = Vec::new();
            actors::node(self, name, state.nodes[place], &state.store, &mut out);
            all.extend(out.into_iter().map(|(node, store)| {
                let mut nodes = state.nodes;
                nodes[place] = node;
                (["A", "B"][place], State { nodes, controller: state.controller, store })
            }));
        }
        let mut out = Vec::new();
        actors::controller(self, state.controller, &state.store, &mut out);
        all.extend(
            out.into_iter()
                .map(|(controller, store)| ("controller", State { nodes: state.nodes, controller, store })),
        );
        for (number, record) in &state.store.late {
            if !state.store.log.contains_key(number) {
                let mut store = state.store.with(*number, *record);
                store.late.remove(&(*number, *record));
                all.push(("lands late", State { nodes: state.nodes, controller: state.controller, store }));
            }
        }
    }

    fn violation(&mut self, state: &State) -> Option<String> {
        let replayed = self.replay(&state.store);
        let (control, writes) = &self.history.replayed[usize::from(replayed)];
        let lost = state.store.acknowledged.difference(writes);
        let lost: Vec<_> = lost.map(|write| self.history.name(*write)).collect();
        if !lost.is_empty() {
            return Some(format!("acknowledged and lost: {lost:?}"));
        }
        let session = control.session.as_ref().filter(|_| !self.scope.same_node)?;
        let owner = (session.id.0[0] as char).to_string();
        let holds = control.grant.as_ref().is_some_and(|grant| grant.node == owner);
        (!holds).then(|| format!("a session of {owner}, which does not hold the grant"))
    }

    /// What A has written was acknowledged, and B has the volume open.
    fn is_complete(&mut self, state: &State) -> bool {
        let replayed = self.replay(&state.store);
        let session = self.control(replayed).session.as_ref();
        !state.store.acknowledged.is_empty() && session.is_some_and(|session| session.id.0[0] == b'B')
    }

    fn show(&self, State { nodes, store, .. }: &State) -> String {
        let name = |record: &u16| self.history.name(*record);
        let log: Vec<_> = store.log.iter().map(|(n, record)| format!("{n}:{}", name(record))).collect();
        let roots: Vec<_> = store.roots.iter().map(|(number, _)| number).collect();
        let acknowledged: Vec<_> = store.acknowledged.iter().map(name).collect();
        let late: Vec<_> = store.late.iter().map(|(n, record)| format!("{n}:{}", name(record))).collect();
        let [a, b] = nodes.map(|node| phase(&node));
        let log = log.join(" ");
        format!("A {a:7} B {b:7} log {log} | roots {roots:?} | acknowledged {acknowledged:?} | late {late:?}")
    }
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
