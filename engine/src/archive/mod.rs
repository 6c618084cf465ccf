//! Archives: pools that hold copies of snapshots, elsewhere.
//!
//! The archive of a volume is a volume in the target's pool. A run uploads what differs from the point before and makes
//! it visible in *one* record, together with the snapshot that is the new point. A point is restored by cloning it.
//!
//! # Guarantees
//! - A point is in its archive whole or not at all. What a run that died has uploaded is adopted by the next attempt, and
//!   is garbage otherwise.
//! - The head of an archive's volume is its newest point, so the newest point is what the next run's difference is
//!   taken to. It is therefore never removed by expiry.
//! - While an archive's newest point names a snapshot of the source, that snapshot is pinned: the next difference can
//!   be taken from maps alone. Where it is gone all the same, a full copy replaces the head. The pin goes when the
//!   source is deleted with all its snapshots.

mod bases;
mod error;
mod meta;
mod points;
mod resume;
mod run;
mod verify;

pub use error::ArchiveError;
pub use meta::{PointMeta, PointSource};
pub use points::{Point, expire, list_points};
pub use run::{ArchiveRun, Progress, archive};
pub use verify::{Damage, Verified, verify};
