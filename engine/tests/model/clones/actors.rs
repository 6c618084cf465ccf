//! What creators, givers-up, deleters and clones do. Each step is one call to the store, or a decision and its append.

use holdfast_engine::log::Op;

use super::World;
use super::state::{Creator, Deleter, Description, Rule, Set, Settler, State, VOLUMES};

pub type Steps = Vec<(&'static str, State)>;

fn put_pin(state: &mut State, ancestor: usize, clone: usize) {
    let home = &mut state.volumes[ancestor];
    home.pins = home.pins.with(clone);
}

fn remove_pin(state: &mut State, ancestor: usize, clone: usize) {
    let home = &mut state.volumes[ancestor];
    home.pins = home.pins.without(clone);
}

/// The creation of `clone` from the snapshot of the volume before it.
pub fn create(world: &mut World, state: &State, clone: usize, out: &mut Steps) {
    let source = clone - 1;
    let live = state.volumes[source].snapshot(&world.history) == Some(false);
    let mut next = state.clone();
    let to = &mut next.creators[clone];
    match state.creators[clone] {
        Creator::Idle => {
            *to = if live { Creator::Found(state.volumes[source].snapshot_names) } else { Creator::Over };
            out.push(("a creator finds the snapshot", next));
        }
        Creator::Found(named) => {
            *to = Creator::Over;
            if state.volumes[clone].description == Description::Missing {
                let pinned = if world.keeps(Rule::PinEvery) { named } else { Set::of(&[source]) };
                *to = match world.keeps(Rule::ConfirmAfterPins) {
                    true => Creator::Pins(named, pinned),
                    false => Creator::Looks(named),
                };
                next.volumes[clone].description = Description::Parents(pinned);
            }
            out.push(("a creator describes the volume", next));
        }
        Creator::Pins(named, left) => match left.iter().next() {
            Some(ancestor) => {
                *to = Creator::Pins(named, left.without(ancestor));
                put_pin(&mut next, ancestor, clone);
                out.push(("a creator puts a pin", next));
            }
            None => {
                let confirms = world.keeps(Rule::ConfirmAfterPins);
                *to = if confirms { Creator::Looks(named) } else { Creator::Confirmed(named) };
                out.push(("a creator has its pins", next));
            }
        },
        Creator::Looks(named) => {
            let others =
                if world.keeps(Rule::ConfirmSourcesPins) { named.without(source) } else { Set::default() };
            *to = if live { Creator::Checks(named, others) } else { Creator::Over };
            out.push(("a creator looks for the snapshot again", next));
        }
        Creator::Checks(named, left) => match left.iter().next() {
            Some(ancestor) if state.volumes[ancestor].pins.has(source) => {
                *to = Creator::Checks(named, left.without(ancestor));
                out.push(("a creator sees a pin of the source", next));
            }
            Some(_) => {
                *to = Creator::Over;
                out.push(("a creator misses a pin of the source", next));
            }
            None => {
                let confirms = world.keeps(Rule::ConfirmAfterPins);
                *to = if confirms { Creator::Confirmed(named) } else { Creator::Pins(named, named) };
                out.push(("a creator has seen all", next));
            }
        },
        Creator::Confirmed(named) => {
            *to = Creator::Over;
            let create = vec![Op::Create { size_bytes: 1 << 20 }];
            if next.volumes[clone].log.next() == 1
                && next.volumes[clone].log.append(&mut world.history, "create", None, create)
            {
                next.volumes[clone].names = named;
            }
            out.push(("a creator puts record 1", next));
        }
        Creator::Over => {}
    }
}

/// Another creator under the same name finds the creation unfinished, and gives it up.
pub fn settle(world: &mut World, state: &State, clone: usize, out: &mut Steps) {
    let mut next = state.clone();
    let to = &mut next.settlers[clone];
    let parents = match state.volumes[clone].description {
        Description::Parents(parents) => parents,
        Description::Missing | Description::NoParents => Set::default(),
    };
    match state.settlers[clone] {
        Settler::Idle => {
            if state.volumes[clone].description == Description::Missing {
                next.volumes[clone].description = Description::NoParents;
            }
            let exists = state.volumes[clone].exists(&world.history);
            *to = match (exists, world.keeps(Rule::DeadBeforeUnpin)) {
                (true, _) => Settler::Over,
                (false, true) => Settler::Described(parents),
                (false, false) => Settler::Unpins(parents),
            };
            out.push(("somebody finds a creation unfinished", next));
        }
        Settler::Described(parents) => {
            let log = &mut next.volumes[clone].log;
            let dead = log.next() == 1 && log.append(&mut world.history, "dead", None, vec![Op::Dead]);
            *to = if dead && world.keeps(Rule::DeadBeforeUnpin) {
                Settler::Unpins(parents)
            } else {
                Settler::Over
            };
            out.push(("somebody gives a creation up", next));
        }
        Settler::Unpins(left) => match left.iter().next() {
            Some(ancestor) => {
                *to = Settler::Unpins(left.without(ancestor));
                remove_pin(&mut next, ancestor, clone);
                out.push(("a pin of a creation given up is removed", next));
            }
            None => {
                let unpinned = world.keeps(Rule::DeadBeforeUnpin);
                *to = if unpinned { Settler::Over } else { Settler::Described(parents) };
                out.push(("all pins of a creation given up are removed", next));
            }
        },
        Settler::Over => {}
    }
}

/// The deletion of the snapshot of `volume`.
pub fn delete(world: &mut World, state: &State, volume: usize, out: &mut Steps) {
    let control = world.history.control(state.volumes[volume].log.state);
    let Some(snapshot) = control.snapshots.keys().next().copied() else {
        if state.deleters[volume] == Deleter::Over && state.volumes[volume].data {
            let mut next = state.clone();
            next.volumes[volume].data = false;
            out.push(("data of a forgotten snapshot is deleted", next));
        }
        return;
    };
    let mut next = state.clone();
    let record_first = world.keeps(Rule::DeleteBeforeList);
    let delete = vec![Op::Maintain, Op::DeleteSnapshot { snapshot }];
    match state.deleters[volume] {
        Deleter::Idle => {
            if record_first {
                next.volumes[volume].log.append(&mut world.history, "delete", None, delete);
            }
            next.deleters[volume] = Deleter::Deleted;
            out.push(("a snapshot is deleted", next));
        }
        Deleter::Deleted => {
            next.deleters[volume] = Deleter::Lists(0);
            out.push(("a deleter begins to list the pins", next));
        }
        Deleter::Lists(VOLUMES) => {
            next.deleters[volume] = Deleter::Unpinned;
            out.push(("a listing is complete", next));
        }
        Deleter::Lists(place) => {
            let clone = if state.oldest_first { place } else { VOLUMES - 1 - place };
            next.deleters[volume] = if state.volumes[volume].pins.has(clone) {
                Deleter::Deleted
            } else {
                Deleter::Lists(place + 1)
            };
            out.push(("a listing passes a pin's place", next));
        }
        Deleter::Unpinned => {
            if !record_first {
                next.volumes[volume].log.append(&mut world.history, "delete", None, delete);
            }
            let forget = vec![Op::Maintain, Op::ForgetSnapshot { snapshot }];
            next.volumes[volume].log.append(&mut world.history, "forget", None, forget);
            next.deleters[volume] = Deleter::Over;
            out.push(("a snapshot is forgotten", next));
        }
        Deleter::Over => {}
    }
}

/// What the owner of `volume` does: it overwrites what an ancestor holds, takes a snapshot, lets go of pins.
pub fn live(world: &mut World, state: &State, volume: usize, out: &mut Steps) {
    let this = &state.volumes[volume];
    if !this.exists(&world.history) {
        return;
    }
    for ancestor in this.names.iter() {
        let mut next = state.clone();
        next.volumes[volume].names = this.names.without(ancestor);
        out.push(("a head names an ancestor no more", next));
    }
    let snapshot = this.snapshot(&world.history);
    if this.snapshot_names.is_empty() && volume + 1 < world.scope.volumes {
        let mut next = state.clone();
        let name = Op::Snapshot { name: "s".into(), meta: String::new() };
        next.volumes[volume].log.append(&mut world.history, "cut", None, vec![Op::Maintain, name]);
        next.volumes[volume].snapshot_names = this.names.with(volume);
        out.push(("a snapshot is taken", next));
    }
    let counts = match snapshot {
        None => false,
        Some(deleted) => !deleted || world.keeps(Rule::PinnedMapsCount),
    };
    let named = if counts { this.names.union(this.snapshot_names) } else { this.names };
    let names_any = (0..volume).any(|ancestor| named.has(ancestor));
    for ancestor in (0..volume).filter(|ancestor| !named.has(*ancestor)) {
        let stays = ancestor + 1 == volume && names_any && world.keeps(Rule::SourceLast);
        if state.volumes[ancestor].pins.has(volume) && !stays {
            let mut next = state.clone();
            remove_pin(&mut next, ancestor, volume);
            out.push(("a clone lets go of a pin", next));
        }
    }
}
