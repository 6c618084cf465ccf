//! Pools: places in an object store that hold volumes.

pub mod layout;
