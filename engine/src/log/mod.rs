//! The commit log: the truth about a volume.

mod control;
mod record;
mod rules;

pub use control::{Control, Grant, Reader, Session, Snapshot};
pub use record::{GrantMode, Move, Op, Record};
pub use rules::Inert;
