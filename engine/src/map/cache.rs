//! The pages that a process keeps in memory, for all its volumes together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use super::{Access, LoadedPage, MapError, MapPart, PageLimits, PageRef, SegmentTable};

/// A page or an index, loaded. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Loaded {
    Page(Arc<LoadedPage>),
    Index(Arc<[PageRef]>),
}

impl Loaded {
    fn bytes(&self) -> usize {
        match self {
            Self::Page(page) => page.bytes(),
            Self::Index(pages) => size_of_val::<[PageRef]>(pages),
        }
    }
}

type Load = Shared<BoxFuture<'static, Result<Loaded, MapError>>>;

/// Pages and indexes, the least recently used dropped first.
///
/// # Guarantees
/// - It holds no more than its limit in bytes, and the names of the segments that its pages mention, once each.
/// - Each is loaded once however many wait for it; if all of them go away, so does the load.
/// - It is never stale: ids are random, and objects never change.
#[derive(Debug)]
pub struct PageCache {
    limit_bytes: usize,
    /// Of the objects that volumes with this cache write.
    pub(super) limits: PageLimits,
    pub(super) segments: SegmentTable,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<MapPart, (u64, Loaded)>,
    /// The same by last use.
    by_use: BTreeMap<u64, MapPart>,
    uses: u64,
    bytes: usize,
    loading: BTreeMap<MapPart, WeakShared<BoxFuture<'static, Result<Loaded, MapError>>>>,
}

impl PageCache {
    /// A cache of at most `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Self::for_pages(PageLimits::default(), limit_bytes)
    }

    /// A cache of at most `limit_bytes`, for volumes that write objects within `limits`: small ones, so that the maps
    /// of small volumes have many.
    pub fn for_pages(limits: PageLimits, limit_bytes: usize) -> Arc<Self> {
        let (segments, state) = (SegmentTable::default(), Mutex::default());
        Arc::new(Self { limit_bytes, limits, segments, state })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// The page or index `part`: held, or being loaded already, or loaded by `load`.
    pub(super) async fn get(
        &self,
        part: MapPart,
        access: Access,
        load: impl FnOnce() -> BoxFuture<'static, Result<Loaded, MapError>>,
    ) -> Result<Loaded, MapError> {
        let loading = {
            let mut state = self.state();
            if let Some(held) = state.touch(part) {
                return Ok(held);
            }
            match state.loading.get(&part).and_then(WeakShared::upgrade) {
                Some(loading) => loading,
                None => state.begin(part, load().shared()),
            }
        };
        let loaded = loading.await;
        let mut state = self.state();
        state.loading.remove(&part);
        if let (Access::Lookup, Ok(loaded)) = (access, &loaded) {
            state.hold(part, loaded.clone(), self.limit_bytes);
        }
        loaded
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that changes the state can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn touch(&mut self, part: MapPart) -> Option<Loaded> {
        let (used, held) = self.held.get_mut(&part)?;
        self.uses += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.uses, part);
        *used = self.uses;
        Some(held.clone())
    }

    fn begin(&mut self, part: MapPart, load: Load) -> Load {
        // Loads that nobody waits for any more leave their entry behind.
        self.loading.retain(|_, loading| loading.upgrade().is_some());
        // Not yet polled to its end, so it can be downgraded.
        self.loading.extend(load.downgrade().map(|weak| (part, weak)));
        load
    }

    fn hold(&mut self, part: MapPart, loaded: Loaded, limit_bytes: usize) {
        if self.touch(part).is_some() {
            return;
        }
        self.uses += 1;
        self.bytes += loaded.bytes();
        self.by_use.insert(self.uses, part);
        self.held.insert(part, (self.uses, loaded));
        while self.bytes > limit_bytes
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            if let Some((_, dropped)) = self.held.remove(&oldest) {
                self.bytes -= dropped.bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::super::testing::extent;
    use super::*;
    use crate::ids::ObjectId;

    fn part(number: u8) -> MapPart {
        MapPart { id: ObjectId([1; 16]), offset: 32 * u32::from(number) }
    }

    /// A page of 100 extents, 1.6 kB.
    fn page() -> Result<Loaded, MapError> {
        let extents: Vec<_> = (0..100).map(|n| extent(n * 20, 1, 1, n as u32, 0)).collect();
        Ok(Loaded::Page(Arc::new(LoadedPage::new(&extents, &SegmentTable::default()).unwrap())))
    }

    fn failed() -> Result<Loaded, MapError> {
        Err(MapError::Refused { what: "this" })
    }

    async fn get(cache: &PageCache, number: u8, access: Access, loads: &AtomicUsize) {
        let load = || {
            loads.fetch_add(1, Ordering::Relaxed);
            async { page() }.boxed()
        };
        cache.get(part(number), access, load).await.unwrap();
    }

    #[tokio::test]
    async fn many_who_wait_load_once() {
        let cache = PageCache::new(1 << 20);
        let (go, wait) = oneshot::channel::<()>();
        let load = || {
            async move {
                wait.await.unwrap();
                page()
            }
            .boxed()
        };
        let first = cache.get(part(1), Access::Lookup, load);
        let never = || unreachable!("it is being loaded already");
        let others = (0..10).map(|_| cache.get(part(1), Access::Lookup, never));
        let all = futures::future::join(first, futures::future::join_all(others));
        let (_, (first, others)) = tokio::join!(async { go.send(()) }, all);
        assert!(first.is_ok() && others.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn who_goes_away_does_not_stop_the_load_of_others() {
        let cache = PageCache::new(1 << 20);
        let (go, wait) = oneshot::channel::<()>();
        let load = || {
            async move {
                wait.await.unwrap();
                page()
            }
            .boxed()
        };
        let mut first = Box::pin(cache.get(part(1), Access::Lookup, load));
        assert!(first.as_mut().now_or_never().is_none());
        let never = || unreachable!("it is being loaded already");
        let mut second = Box::pin(cache.get(part(1), Access::Lookup, never));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        go.send(()).unwrap();
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let cache = PageCache::new(1 << 20);
        assert!(cache.get(part(1), Access::Lookup, || async { failed() }.boxed()).await.is_err());
        assert!(cache.get(part(1), Access::Lookup, || async { page() }.boxed()).await.is_ok());
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first_and_scans_push_nothing_out() {
        let cache = PageCache::new(5_000);
        let loads = AtomicUsize::new(0);
        get(&cache, 1, Access::Lookup, &loads).await;
        get(&cache, 2, Access::Lookup, &loads).await;
        for number in 10..50 {
            get(&cache, number, Access::Scan, &loads).await;
        }
        assert_eq!(loads.swap(0, Ordering::Relaxed), 42);
        get(&cache, 1, Access::Lookup, &loads).await;
        get(&cache, 2, Access::Lookup, &loads).await;
        assert_eq!(loads.load(Ordering::Relaxed), 0);

        get(&cache, 1, Access::Lookup, &loads).await;
        get(&cache, 3, Access::Lookup, &loads).await;
        get(&cache, 4, Access::Lookup, &loads).await;
        assert_eq!(loads.swap(0, Ordering::Relaxed), 2);
        assert!(cache.bytes() <= 5_000);
        get(&cache, 1, Access::Lookup, &loads).await;
        assert_eq!(loads.swap(0, Ordering::Relaxed), 0);
        get(&cache, 2, Access::Lookup, &loads).await;
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }
}
