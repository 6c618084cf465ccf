//! The commit log: the truth about a volume.
//!
//! A log is a sequence of records under consecutive numbers, each put only if its number is absent. Whoever appends
//! has replayed everything before it, so every append is a compare-and-swap on the tail.

mod control;
mod decide;
mod error;
mod record;
mod replay;
mod rules;
mod tail;

pub use control::{Control, Grant, Reader, Session, Snapshot};
pub use decide::{Decided, Decision};
pub use error::LogError;
pub use record::{GrantMode, Move, Op, Record};
pub use replay::{ControlOnly, Replayed, Sink};
pub use rules::Inert;
pub use tail::{Log, Put};
