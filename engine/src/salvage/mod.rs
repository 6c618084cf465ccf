//! When objects of a volume are damaged or gone: finding out what is ([`scrub`](crate::host::Host::scrub)), and making a
//! new volume of what is left ([`rebuild`](crate::host::Host::rebuild)).
//!
//! # Guarantees
//! - Neither writes anything to the damaged volume. What may still be good, also for somebody wiser, stays.
//! - A scrub reads every object that the head and the snapshots name, once, and every record and root; what it finds is
//!   told with the places and blocks that it concerns.
//! - A rebuilt volume never has older data in the place of a block whose newest data were found and cannot be read:
//!   such a block reads as zeros and is told as lost.
//! - A rebuilt volume is empty until one record makes all of it visible.
//!
//! # Assumptions
//! The description of the volume (`volume.json`) can be read: it has the key of the data. For a rebuild, nobody has the
//! volume open.
//!
//! # Crash behaviour
//! A scrub that dies leaves nothing. A rebuild that dies leaves a volume that is empty, to be deleted.

mod copy;
mod damage;
mod history;
mod object;
mod rebuild;
mod scrub;
mod state;

pub use copy::Lost;
pub use damage::{Affected, Damage, Fault, Place, SalvageError};
pub use rebuild::{MapSource, REBUILT_FROM, Rebuilding, Rebuilt};
pub use scrub::{Scope, Scrubbed, Scrubbing};

#[cfg(test)]
mod tests;
