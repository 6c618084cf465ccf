//! The volume engine: log-structured virtual disks in an object store.
//!
//! A *pool* is a place in an object store. A *volume* in it is a commit log of create-only records that name
//! create-only data *segments*; checkpoints of the resulting block map let a reader start near the log's end.
//! Nothing is ever overwritten: whoever appends a record has replayed all records before it and puts the next
//! number only if it is absent, so every append is a compare-and-swap on the log's tail (`docs/architecture.md`
//! has the rules and the ways to lose data that each of them closes; `docs/format.md` has every byte).
//!
//! The engine knows neither Kubernetes nor gRPC. Its store, clock and randomness are given to it.

pub mod archive;
pub mod buffer;
pub mod cache;
pub mod codec;
pub mod control;
pub mod env;
pub mod gc;
pub mod host;
pub mod ids;
pub mod journal;
pub mod lineage;
pub mod log;
pub mod map;
pub mod pool;
pub mod salvage;
pub mod snapshot;
pub mod store;
#[cfg(test)]
mod testing;
pub mod volume;
