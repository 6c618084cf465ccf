//! What the store holds, and where sessions stand.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::ids::{ObjectId, SessionId, SnapshotId};
use holdfast_engine::log::{Control, Inert, Op, Record};

use crate::history::{Log, RecordRef, Replay, ReplayedRef, id};

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// No checkpoint passes a snapshot whose map is missing.
    MapsWithRoot,
    /// That goes for snapshots, too, which a replay has met.
    MapsOfOthers,
    /// What a root names is there before it.
    ObjectsBeforeRoot,
    /// The collector spares what snapshots need whose maps are missing.
    MarkUnmapped,
    /// It deletes only what a root of its own session does not reach.
    OwnRootFirst,
    /// After that root, and before it deletes, its session has appended something.
    AppendBeforeDelete,
    /// It deletes only what it has found unneeded before that append, and finds so again after it.
    LookTwice,
    /// An opener builds on the newest root that it lists after its Open.
    ListAfterOpen,
    /// A volume is deleted only when its snapshots have their maps.
    CompleteBeforeDead,
}

/// How far the search goes.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    pub writes: u8,
    /// Snapshots that owners cut, and that the controller cuts.
    pub cuts: u8,
    pub controller_cuts: u8,
    pub sessions: usize,
    /// Checkpoints and collections of a session.
    pub checkpoints: u8,
    pub collections: u8,
    /// Whether the volume is detached and deleted.
    pub deletes: bool,
}

/// What a replay follows besides the control state.
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub value: u8,
    /// Snapshots met on the way, and what they hold. A root does not keep this.
    pub cuts: BTreeMap<SnapshotId, u8>,
}

/// Nothing of what replays decide is left out here.
#[derive(Debug)]
pub struct Rules;

impl Replay for Rules {
    type Follows = Head;

    fn apply(
        &self,
        control: &mut Control,
        head: &mut Head,
        (_, record): (RecordRef, &Record),
    ) -> Result<(), Inert> {
        control.apply(record)?;
        for op in &record.ops {
            match op {
                Op::Write { extents } => head.value = extents.first().map_or(0, |extent| extent.lba as u8),
                Op::Snapshot { .. } => {
                    head.cuts.insert(SnapshotId(record.number.0), head.value);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// An object in the store, besides records and roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// What a root's map is made of: written by a session for its root of that number.
    Page { session: usize, number: u8 },
    /// The map of a snapshot, as a session has written it.
    Map { snapshot: u8, value: u8, session: usize },
    /// The data of a value.
    Segment(u8),
}

pub const FIRST_PAGE: Object = Object::Page { session: 9, number: 0 };

pub fn map_id(snapshot: u8, value: u8, session: usize) -> ObjectId {
    let mut id = id("map");
    id.0[13..].copy_from_slice(&[snapshot, value, session as u8]);
    id
}

pub fn map_object(id: ObjectId) -> Object {
    Object::Map { snapshot: id.0[13], value: id.0[14], session: usize::from(id.0[15]) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root {
    pub state: ReplayedRef,
    pub page: Object,
}

/// What a session is busy with, besides writing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Work {
    /// It has replayed from the root of this number, and is about to append its Open.
    Opens {
        root: u8,
    },
    /// Its Open is in the log: it is about to list the roots again.
    Lists {
        root: u8,
    },
    Idle,
    /// It writes what its root of this number names, and the root.
    Checkpoint {
        number: u8,
        state: ReplayedRef,
        steps: u8,
    },
    /// It has found these unneeded, and is about to append.
    Appends(BTreeSet<Object>),
    /// It has appended, and is about to look again.
    Looks(BTreeSet<Object>),
    /// It deletes these.
    Deletes(BTreeSet<Object>),
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session {
    pub id: SessionId,
    pub next: u8,
    pub state: ReplayedRef,
    /// What it builds on.
    pub page: Object,
    pub work: Work,
    pub checkpoints: u8,
    pub collections: u8,
    /// The number of its newest root, or of the one that it has opened from.
    pub root: u8,
    /// Whether it has put one.
    pub has_root: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub log: Log,
    pub roots: BTreeMap<u8, Root>,
    pub objects: BTreeSet<Object>,
    pub sessions: Vec<Session>,
    pub writes: u8,
    pub cuts: u8,
    pub controller_cuts: u8,
    pub detached: bool,
}

impl State {
    pub fn newest(&self) -> (u8, Root) {
        let (number, root) = self.roots.last_key_value().expect("the model begins with a root");
        (*number, *root)
    }
}
