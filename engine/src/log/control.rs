//! The control state that a replay of the log yields, and a root keeps.

use std::collections::{BTreeMap, BTreeSet};

use super::GrantMode;
use crate::ids::{GrantId, ObjectId, SessionId, SnapshotId};

/// Everything but the map.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// The nonce of the last record that took effect; none before the first.
    pub last: ObjectId,
    /// The volume's size.
    pub size_bytes: u64,
    /// The writer's or maintainer's grant, if any.
    pub grant: Option<Grant>,
    /// Nodes that may read the live head. Never together with a writer's grant.
    pub readers: Vec<Reader>,
    /// The open session, if any.
    pub session: Option<Session>,
    /// Entries of the grant's dirty buffer up to this number are in the log.
    pub buffer_complete: u64,
    /// The snapshots, also deleted ones that a pin still needs.
    pub snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Archive runs that may commit no more.
    pub ended_runs: BTreeSet<ObjectId>,
    /// Whether the volume is deleted.
    pub dead: bool,
}

/// A grant in force.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// Who holds it.
    pub node: String,
    /// What it allows; never [`GrantMode::ReadOnly`].
    pub mode: GrantMode,
}

/// A node that may read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reader {
    /// The grant's id.
    pub id: GrantId,
    /// Who holds it.
    pub node: String,
}

/// An open session.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The grant it stands under.
    pub grant: GrantId,
    /// Where the controller reaches the owner; empty if nowhere.
    pub endpoint: String,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The name it was asked for by.
    pub name: String,
    /// The asker's note.
    pub meta: String,
    /// When it was taken: the record's time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The volume's size then.
    pub size_bytes: u64,
    /// Deleted, and kept only because a pin may need it.
    pub deleted: bool,
    /// How often its map has been rewritten.
    pub generation: u32,
    /// Its map object; none until a checkpoint (or the replay that finds it missing) has written it.
    pub map: Option<ObjectId>,
}
