//! The pages of a volume's map in its pool.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use tokio::time::Instant;

use super::cache::Loaded;
use super::{Access, Extent, IndexRef, LoadedPage, MapError, PageCache, PageRef, PageSource};
use crate::codec::{self, Identity};
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
    async fn put(
        &self,
        encode: impl FnOnce(Identity, Option<&codec::DataKey>) -> Result<Bytes, codec::CodecError>,
    ) -> Result<ObjectId, MapError> {
        let session = *self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.is_none() {
            return Err(MapError::Refused { what: "a page that no session writes" });
        }
        let source = self.lineage.source(self.volume)?;
        let id = ObjectId::random(&*self.env.entropy);
        let body = encode(Identity { volume: self.volume, id, session }, source.key.as_ref())?;
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
        Ok(id)
    }

    fn load(
        &self,
        volume: VolumeId,
        id: ObjectId,
    ) -> Result<impl Future<Output = Result<(Bytes, Option<codec::DataKey>), MapError>> + use<>, MapError>
    {
        let source = self.lineage.source(volume)?;
        let env = self.env.clone();
        Ok(async move {
            let key = layout::map(volume, id);
            let store: &dyn Store = &*source.store;
            Ok((retry(&env, Instant::now() + PATIENCE, || store.get(&key)).await?, source.key))
        })
    }
}

#[async_trait]
impl PageSource for VolumePages {
    fn begin_session(&self, session: SessionId) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
    }

    async fn page(&self, page: &PageRef, access: Access) -> Result<Arc<LoadedPage>, MapError> {
        let PageRef { volume, id, first_lba, end_lba, .. } = *page;
        let load = self.load(volume, id)?;
        let cache = self.cache.clone();
        let load = || {
            async move {
                let (bytes, key) = load.await?;
                let extents = codec::decode_page(&bytes, volume, id, key.as_ref())?;
                let damaged = |what| MapError::Damaged { volume, id, what };
                let loaded = LoadedPage::new(&extents, &cache.segments).map_err(damaged)?;
                if (loaded.first_lba(), loaded.end_lba()) != (first_lba, end_lba) {
                    return Err(damaged("other blocks than its reference says"));
                }
                Ok(Loaded::Page(Arc::new(loaded)))
            }
            .boxed()
        };
        match self.cache.get(id, access, load).await? {
            Loaded::Page(page) => Ok(page),
            Loaded::Index(_) => Err(MapError::Damaged { volume, id, what: "an index instead of a page" }),
        }
    }

    async fn index(&self, index: &IndexRef, access: Access) -> Result<Arc<[PageRef]>, MapError> {
        let IndexRef { volume, id, first_lba, end_lba, .. } = *index;
        let load = self.load(volume, id)?;
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
        match self.cache.get(id, access, load).await? {
            Loaded::Index(pages) => Ok(pages),
            Loaded::Page(_) => Err(MapError::Damaged { volume, id, what: "a page instead of an index" }),
        }
    }

    async fn put_page(&self, extents: &[Extent]) -> Result<PageRef, MapError> {
        let id = self.put(|identity, key| codec::encode_page(identity, extents, key)).await?;
        Ok(PageRef {
            first_lba: extents.first().map_or(0, |extent| extent.lba),
            end_lba: extents.last().map_or(0, Extent::end),
            volume: self.volume,
            id,
            extents: extents.len() as u32,
        })
    }

    async fn put_index(&self, pages: &[PageRef]) -> Result<IndexRef, MapError> {
        let id = self.put(|identity, key| codec::encode_index(identity, pages, key)).await?;
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
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::testing::{extent, hole};
    use super::super::{Checkpoint, Compactor, Map, MapView};
    use super::*;
    use crate::codec::DataKey;
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

    async fn checkpoint(map: &Map) -> crate::map::StoredMap {
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
        let merged = compactor.step(&source, &stored, 1_000).await.unwrap().unwrap();
        let owners: Vec<VolumeId> = merged.superseded.iter().map(|object| object.volume).collect();
        assert!(owners.contains(&VOLUME) && owners.contains(&CLONE), "both are superseded alike");
        stored = merged.map;

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
        let page = source.put_page(&[extent(0, 4, 1, 0, 0)]).await.unwrap();
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

    #[tokio::test]
    async fn nothing_is_written_outside_of_a_session() {
        let store = Arc::new(Flaky::default());
        let source = VolumePages::new(PageCache::new(1 << 20), lineage(&store), VOLUME, Env::system());
        assert!(matches!(source.put_page(&[hole(0, 1)]).await, Err(MapError::Refused { .. })));
        assert_eq!(store.calls.load(Ordering::Relaxed), 0);
    }
}
