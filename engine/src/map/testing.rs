//! What the tests of the map share: a source of pages in memory, and the plain model of a map.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Access, Extent, IndexRef, LoadedPage, Location, MapError, PackCheck, PageLimits, PageRef, PageSource,
    SegmentKind, SegmentRef, SegmentTable,
};
use crate::codec::{self, Codec, EncodedPage, Identity};
use crate::ids::{ObjectId, RecordNumber, SessionId, VolumeId};

/// The volume whose maps are tested.
pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);

/// Keeps pages in memory and counts loads.
#[derive(Debug, Default)]
pub(super) struct MemorySource {
    limits: PageLimits,
    /// Pages and packs, encoded.
    pages: Mutex<BTreeMap<ObjectId, Bytes>>,
    indexes: Mutex<BTreeMap<ObjectId, Vec<PageRef>>>,
    segments: SegmentTable,
    /// To which volume belongs what is written, if not to [`VOLUME`].
    volume: OnceLock<VolumeId>,
    next: AtomicU64,
    page_loads: AtomicUsize,
    index_loads: AtomicUsize,
    written: AtomicUsize,
}

impl MemorySource {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Makes pages of a dozen extents, and packs and indexes of a few pages, so that small maps have many.
    pub(super) fn with_small_pages() -> Arc<Self> {
        let limits = PageLimits { page_bytes: 400, pack_pages: 4, index_pages: 5, inline_pages: 3 };
        Arc::new(Self { limits, ..Self::default() })
    }

    /// From now on `volume` writes.
    pub(super) fn write_as(&self, volume: VolumeId) {
        self.volume.set(volume).unwrap();
    }

    fn volume(&self) -> VolumeId {
        *self.volume.get().unwrap_or(&VOLUME)
    }

    fn id(&self) -> ObjectId {
        ObjectId(u128::from(self.next.fetch_add(1, Ordering::Relaxed) + 1).to_be_bytes())
    }

    /// Pages and indexes loaded since the last call.
    pub(super) fn take_loads(&self) -> (usize, usize) {
        (self.page_loads.swap(0, Ordering::Relaxed), self.index_loads.swap(0, Ordering::Relaxed))
    }

    /// Makes an object unreadable from now on.
    pub(super) fn delete(&self, id: ObjectId) {
        self.pages.lock().unwrap().remove(&id);
        self.indexes.lock().unwrap().remove(&id);
    }

    /// How many pages and indexes were written so far.
    pub(super) fn written(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    /// The pages and packs that are there.
    pub(super) fn objects(&self) -> Vec<ObjectId> {
        self.pages.lock().unwrap().keys().copied().collect()
    }

    /// Changes a byte of a page or a pack.
    pub(super) fn damage(&self, id: ObjectId, at: usize) {
        let mut pages = self.pages.lock().unwrap();
        let mut bytes = pages[&id].to_vec();
        bytes[at] ^= 1;
        pages.insert(id, bytes.into());
    }

    fn load(&self, page: &PageRef) -> Result<LoadedPage, MapError> {
        let PageRef { volume, id, place, .. } = *page;
        let bytes = self.pages.lock().unwrap().get(&id).cloned().ok_or_else(|| not_found(id))?;
        let extents = match place {
            None => codec::decode_page(&bytes, volume, id, None)?,
            Some(place) => {
                let range = place.range().start as usize..place.range().end as usize;
                codec::decode_packed_page(bytes.slice(range), volume, id, place, None)?
            }
        };
        LoadedPage::new(&extents, &self.segments).map_err(|what| MapError::Damaged { volume, id, what })
    }
}

fn not_found(id: ObjectId) -> MapError {
    MapError::Store(crate::store::StoreError::NotFound { key: id.to_string() })
}

#[async_trait]
impl PageSource for MemorySource {
    fn begin_session(&self, _: SessionId) {}

    fn limits(&self) -> PageLimits {
        self.limits
    }

    async fn page(&self, page: &PageRef, _: Access) -> Result<Arc<LoadedPage>, MapError> {
        // Others run meanwhile, as they would while a store is asked.
        tokio::task::yield_now().await;
        self.page_loads.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(self.load(page)?))
    }

    async fn index(&self, index: &IndexRef, _: Access) -> Result<Arc<[PageRef]>, MapError> {
        tokio::task::yield_now().await;
        self.index_loads.fetch_add(1, Ordering::Relaxed);
        let pages = self.indexes.lock().unwrap().get(&index.id).cloned();
        Ok(pages.ok_or_else(|| not_found(index.id))?.into())
    }

    async fn check_pack(&self, pages: &[PageRef]) -> PackCheck {
        tokio::task::yield_now().await;
        let pack = pages[0];
        let table = match self.pages.lock().unwrap().get(&pack.id) {
            Some(bytes) => codec::decode_pack(bytes, pack.volume, pack.id, None).map(|_| ()),
            None => Ok(()),
        };
        let check = |page: &PageRef| self.load(page).map(|_| ());
        PackCheck { table: table.map_err(MapError::from), pages: pages.iter().map(check).collect() }
    }

    async fn put_pages(&self, pages: Vec<EncodedPage>) -> Result<Vec<PageRef>, MapError> {
        tokio::task::yield_now().await;
        assert!((1..=self.limits.pack_pages).contains(&pages.len()), "a pack too large");
        assert!(pages.iter().all(|page| page.extents() * 24 <= self.limits.page_bytes), "a page too large");
        let identity = Identity { volume: self.volume(), id: self.id(), session: ObjectId([1; 16]) };
        let encoded = codec::encode_pages(identity, &pages, None)?;
        self.pages.lock().unwrap().insert(identity.id, encoded.bytes);
        self.written.fetch_add(pages.len(), Ordering::Relaxed);
        encoded.pages.iter().for_each(|page| drop(self.load(page).expect("a page to put is valid")));
        Ok(encoded.pages)
    }

    async fn put_index(&self, pages: &[PageRef]) -> Result<IndexRef, MapError> {
        tokio::task::yield_now().await;
        assert!((1..=self.limits.index_pages).contains(&pages.len()), "an index too large");
        assert!(pages.windows(2).all(|two| two[0].end_lba <= two[1].first_lba), "pages out of order");
        let id = self.id();
        self.written.fetch_add(1, Ordering::Relaxed);
        self.indexes.lock().unwrap().insert(id, pages.to_vec());
        Ok(IndexRef {
            first_lba: pages[0].first_lba,
            end_lba: pages[pages.len() - 1].end_lba,
            volume: self.volume(),
            id,
            pages: pages.len() as u32,
        })
    }
}

/// The segment with this number.
pub(super) fn segment(number: u64) -> SegmentRef {
    SegmentRef {
        volume: VOLUME,
        birth: RecordNumber(number),
        id: ObjectId(u128::from(number).to_be_bytes()),
        kind: SegmentKind::Object,
    }
}

/// `blocks` blocks at `lba`, at `offset` in a chunk of 16 of a segment.
pub(super) fn extent(lba: u64, blocks: u32, number: u64, chunk: u32, offset: u8) -> Extent {
    let location = Location {
        segment: segment(number),
        stored_offset: chunk * 70_000,
        stored_len: 65_536 + 16,
        codec: [Codec::Raw, Codec::Lz4, Codec::Zstd][(number % 3) as usize],
        chunk_blocks: 16,
        chunk_offset: offset,
    };
    Extent { lba, blocks, location: Some(location) }
}

/// A hole.
pub(super) fn hole(lba: u64, blocks: u32) -> Extent {
    Extent { lba, blocks, location: None }
}

/// What a map should be: where each block lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Model(pub(super) Vec<Option<Location>>);

impl Model {
    pub(super) fn empty(blocks: usize) -> Self {
        Self(vec![None; blocks])
    }

    /// Overwrites.
    pub(super) fn write(&mut self, extent: &Extent) {
        for block in 0..extent.blocks {
            self.0[extent.lba as usize + block as usize] = extent.location.map(|l| l.skip(block as u8));
        }
    }

    /// What extents say about `range`, which they must cover in order and without a gap.
    pub(super) fn of(range: Range<u64>, extents: &[Extent]) -> Self {
        let mut blocks = Vec::new();
        let mut lba = range.start;
        for extent in extents {
            assert_eq!(extent.check(), Ok(()));
            assert_eq!(extent.lba, lba, "a gap or an overlap in {extents:?}");
            blocks.extend((0..extent.blocks).map(|block| extent.location.map(|l| l.skip(block as u8))));
            lba = extent.end();
        }
        assert_eq!(lba, range.end, "the answer does not reach the end");
        Self(blocks)
    }

    /// The blocks of `range`.
    pub(super) fn part(&self, range: Range<u64>) -> Self {
        Self(self.0[range.start as usize..range.end as usize].to_vec())
    }
}
