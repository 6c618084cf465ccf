//! holdfast-operator: reconciles Holdfast's resources into standard snapshots, Jobs and Secrets, and reports whether
//! volumes are safe.
//!
//! Each controller is split into fetch, validate, decide, build, apply and report; only the outer steps hold a client,
//! the inner ones are pure functions. Controllers: [`policy`] (SnapshotPolicy), [`archive`] (ArchivedSnapshot),
//! [`target`] (ArchiveTarget), [`restore`] (VolumeSnapshots that ask for a point). Two replicas elect a leader by a
//! Lease ([`lease`]); [`certificates`] keeps the driver's certificates; [`incidents`] makes events of what node plugins
//! tell.

pub mod api;
pub mod archive;
pub mod args;
pub mod certificates;
pub mod conditions;
pub mod context;
pub mod engine_store;
pub mod error;
pub mod incidents;
pub mod jobs;
pub mod lease;
pub mod metrics;
pub mod policy;
pub mod pool_file;
pub mod probe;
pub mod restore;
pub mod run;
pub mod server;
pub mod snapshots;
pub mod store;
pub mod target;
