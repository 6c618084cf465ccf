//! Breadth-first search through all states of a model, so that a violation comes with the shortest way to it.
//!
//! Crates for this exist (stateright is the best known). This one is our own because a state here is told from all
//! others by comparing it and not by a hash of 64 bits, because records are kept once each in a table that grows while
//! the search goes on, and because it is this small.

use std::collections::HashSet;
use std::fmt::{Debug, Write};
use std::hash::Hash;
use std::rc::Rc;

/// What can be searched.
pub trait Model {
    /// Everything that may be different from one moment to the next.
    type State: Eq + Hash;

    /// Where the search begins.
    fn starts(&mut self) -> Vec<Self::State>;

    /// Adds what may be done next, and the states that it leads to.
    fn steps(&mut self, state: &Self::State, out: &mut Vec<(&'static str, Self::State)>);

    /// What must not be, if it is so in `state`.
    fn violation(&mut self, state: &Self::State) -> Option<String>;

    /// Whether the actors have done here what the model is about. A model that never gets there shows nothing.
    fn is_complete(&mut self, state: &Self::State) -> bool;

    /// One line about `state`.
    fn show(&self, state: &Self::State) -> String;
}

/// What a search has found.
#[derive(Debug)]
pub enum Outcome {
    /// No state of these violates anything.
    Holds {
        /// How many there are.
        states: usize,
        /// How many of them are complete.
        complete: usize,
    },
    /// What was violated, and the shortest way to it.
    Violation(String),
}

/// A state and how it was reached first.
struct Met<S> {
    state: Rc<S>,
    step: &'static str,
    from: usize,
}

/// Explores every interleaving.
pub fn search<M: Model>(model: &mut M) -> Outcome {
    let mut known: HashSet<Rc<M::State>> = HashSet::new();
    // All states met, in the order in which they were; those from `next` on are yet to be expanded.
    let mut queue: Vec<Met<M::State>> = Vec::new();
    let mut found: Vec<(&'static str, M::State)> =
        model.starts().into_iter().map(|state| ("start", state)).collect();
    let (mut from, mut next, mut complete) = (usize::MAX, 0, 0);
    loop {
        for (step, state) in found.drain(..) {
            let state = Rc::new(state);
            if !known.insert(Rc::clone(&state)) {
                continue;
            }
            let violation = model.violation(&state);
            complete += usize::from(model.is_complete(&state));
            queue.push(Met { state, step, from });
            if let Some(what) = violation {
                return Outcome::Violation(format!("{what}\n{}", trace(model, &queue)));
            }
        }
        let Some(met) = queue.get(next) else { return Outcome::Holds { states: next, complete } };
        let state = Rc::clone(&met.state);
        model.steps(&state, &mut found);
        from = next;
        next += 1;
    }
}

/// The way to the last state.
fn trace<M: Model>(model: &M, queue: &[Met<M::State>]) -> String {
    let mut way = Vec::new();
    let mut last = queue.last();
    while let Some(met) = last {
        way.push(met);
        last = queue.get(met.from);
    }
    let mut text = String::new();
    for (number, met) in way.iter().rev().enumerate() {
        let _ = writeln!(text, "{number:3} {:36} {}", met.step, model.show(&met.state));
    }
    text
}

/// With all its rules the model must hold, and get somewhere. Returns the number of states.
#[track_caller]
pub fn holds<M: Model>(mut model: M) -> usize {
    match search(&mut model) {
        Outcome::Holds { complete: 0, states } => panic!("none of {states} states is complete"),
        Outcome::Holds { states, complete } => {
            println!("{states} states, {complete} of them complete");
            states
        }
        Outcome::Violation(trace) => panic!("{trace}"),
    }
}

/// Without `rules` the model must be violated.
#[track_caller]
pub fn violated<M: Model>(mut model: M, rules: &[impl Debug]) {
    match search(&mut model) {
        Outcome::Violation(trace) => println!("without {rules:?}: {trace}"),
        Outcome::Holds { states, .. } => panic!("no violation without {rules:?} in {states} states"),
    }
}
