//! The volumes of the model, each a clone of the one before, and who acts on them.

use holdfast_engine::log::Op;

use crate::history::{ControlOnly, History, Log};

/// Volumes by their places in the line of descent: 0 is the oldest.
pub const VOLUMES: usize = 4;

/// A set of volumes, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Set(u8);

impl Set {
    pub fn of(volumes: &[usize]) -> Self {
        volumes.iter().fold(Self::default(), |set, volume| set.with(*volume))
    }

    pub fn has(self, volume: usize) -> bool {
        self.0 & (1 << volume) != 0
    }

    #[must_use]
    pub fn with(self, volume: usize) -> Self {
        Self(self.0 | (1 << volume))
    }

    #[must_use]
    pub fn without(self, volume: usize) -> Self {
        Self(self.0 & !(1 << volume))
    }

    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The youngest first: a clone names its source before what that descends from.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..VOLUMES).rev().filter(move |volume| self.has(*volume))
    }
}

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A creator puts its pins, and then looks again whether the snapshot exists.
    ConfirmAfterPins,
    /// Pins go on every volume that the root names.
    PinEvery,
    /// A creator also looks whether the source still holds its own pins.
    ConfirmSourcesPins,
    /// Whoever gives a creation up puts Dead first and removes the pins then.
    DeadBeforeUnpin,
    /// A deleter appends its record, and lists the pins then.
    DeleteBeforeList,
    /// A pin stays while a deleted snapshot that is pinned itself still names the ancestor.
    PinnedMapsCount,
    /// A clone keeps the pin on its source as long as it names any ancestor.
    SourceLast,
}

/// `volume.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Description {
    Missing,
    /// Somebody who gives the creation up was first.
    NoParents,
    Parents(Set),
}

/// A volume, with one snapshot at most.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Volume {
    pub log: Log,
    pub description: Description,
    /// The clones that have a pin here.
    pub pins: Set,
    /// Whether the data that its snapshot holds is there.
    pub data: bool,
    /// The ancestors that its head names.
    pub names: Set,
    /// The volumes that its snapshot names, itself included.
    pub snapshot_names: Set,
}

/// Who creates a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Creator {
    Idle,
    /// It has found the snapshot, which names these.
    Found(Set),
    /// The description is there. These are to be pinned yet.
    Pins(Set, Set),
    /// It has the pins, and looks again.
    Looks(Set),
    /// Of these it has still to see the source's pins.
    Checks(Set, Set),
    /// All was right: it is about to put record 1.
    Confirmed(Set),
    Over,
}

/// Who gives a creation up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settler {
    Idle,
    /// It has read the description, and is about to put Dead.
    Described(Set),
    /// It removes these pins.
    Unpins(Set),
    Over,
}

/// Who deletes a volume's snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deleter {
    Idle,
    /// The record is there.
    Deleted,
    /// It lists the pins. This is the next place in the order of the keys.
    Lists(usize),
    /// No pin was seen.
    Unpinned,
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub volumes: [Volume; VOLUMES],
    pub creators: [Creator; VOLUMES],
    pub settlers: [Settler; VOLUMES],
    pub deleters: [Deleter; VOLUMES],
    /// The order in which a listing shows the pins of clones.
    pub oldest_first: bool,
}

impl Volume {
    /// Whether it exists: its first record says so.
    pub fn exists(&self, history: &History<ControlOnly>) -> bool {
        let first = self.log.get(1).map(|record| history.get(record));
        first.is_some_and(|record| matches!(record.ops[0], Op::Create { .. }))
    }

    /// Whether its snapshot is there, and whether it is deleted.
    pub fn snapshot(&self, history: &History<ControlOnly>) -> Option<bool> {
        history.control(self.log.state).snapshots.values().next().map(|snapshot| snapshot.deleted)
    }

    /// Everything that it needs of ancestors.
    pub fn needs(&self, place: usize, history: &History<ControlOnly>) -> Set {
        match (self.exists(history), self.snapshot(history)) {
            (false, _) => Set::default(),
            (true, None) => self.names,
            (true, Some(_)) => self.names.union(self.snapshot_names).without(place),
        }
    }
}
