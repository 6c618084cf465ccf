//! The keeper: a small process that holds what the node process must not take to its grave.
//!
//! It runs in a DaemonSet of its own that is updated on deletion only. It holds duplicates of descriptors
//! (FUSE connections, shared memory, guards of frozen file systems) under names, with a little text each, and
//! gives them to whoever asks. It knows nothing of volumes and reaches no store.
//!
//! # Guarantees
//! - What [`Link::put`] has answered is there for a successor, however the node process dies.
//! - A guarded file system is thawed at its deadline, however the node process dies ([`guards`]).
//! - The keeper dying alone loses nothing: the node process notices, waits for its return, and puts
//!   everything again ([`link`]).
//! - Bounded: entries, descriptors per entry, connections, and message sizes (see [`protocol`]).
//!
//! # Assumptions
//! Only processes of the keeper's own user reach the socket; others are refused.
//!
//! # Crash behaviour
//! Entries live in memory. With keeper and node process both dead the kernel ends the FUSE connections: the
//! volumes' file systems see I/O errors until they are staged again.

pub mod guards;
pub mod link;
pub mod protocol;
pub mod server;
mod table;

pub use link::{Link, LinkError};
pub use server::{ServeError, serve};
