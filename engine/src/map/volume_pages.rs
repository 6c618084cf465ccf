//! The pages of a volume's map in its pool.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use tokio::time::Instant;

use super::cache::Loaded;
use super::{
    Access, Extent, IndexRef, LoadedPage, MapError, PackCheck, PageCache, PageLimits, PageRef, PageSource,
    SegmentTable,
};
use crate::codec::{self, EncodedPage, Identity};
use crate::env::Env;
use crate::ids::{ObjectId, SessionId, VolumeId};
use crate::lineage::Lineage;
use crate::pool::layout;
use crate::store::{Store, StoreError, retry};

/// How long a page is asked for or put again while the store is unavailable.
const PATIENCE: Duration = Duration::from_secs(120);

/// Reads the pages of a volume and of its ancestors through a cache, and writes the volume's own.
#[derive(Debug)]
pub struct VolumePages {
    cache: Arc<PageCache>,
    lineage: Lineage,
    volume: VolumeId,
    env: Env,
    session: Mutex<SessionId>,
}

impl VolumePages {
    /// The pages of `volume`, which `lineage` knows, with its ancestors. Read only until a session begins.
    pub fn new(cache: Arc<PageCache>, lineage: Lineage, volume: VolumeId, env: Env) -> Arc<Self> {
        Arc::new(Self { cache, lineage, volume, env, session: Mutex::new(SessionId::NONE) })
    }

    /// Stores what `encode` makes for a new object of this volume.
    async fn put<T>(
        &self,
        encode: impl FnOnce(Identity, Option<&codec::DataKey>) -> Result<(Bytes, T), codec::CodecError>,
    ) -> Result<T, MapError> {
        let session = *self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.is_none() {
            return Err(MapError::Refused { what: "a page that no session writes" });
        }
        let source = self.lineage.source(self.volume)?;
        let id = ObjectId::random(&*self.env.entropy);
        let (body, named) = encode(Identity { volume: self.volume, id, session }, source.key.as_ref())?;
        let key = layout::map(self.volume, id);
        let store = &*source.store;
        retry(&self.env, Instant::now() + PATIENCE, || async {
            match store.put_if_absent(&key, body.clone()).await {
                // The id is random, so it is ours, and the reply to our first put was lost.
                Err(StoreError::AlreadyExists { .. }) if store.get(&key).await? == body => Ok(()),
                answer => answer,
            }
        })
        .await?;
        Ok(named)
    }

    /// Begins to load an object, or the part of it in `range`; of an object that is shorter, what is there.
    fn load(
        &self,
        volume: VolumeId,
        id: ObjectId,
        range: Option<Range<u64>>,
    ) -> Result<impl Future<Output = Result<(Bytes, Option<codec::DataKey>), MapError>> + use<>, MapError>
    {
        let source = self.lineage.source(volume)?;
        let env = self.env.clone();
        Ok(async move {
            let key = layout::map(volume, id);
            let store: &dyn Store = &*source.store;
            let read = || async {
                let Some(range) = &range else { return store.get(&key).await };
                match store.get_range(&key, range.clone()).await {
                    Err(StoreError::Refused { .. }) => Ok(part(&store.get(&key).await?, range)),
                    answer => answer,
                }
            };
            Ok((retry(&env, Instant::now() + PATIENCE, read).await?, source.key))
        })
    }
}

/// The bytes of `object` in `range`, as far as it has them.
fn part(object: &Bytes, range: &Range<u64>) -> Bytes {
    let have = object.len() as u64;
    object.slice(range.start.min(have) as usize..range.end.min(have) as usize)
}

/// Decodes a page from its object, or from its part of a pack, and checks that it is the one that is meant.
fn decode(
    page: &PageRef,
    bytes: Bytes,
    key: Option<&codec::DataKey>,
    segments: &SegmentTable,
) -> Result<LoadedPage, MapError> {
    let PageRef { volume, id, place, first_lba, end_lba, .. } = *page;
    let extents: Vec<Extent> = match place {
        None => codec::decode_page(&bytes, volume, id, key)?,
        Some(place) => codec::decode_packed_page(bytes, volume, id, place, key)?,
    };
    let damaged = |what| MapError::Damaged { volume, id, what };
    let loaded = LoadedPage::new(&extents, segments).map_err(damaged)?;
    if (loaded.first_lba(), loaded.end_lba()) != (first_lba, end_lba) {
        return Err(damaged("other blocks than its reference says"));
    }
    Ok(loaded)
}

#[async_trait]
impl PageSource for VolumePages {
    fn begin_session(&self, session: SessionId) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
    }

    fn limits(&self) -> PageLimits {
        self.cache.limits
    }

    async fn page(&self, page: &PageRef, access: Access) -> Result<Arc<LoadedPage>, MapError> {
        let page = *page;
        let PageRef { volume, id, place, .. } = page;
        let load = self.load(volume, id, place.map(|place| place.range()))?;
        let cache = self.cache.clone();
        let load = || {
            async move {
                let (bytes, key) = load.await?;
                Ok(Loaded::Page(Arc::new(decode(&page, bytes, key.as_ref(), &cache.segments)?)))
            }
            .boxed()
        };
        match self.cache.get((&page).into(), access, load).await? {
            Loaded::Page(page) => Ok(page),
            Loaded::Index(_) => Err(MapError::Damaged { volume, id, what: "an index instead of a page" }),
        }
    }

    async fn index(&self, index: &IndexRef, access: Access) -> Result<Arc<[PageRef]>, MapError> {
        let IndexRef { volume, id, first_lba, end_lba, .. } = *index;
        let load = self.load(volume, id, None)?;
        let load = || {
            async move {
                let (bytes, key) = load.await?;
                let pages = codec::decode_index(&bytes, volume, id, key.as_ref())?;
                let ends =
                    pages.first().map(|page| page.first_lba).zip(pages.last().map(|page| page.end_lba));
                if ends != Some((first_lba, end_lba)) {
                    let what = "pages of other blocks than its reference says";
                    return Err(MapError::Damaged { volume, id, what });
                }
                Ok(Loaded::Index(pages.into()))
            }
            .boxed()
        };
        match self.cache.get(index.into(), access, load).await? {
            Loaded::Index(pages) => Ok(pages),
            Loaded::Page(_) => Err(MapError::Damaged { volume, id, what: "a page instead of an index" }),
        }
    }

    async fn check_pack(&self, pages: &[PageRef]) -> PackCheck {
        let Some(PageRef { volume, id, .. }) = pages.first().copied() else {
            return PackCheck { table: Ok(()), pages: Vec::new() };
        };
        let loaded = match self.load(volume, id, None) {
            Ok(load) => load.await,
            Err(error) => Err(error),
        };
        let (bytes, key) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                return PackCheck { table: Ok(()), pages: vec![Err(error); pages.len()] };
            }
        };
        let key = key.as_ref();
        let table = codec::decode_pack(&bytes, volume, id, key).map(|_| ()).map_err(MapError::from);
        let check = |page: &PageRef| {
            let bytes = page.place.map_or(bytes.clone(), |place| part(&bytes, &place.range()));
            decode(page, bytes, key, &self.cache.segments).map(|_| ())
        };
        PackCheck { table, pages: pages.iter().map(check).collect() }
    }

    async fn put_pages(&self, pages: Vec<EncodedPage>) -> Result<Vec<PageRef>, MapError> {
        self.put(|identity, key| {
            codec::encode_pages(identity, &pages, key).map(|encoded| (encoded.bytes, encoded.pages))
        })
        .await
    }

    async fn put_index(&self, pages: &[PageRef]) -> Result<IndexRef, MapError> {
        let encode = |identity: Identity, key: Option<&codec::DataKey>| {
            Ok((codec::encode_index(identity, pages, key)?, identity.id))
        };
        let id = self.put(encode).await?;
        Ok(IndexRef {
            first_lba: pages.first().map_or(0, |page| page.first_lba),
            end_lba: pages.last().map_or(0, |page| page.end_lba),
            volume: self.volume,
            id,
            pages: pages.len() as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::testing::{extent, hole};
    use super::super::{Checkpoint, Compactor, Map, MapView, PackPlace, RunRef, StoredMap};
    use super::*;
    use crate::codec::{CodecError, DataKey};
    use crate::lineage::Source;
    use crate::log::Op;
    use crate::store::{Listed, Memory};

    const VOLUME: VolumeId = VolumeId([1; 16]);
    const CLONE: VolumeId = VolumeId([2; 16]);

    /// Of every eight calls one fails: a put lands and its reply is lost, a get finds the store unavailable.
    #[derive(Debug, Default)]
    struct Flaky {
        inner: Memory,
        calls: AtomicUsize,
        gets: AtomicUsize,
    }

    impl Flaky {
        fn fails(&self, key: &str) -> Result<(), StoreError> {
            match self.calls.fetch_add(1, Ordering::Relaxed) % 8 {
                0 => Err(StoreError::Unavailable { key: key.into(), reason: "lost".into() }),
                _ => Ok(()),
            }
        }
    }

    #[async_trait]
    impl Store for Flaky {
        async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
            self.inner.put_if_absent(key, body).await?;
            self.fails(key)
        }

        async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
            self.fails(key)?;
            self.gets.fetch_add(1, Ordering::Relaxed);
            self.inner.get(key).await
        }

        async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
            self.fails(key)?;
            self.gets.fetch_add(1, Ordering::Relaxed);
            self.inner.get_range(key, range).await
        }

        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            limit: usize,
        ) -> Result<Vec<Listed>, StoreError> {
            self.inner.list(prefix, after, limit).await
        }

        async fn delete(&self, key: &str) -> Result<(), StoreError> {
            self.inner.delete(key).await
        }
    }

    fn lineage(store: &Arc<Flaky>) -> Lineage {
        let lineage = Lineage::default();
        for (volume, key) in [(VOLUME, None), (CLONE, Some(DataKey::new([9; 32])))] {
            lineage.insert(volume, Source { store: store.clone(), key });
        }
        lineage
    }

    fn pages(store: &Arc<Flaky>, volume: VolumeId) -> Arc<VolumePages> {
        let pages = VolumePages::new(PageCache::new(1 << 20), lineage(store), volume, Env::system());
        pages.begin_session(ObjectId([5; 16]));
        pages
    }

    /// The pages of a small map.
    fn named(stored: &StoredMap) -> Vec<PageRef> {
        let pages = |run: &RunRef| match run {
            RunRef::Pages(pages) => pages.clone(),
            RunRef::Indexed(_) => panic!("a small map has no index"),
        };
        stored.runs.iter().flat_map(pages).collect()
    }

    async fn put(source: &VolumePages, pages: &[&[Extent]]) -> Result<Vec<PageRef>, MapError> {
        source.put_pages(pages.iter().map(|page| EncodedPage::new(page).unwrap()).collect()).await
    }

    async fn checkpoint(map: &Map) -> StoredMap {
        let frozen = map.freeze();
        let stored = Checkpoint::write(&[&frozen]).await.unwrap().stored(&frozen).unwrap();
        assert!(map.replace(&frozen, &stored));
        stored
    }

    #[tokio::test]
    async fn a_clone_builds_on_its_ancestors_pages_through_an_unreliable_store() {
        let store = Arc::new(Flaky::default());
        let parent = Map::empty(pages(&store, VOLUME));
        let extents = (0..9_000).map(|n| extent(n * 20, 16, n / 40, (n % 40) as u32, 0)).collect();
        parent.apply(&[Op::Write { extents }]).await.unwrap();
        let stored = checkpoint(&parent).await;

        // Another process, with an empty cache.
        let source = pages(&store, CLONE);
        let clone = Map::from_stored(source.clone(), &stored);
        clone.apply(&[Op::Write { extents: vec![hole(20 * 4_000, 16)] }]).await.unwrap();
        let mut stored = checkpoint(&clone).await;
        let mut compactor = Compactor::default();
        compactor.request_full_merge();
        let source: Arc<dyn PageSource> = source;
        let before = named(&stored);
        compactor.step(&source, &mut stored, 1_000).await.unwrap();
        let after = named(&stored);
        let gone: Vec<&PageRef> = before.iter().filter(|page| !after.contains(page)).collect();
        let owned_by = |volume: VolumeId| gone.iter().any(|page| page.volume == volume);
        assert!(owned_by(VOLUME) && owned_by(CLONE), "both give way alike");

        let again = MapView::from_stored(pages(&store, CLONE), &stored);
        for n in [0, 3_999, 4_001, 8_999] {
            let found = again.lookup(n * 20..n * 20 + 16).await.unwrap();
            assert_eq!(found, [extent(n * 20, 16, n / 40, (n % 40) as u32, 0)]);
        }
        assert_eq!(again.lookup(20 * 4_000..20 * 4_000 + 16).await.unwrap(), [hole(20 * 4_000, 16)]);
    }

    #[tokio::test]
    async fn lookups_of_one_page_ask_the_store_once() {
        let store = Arc::new(Flaky::default());
        let map = Map::empty(pages(&store, VOLUME));
        map.apply(&[Op::Write { extents: (0..100).map(|n| extent(n * 20, 16, n, 0, 0)).collect() }])
            .await
            .unwrap();
        let stored = checkpoint(&map).await;
        let view = MapView::from_stored(pages(&store, VOLUME), &stored);
        store.gets.store(0, Ordering::Relaxed);
        let lookups = (0..100).map(|n| view.lookup(n * 20..n * 20 + 16));
        for (n, found) in futures::future::join_all(lookups).await.into_iter().enumerate() {
            assert_eq!(found.unwrap(), [extent(n as u64 * 20, 16, n as u64, 0, 0)]);
        }
        assert_eq!(store.gets.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_page_in_anothers_place_is_refused() {
        let store = Arc::new(Flaky::default());
        let source = pages(&store, VOLUME);
        let page = put(&source, &[&[extent(0, 4, 1, 0, 0)]]).await.unwrap()[0];
        let index = source.put_index(&[page]).await.unwrap();
        assert!(source.page(&page, Access::Lookup).await.is_ok());
        let elsewhere = PageRef { end_lba: 5, ..page };
        let fresh = || pages(&store, VOLUME);
        assert!(matches!(
            fresh().page(&elsewhere, Access::Lookup).await,
            Err(MapError::Damaged { what: "other blocks than its reference says", .. })
        ));
        let swapped = PageRef { id: index.id, ..page };
        assert!(matches!(fresh().page(&swapped, Access::Lookup).await, Err(MapError::Codec(_))));
        let unknown = PageRef { volume: VolumeId([3; 16]), ..page };
        assert!(matches!(fresh().page(&unknown, Access::Lookup).await, Err(MapError::UnknownAncestor(_))));
        let gone = PageRef { id: ObjectId([8; 16]), ..page };
        assert!(matches!(
            fresh().page(&gone, Access::Lookup).await,
            Err(MapError::Store(StoreError::NotFound { .. }))
        ));
    }

    /// Three pages of a pack, in the volume or its encrypted clone.
    async fn pack(store: &Arc<Flaky>, volume: VolumeId) -> Vec<PageRef> {
        let source = pages(store, volume);
        let extents: Vec<Extent> = (0..300).map(|n| extent(n * 20, 16, n, 0, 0)).collect();
        let chunks: Vec<&[Extent]> = extents.chunks(100).collect();
        put(&source, &chunks).await.unwrap()
    }

    #[tokio::test]
    async fn pages_that_are_put_together_are_one_object_and_each_is_one_ranged_get() {
        for volume in [VOLUME, CLONE] {
            let store = Arc::new(Flaky::default());
            let packed = pack(&store, volume).await;
            assert_eq!(store.inner.list("", None, 10).await.unwrap().len(), 1);
            let source = pages(&store, volume);
            store.gets.store(0, Ordering::Relaxed);
            for (n, page) in packed.iter().enumerate() {
                let loaded = source.page(page, Access::Lookup).await.unwrap();
                assert_eq!((loaded.len(), loaded.first_lba()), (100, n as u64 * 2_000));
            }
            assert_eq!(store.gets.load(Ordering::Relaxed), 3);
            let check = source.check_pack(&packed).await;
            assert!(check.table.is_ok() && check.pages.iter().all(Result::is_ok));
            assert_eq!(store.gets.load(Ordering::Relaxed), 4);
        }
    }

    #[tokio::test]
    async fn a_page_at_anothers_place_in_a_pack_is_refused() {
        for volume in [VOLUME, CLONE] {
            let store = Arc::new(Flaky::default());
            let packed = pack(&store, volume).await;
            let there = PageRef { place: packed[1].place, ..packed[0] };
            assert!(matches!(
                pages(&store, volume).page(&there, Access::Lookup).await,
                Err(MapError::Damaged { what: "other blocks than its reference says", .. })
            ));
            let alone = PageRef { place: None, ..packed[0] };
            assert!(matches!(
                pages(&store, volume).page(&alone, Access::Lookup).await,
                Err(MapError::Codec(_))
            ));
            let place = packed[0].place.unwrap();
            for wrong in
                [PackPlace { offset: place.offset + 32, ..place }, PackPlace { len: place.len - 1, ..place }]
            {
                let page = PageRef { place: Some(wrong), ..packed[0] };
                let read = pages(&store, volume).page(&page, Access::Lookup).await;
                assert!(matches!(read, Err(MapError::Codec(_))), "{wrong:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_pack_that_ends_too_early_is_damaged_and_its_first_pages_are_read() {
        let store = Arc::new(Flaky::default());
        let packed = pack(&store, VOLUME).await;
        let key = layout::map(VOLUME, packed[0].id);
        let whole = store.inner.get(&key).await.unwrap();
        store.inner.delete(&key).await.unwrap();
        store.inner.put_if_absent(&key, whole.slice(..whole.len() - 1)).await.unwrap();
        let source = pages(&store, VOLUME);
        assert!(source.page(&packed[1], Access::Lookup).await.is_ok());
        let read = source.page(&packed[2], Access::Lookup).await;
        assert!(matches!(read, Err(MapError::Codec(CodecError::Truncated { .. }))), "{read:?}");
        let check = source.check_pack(&packed).await;
        assert!(check.table.is_err() && check.pages[1].is_ok() && check.pages[2].is_err());
    }

    #[tokio::test]
    async fn nothing_is_written_outside_of_a_session() {
        let store = Arc::new(Flaky::default());
        let source = VolumePages::new(PageCache::new(1 << 20), lineage(&store), VOLUME, Env::system());
        assert!(matches!(put(&source, &[&[hole(0, 1)]]).await, Err(MapError::Refused { .. })));
        assert_eq!(store.calls.load(Ordering::Relaxed), 0);
    }
}
