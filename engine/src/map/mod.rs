//! The map from blocks to where their data lies.

mod extent;
mod stored;

pub use extent::{Extent, Location, SegmentKind, SegmentRef};
pub use stored::{IndexRef, Origin, PageRef, Root, RunRef, SnapshotMap, StoredMap};
