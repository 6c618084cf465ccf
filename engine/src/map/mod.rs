//! The map from blocks to where their data lies.
//!
//! A log-structured merge tree: a [`Memtable`] of the newest entries over frozen memtables (one per snapshot boundary
//! that no checkpoint has passed) over *runs* of sorted pages in the store, newest first; where a layer says anything
//! it hides the older ones. A [`Checkpoint`] writes memtables as new runs. Pages load on demand, so a map takes as
//! little memory as its reader likes, and opening one loads nothing. Pages that are written together are put together,
//! as *packs*: a put costs much more than the bytes of a page. A pack is needed as long as any of its pages is.

mod cache;
mod checkpoint;
mod compact;
mod cursor;
mod diff;
mod extent;
mod extents;
mod forget;
mod head;
mod memtable;
mod own;
mod packed;
mod page;
mod restate;
mod run;
mod sound;
mod source;
mod stored;
mod view;
mod volume_pages;
mod walk;

pub use cache::PageCache;
pub use checkpoint::Checkpoint;
pub use compact::Compactor;
pub use diff::Diff;
pub use extent::{Extent, LBA_MAX, Location, SegmentKind, SegmentRef};
pub use extents::{Extents, ExtentsWriter};
pub use forget::{names_pages_of, without_pages_of};
pub use head::Map;
pub use memtable::Memtable;
pub use page::{LoadedPage, SegmentTable};
pub use restate::{Restater, restated};
pub use run::write_pages;
pub use sound::{MapCheck, Unsound};
pub use source::{Access, MapError, PackCheck, PageLimits, PageSource};
pub(crate) use stored::MapPart;
pub use stored::{IndexRef, MapObject, Origin, PackPlace, PageRef, Root, RunRef, SnapshotMap, StoredMap};
pub use view::{Layer, MapView};
pub use volume_pages::VolumePages;
pub use walk::{Walk, add_map_objects, live_blocks, map_objects, mapped_bytes};

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod testing;
