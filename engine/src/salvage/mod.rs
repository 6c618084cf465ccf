//! When objects of a volume are damaged or gone: finding out what is ([`scrub`](crate::host::Host::scrub)), putting
//! blocks back from a copy ([`repair`](crate::host::Host::repair)), and making a new volume of what is left
//! ([`rebuild`](crate::host::Host::rebuild)).
//!
//! # Guarantees
//! - Nothing is overwritten or deleted. A scrub and a rebuild write nothing at all to the damaged volume; a repair
//!   appends to its log. What may still be good, also for somebody wiser, stays.
//! - A scrub reads every object that the head and the snapshots name, once, and every record and root; what it finds is
//!   told with the places and blocks that it concerns.
//! - A repair puts a block back only from a copy of just what was there, and never over newer data.
//! - A rebuilt volume never has older data in the place of a block whose newest data were found and cannot be read:
//!   such a block reads as zeros and is told as lost.
//! - A rebuilt volume is empty until one record makes all of it visible.
//!
//! # Assumptions
//! The description of the volume (`volume.json`) can be read: it has the key of the data. For a rebuild, nobody has the
//! volume open.
//!
//! # Crash behaviour
//! A scrub that dies leaves nothing. A repair that dies leaves what it has put back. A rebuild that dies leaves a volume
//! that is empty, to be deleted.

mod copy;
mod damage;
mod history;
mod object;
mod rebuild;
mod repair;
mod scrub;
mod state;

pub use copy::Lost;
pub use damage::{Affected, Damage, Fault, Place, SalvageError};
pub use rebuild::{MapSource, REBUILT_FROM, Rebuilding, Rebuilt};
pub use repair::Repaired;
pub use scrub::{Scope, Scrubbed, Scrubbing};

#[cfg(test)]
mod tests;
