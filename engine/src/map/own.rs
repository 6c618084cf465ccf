//! What a volume's own pages say: for who looks for its own objects.
//!
//! # Guarantees
//! Whatever a map names of the volume's own objects its own pages name: an ancestor's pages and indexes were written
//! before the volume came into being. Without them no name is missing, and none that they hide is hidden any more. So
//! the collector of a clone reads what the clone has written, not all that its source is; and that of a restored volume
//! does its work while the archive is away.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Access, IndexRef, LoadedPage, MapError, PackCheck, PageLimits, PageRef, PageSource};
use crate::codec::EncodedPage;
use crate::ids::{SessionId, VolumeId};

/// Pages of which those of other volumes than `volume` say nothing, and are not loaded.
#[derive(Debug)]
struct OwnPages {
    volume: VolumeId,
    source: Arc<dyn PageSource>,
}

/// The same pages, of which those of other volumes than `volume` say nothing.
pub(super) fn own_pages(source: &Arc<dyn PageSource>, volume: VolumeId) -> Arc<dyn PageSource> {
    Arc::new(OwnPages { volume, source: Arc::clone(source) })
}

#[async_trait]
impl PageSource for OwnPages {
    fn begin_session(&self, session: SessionId) {
        self.source.begin_session(session);
    }

    fn limits(&self) -> PageLimits {
        self.source.limits()
    }

    async fn page(&self, page: &PageRef, access: Access) -> Result<Arc<LoadedPage>, MapError> {
        if page.volume == self.volume {
            self.source.page(page, access).await
        } else {
            Ok(Arc::new(LoadedPage::silent()))
        }
    }

    async fn index(&self, index: &IndexRef, access: Access) -> Result<Arc<[PageRef]>, MapError> {
        if index.volume == self.volume {
            return self.source.index(index, access).await;
        }
        // Its pages are no more the volume's own than it is: one stands for them all.
        let IndexRef { first_lba, end_lba, volume, id, .. } = *index;
        Ok([PageRef { first_lba, end_lba, volume, id, place: None, extents: 0 }].into())
    }

    async fn check_pack(&self, pages: &[PageRef]) -> PackCheck {
        self.source.check_pack(pages).await
    }

    async fn put_pages(&self, pages: Vec<EncodedPage>) -> Result<Vec<PageRef>, MapError> {
        self.source.put_pages(pages).await
    }

    async fn put_index(&self, pages: &[PageRef]) -> Result<IndexRef, MapError> {
        self.source.put_index(pages).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MemorySource, extent};
    use super::super::{Checkpoint, Extent, Map, MapView, Walk};
    use super::*;
    use crate::log::Op;

    const CLONE: VolumeId = VolumeId([8; 16]);

    async fn write(map: &Map, extents: impl Iterator<Item = Extent>) -> MapView {
        map.apply(&[Op::Write { extents: extents.collect() }]).await.unwrap();
        let frozen = map.freeze();
        let stored = Checkpoint::write(&[&frozen]).await.unwrap().stored(&frozen).unwrap();
        assert!(map.replace(&frozen, &stored));
        map.freeze()
    }

    async fn walked(view: &MapView) -> Vec<Extent> {
        let (mut walk, mut all) = (Walk::new(view), Vec::new());
        while let Some(extents) = walk.next().await.unwrap() {
            all.extend(extents);
        }
        all
    }

    #[tokio::test]
    async fn a_clones_own_pages_say_all_that_it_wrote_though_its_sources_cannot_be_read() {
        let source = MemorySource::with_small_pages();
        let pages: Arc<dyn PageSource> = source.clone();
        let map = Map::empty(pages);
        write(&map, (0..400).map(|n| extent(n * 16, 16, n, 0, 0))).await;
        let theirs = source.objects();
        source.write_as(CLONE);
        let own: Vec<Extent> = (0..300).map(|n| extent(n * 20 + 7, 3, 1000 + n, 0, 0)).collect();
        let view = write(&map, own.iter().copied()).await;
        theirs.iter().for_each(|object| source.delete(*object));
        assert_eq!(walked(&view.of_own_pages(CLONE)).await, own);
    }
}
