//! The front end: each volume as one file in a FUSE mount, with a loop device on it.
//!
//! ```text
//!   ext4 / xfs / raw block
//!   /dev/loopN                 direct I/O                              [crate::loopdev]
//!   MOUNT/disk                 FUSE, four queues                       [connection], [abi]
//!   session                    slots, service, replies                 [session], [slots]
//!   BlockDevice                the engine's volume through an adapter  [device]
//! ```
//!
//! I/O survives the process: [`stack`] puts the connection's descriptors and the memory that must not be lost
//! into the keeper ([`crate::keeper`]), and a successor goes on from there.

pub mod abi;
pub mod connection;
pub mod device;
pub mod incarnation;
pub mod memory;
mod parked;
pub mod region;
pub mod session;
pub mod slots;
pub mod stack;
pub mod volume;

pub use device::{BlockDevice, DeviceError};
pub use incarnation::Incarnation;
pub use region::Region;
pub use session::become_io_flusher;
pub use stack::{FrontEnd, Saved, Stack, StackError};
