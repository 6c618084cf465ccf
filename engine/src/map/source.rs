//! Where pages of the map come from and go to.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use super::{IndexRef, LoadedPage, PageRef};
use crate::codec::{self, EncodedPage};
use crate::ids::{ObjectId, SessionId, VolumeId};

/// Why the map could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MapError {
    /// The store failed. `NotFound` means that a newer map has replaced the one that was asked, or damage.
    #[error("the map of the volume cannot be read or written: {0}")]
    Store(#[from] crate::store::StoreError),
    /// An object of the map cannot be encoded or decoded.
    #[error(transparent)]
    Codec(#[from] crate::codec::CodecError),
    /// A page belongs to a volume that is not known here.
    #[error(transparent)]
    UnknownAncestor(#[from] crate::lineage::UnknownAncestor),
    /// A page or an index does not say what its reference promises. Restore the volume from an archive, or salvage it.
    #[error("the map object {id} of volume {volume} is damaged: it holds {what}")]
    Damaged {
        /// The volume that owns it.
        volume: VolumeId,
        /// The object.
        id: ObjectId,
        /// What is wrong.
        what: &'static str,
    },
    /// A record names entries that no map may hold.
    #[error("a record is refused by the map: it holds {what}")]
    Refused {
        /// What is wrong.
        what: &'static str,
    },
}

impl MapError {
    /// Whether the same request may succeed later because only the store stands in its way.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Store(reason) => reason.may_pass(),
            Self::Codec(_) | Self::UnknownAncestor(_) | Self::Damaged { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Why a page is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Somebody asks for a few blocks, and will again: worth a place in the cache.
    Lookup,
    /// The whole map is walked: must not push the others' pages out of the cache.
    Scan,
}

/// How large the objects of a map may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimits {
    /// Bytes of a page, reckoned as 24 for an extent, and once for each name that the page mentions 32 for a segment
    /// and 16 for a volume.
    pub page_bytes: usize,
    /// Pages that are stored together, as one object.
    pub pack_pages: usize,
    /// Pages that an index lists.
    pub index_pages: usize,
    /// A run with more pages has indexes. Fewer are listed in the root itself, which every checkpoint writes anew.
    pub inline_pages: usize,
}

impl Default for PageLimits {
    fn default() -> Self {
        let (pack_pages, index_pages) = (codec::PACK_PAGES_MAX, codec::INDEX_PAGES_MAX);
        Self { page_bytes: 60 << 10, pack_pages, index_pages, inline_pages: 64 }
    }
}

/// What a look at a pack has found.
#[derive(Debug)]
pub struct PackCheck {
    /// Its table, which no reader needs who has a reference.
    pub table: Result<(), MapError>,
    /// The pages that were asked for, in order.
    pub pages: Vec<Result<(), MapError>>,
}

/// Reads the pages of a volume's map, its own and its ancestors', and writes new ones of its own.
///
/// Pages and indexes never change; an implementation caches them, and loads one once however many wait for it. A put
/// that returns is durable. Objects that nothing names in the end are garbage for the collector.
#[async_trait]
pub trait PageSource: Send + Sync + Debug {
    /// New objects are written by this session from now on; a sweeper tells by it which of them may be garbage.
    fn begin_session(&self, session: SessionId);

    /// How large new objects may get.
    fn limits(&self) -> PageLimits;

    /// Loads a page.
    async fn page(&self, page: &PageRef, access: Access) -> Result<Arc<LoadedPage>, MapError>;

    /// Loads the pages that an index lists: in order, not overlapping, at least one.
    async fn index(&self, index: &IndexRef, access: Access) -> Result<Arc<[PageRef]>, MapError>;

    /// Looks at all of the pack that `pages` lie in, by one request. Answers what is wrong with the pack's table, and with
    /// each of the pages; if the pack is not there, with all of them.
    async fn check_pack(&self, pages: &[PageRef]) -> PackCheck;

    /// Stores pages (at least one, within the limits) as one new object; what refers to them, in order.
    async fn put_pages(&self, pages: Vec<EncodedPage>) -> Result<Vec<PageRef>, MapError>;

    /// Stores a list of pages (sorted, not overlapping, at least one, within the limits) as a new index.
    async fn put_index(&self, pages: &[PageRef]) -> Result<IndexRef, MapError>;
}
