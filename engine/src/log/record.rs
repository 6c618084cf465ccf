//! What a record of the commit log says.

use crate::ids::{GrantId, ObjectId, RecordNumber, SessionId, SnapshotId, VolumeId};
use crate::map::{Extent, Location, PageRef};

/// A record, without the data that it may carry (see [`crate::codec`]).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The volume.
    pub volume: VolumeId,
    /// Its place in the log.
    pub number: RecordNumber,
    /// Its id, which is also its nonce.
    pub id: ObjectId,
    /// The session that appends it; none for the controller's records. An Open record names itself.
    pub session: SessionId,
    /// The nonce of the last record that took effect before it; none before the first.
    pub prev: ObjectId,
    /// Wall-clock time of the append, in milliseconds since the Unix epoch. Informational.
    pub time_ms: u64,
    /// All entries of the grant's dirty buffer up to this number are in the log with this record.
    pub buffer_complete: u64,
    /// What it does, in order. All of it takes effect, or none.
    pub ops: Vec<Op>,
}

/// What a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum GrantMode {
    /// One node reads and writes.
    ReadWrite,
    /// Nodes read; no writer may be granted meanwhile.
    ReadOnly,
    /// Garbage collection, verification or an archive run; gives way to any publish.
    Maintenance,
}

/// One thing that a record does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Op {
    /// The first record of a volume: it exists from here on.
    Create {
        /// Its size.
        size_bytes: u64,
    },
    /// The volume is deleted, or its creation was given up. Nothing but snapshot deletions follows.
    Dead,
    /// `node` may open the volume. The grant is named by this record's id.
    Grant {
        /// The node's name.
        node: String,
        /// What it may do.
        mode: GrantMode,
    },
    /// Takes the grant back and ends its session. In effect also if nothing is granted: it then stands in the way of
    /// a Grant whose put is still under way.
    Revoke {
        /// The grant; none if nothing was granted.
        grant: GrantId,
    },
    /// Starts a session under the latest unrevoked grant. The session is named by this record's id.
    Open {
        /// The grant.
        grant: GrantId,
        /// The session of the same grant that this one continues after a crash; none at first.
        resumes: SessionId,
        /// Where the controller reaches the owner (`host:port`); empty if nowhere.
        endpoint: String,
    },
    /// Ends the session.
    Close,
    /// Opens and closes a session in this record: legal only while no session is open. Comes first.
    Maintain,
    /// Snapshots the volume as of this record. The snapshot is named by this record's number; at most one a record.
    Snapshot {
        /// The name given by who asked for it; unique among the volume's snapshots.
        name: String,
        /// What the asker wants to find with it (for an archived point: its source, as JSON). At most 16 KiB.
        meta: String,
    },
    /// Deletes a snapshot.
    DeleteSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Replaces what is noted with a snapshot (an archived point's expiry).
    Annotate {
        /// Which.
        snapshot: SnapshotId,
        /// The new note.
        meta: String,
    },
    /// Changes the volume's size. It never shrinks.
    Resize {
        /// The new size.
        size_bytes: u64,
    },
    /// Map entries, sorted, not overlapping: the segments they name become visible, holes become discards.
    Write {
        /// The entries.
        extents: Vec<Extent>,
    },
    /// The same as `Write`, for more entries than fit a record: pages already stored, sorted, not overlapping.
    WritePages {
        /// The pages.
        pages: Vec<PageRef>,
    },
    /// Data moved by the collector or the hydrator. Each move applies only where the map still names its source.
    Relocate {
        /// The moves, sorted, not overlapping.
        moves: Vec<Move>,
    },
    /// A snapshot's map was rewritten.
    SwitchSnapshotMap {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// The new generation: one more than the last.
        generation: u32,
        /// The new map object.
        map: ObjectId,
    },
    /// A pin no longer needs this deleted snapshot: its map and what only it reaches may go.
    ForgetSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// The segments of this archive run become visible with this record, which ends the run.
    RunCommitted {
        /// The run.
        run: ObjectId,
    },
    /// No segment of this archive run may become visible any more.
    RunEnded {
        /// The run.
        run: ObjectId,
    },
    /// Nothing: an append for the collector, which may delete only after one.
    Noop,
}

/// An entry of [`Op::Relocate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// The blocks and where their data lies now. Always has a location.
    pub to: Extent,
    /// Where the map must still say the first of these blocks lies, for the move to apply; the others follow it.
    pub from: Location,
}
