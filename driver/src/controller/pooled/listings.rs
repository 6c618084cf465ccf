//! Listings over all pools. A token is the pool and the place in it where the next page begins.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use holdfast_engine::ids::{PoolId, SnapshotId};
use holdfast_engine::log::Control;
use tokio::time::Instant;
use tonic::Status;

use super::{PooledStorage, if_found};
use crate::controller::storage::{Page, PageRequest, SnapshotInfo, VolumeInfo};
use crate::handles::VolumeHandle;
use crate::status;

/// Volumes that are looked at together.
const PARALLEL: usize = 16;

/// A place in the listing of a pool.
struct Place {
    pool: PoolId,
    /// Where in the pool; its beginning if none.
    from: Option<String>,
}

impl Place {
    fn parse(token: &str) -> Result<Self, Status> {
        let invalid = || Status::aborted(format!("{token:?} is no token of this listing; begin again"));
        let (pool, from) = token.split_once(':').ok_or_else(invalid)?;
        let is_hash = from.len() == 64 && from.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !from.is_empty() && !is_hash {
            return Err(invalid());
        }
        Ok(Self {
            pool: pool.parse().map_err(|_| invalid())?,
            from: Some(from.to_owned()).filter(|from| !from.is_empty()),
        })
    }

    fn token(&self) -> String {
        format!("{}:{}", self.pool, self.from.as_deref().unwrap_or_default())
    }
}

impl PooledStorage {
    /// The place where a listing begins, and the pools after it. Pools are listed in the order of their ids.
    fn begin(&self, page: &PageRequest) -> Result<(Option<Place>, Vec<PoolId>), Status> {
        let mut pools: Vec<PoolId> = self.pools.for_volumes().iter().map(|pool| pool.id()).collect();
        pools.sort_unstable();
        pools.dedup();
        match &page.token {
            Some(token) => {
                let place = Place::parse(token)?;
                pools.retain(|pool| *pool > place.pool);
                Ok((Some(place), pools))
            }
            None if pools.is_empty() => Ok((None, pools)),
            None => Ok((Some(Place { pool: pools.remove(0), from: None }), pools)),
        }
    }

    /// Fills a page pool by pool. `list` answers up to a number of entries from a place in a pool.
    async fn fill<'a, T>(
        &self,
        page: &PageRequest,
        list: impl Fn(Place, usize) -> BoxFuture<'a, Result<(Vec<T>, Option<String>), Status>>,
    ) -> Result<Page<T>, Status> {
        let (mut place, later) = self.begin(page)?;
        let mut later = later.into_iter();
        let mut entries = Vec::new();
        while let Some(here) = place {
            if entries.len() >= page.limit {
                return Ok(Page { entries, next: Some(here.token()) });
            }
            let pool = here.pool;
            let (found, next) = list(here, page.limit - entries.len()).await?;
            entries.extend(found);
            place = match next {
                Some(from) => Some(Place { pool, from: Some(from) }),
                None => later.next().map(|pool| Place { pool, from: None }),
            };
        }
        Ok(Page { entries, next: None })
    }

    pub(super) async fn list_volumes(
        &self,
        page: &PageRequest,
        deadline: Instant,
    ) -> Result<Page<VolumeInfo>, Status> {
        self.fill(page, |place, limit| self.volumes_in(place, limit, deadline).boxed()).await
    }

    pub(super) async fn list_snapshots(
        &self,
        page: &PageRequest,
        deadline: Instant,
    ) -> Result<Page<SnapshotInfo>, Status> {
        self.fill(page, |place, limit| self.snapshots_in(place, limit, deadline).boxed()).await
    }

    async fn volumes_in(
        &self,
        place: Place,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<VolumeInfo>, Option<String>), Status> {
        let pool = self.pools.pool(place.pool)?;
        let names = pool.list_volumes(place.from.as_deref(), limit, deadline).await.map_err(status::pool)?;
        let looks = names.items.into_iter().map(|named| {
            let handle = VolumeHandle { pool: place.pool, volume: named.volume };
            async move { if_found(self.info(handle, deadline).await) }
        });
        let infos: Vec<Option<VolumeInfo>> = stream::iter(looks).buffered(PARALLEL).try_collect().await?;
        // A name without a volume is one that is being made or deleted.
        Ok((infos.into_iter().flatten().collect(), names.next))
    }

    async fn snapshots_in(
        &self,
        place: Place,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<SnapshotInfo>, Option<String>), Status> {
        let pool = self.pools.pool(place.pool)?;
        let names =
            pool.list_snapshot_names(place.from.as_deref(), limit, deadline).await.map_err(status::pool)?;
        let looks = names.items.into_iter().map(|named| {
            let source = VolumeHandle { pool: place.pool, volume: named.volume };
            async move {
                let described = if_found(self.described(source, deadline).await)?;
                Ok(described.and_then(|(_, control)| named_snapshot(source, &control, &named.name)))
            }
        });
        let infos: Result<Vec<Option<SnapshotInfo>>, Status> =
            stream::iter(looks).buffered(PARALLEL).try_collect().await;
        Ok((infos?.into_iter().flatten().collect(), names.next))
    }

    /// The snapshots of one volume, in the order in which they were taken.
    pub(super) async fn list_snapshots_of(
        &self,
        volume: VolumeHandle,
        page: &PageRequest,
        deadline: Instant,
    ) -> Result<Page<SnapshotInfo>, Status> {
        let after = match &page.token {
            Some(token) => u64::from_str_radix(token, 16).map(SnapshotId).map_err(|_| {
                Status::aborted(format!("{token:?} is no token of this listing; begin again"))
            })?,
            None => SnapshotId(0),
        };
        let Some((_, control)) = if_found(self.described(volume, deadline).await)? else {
            return Ok(Page { entries: Vec::new(), next: None });
        };
        let live = control.snapshots.iter().filter(|(id, snapshot)| **id > after && !snapshot.deleted);
        let mut entries: Vec<SnapshotInfo> = Vec::new();
        for (id, snapshot) in live {
            if entries.len() >= page.limit {
                let last = entries.last().map(|info| info.handle.snapshot.to_string());
                return Ok(Page { entries, next: last });
            }
            entries.push(super::snapshots::info(volume.snapshot(*id), snapshot));
        }
        Ok(Page { entries, next: None })
    }
}

fn named_snapshot(source: VolumeHandle, control: &Control, name: &str) -> Option<SnapshotInfo> {
    let (id, snapshot) = control.snapshot_named(name)?;
    Some(super::snapshots::info(source.snapshot(id), snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_others_are_refused() {
        for from in [None, Some("0a".repeat(32))] {
            let token = Place { pool: PoolId([7; 16]), from: from.clone() }.token();
            let place = Place::parse(&token).expect("ours");
            assert_eq!((place.pool, place.from), (PoolId([7; 16]), from));
        }
        for token in ["invalid", "07:", &format!("{}:xx", "07".repeat(16))] {
            assert_eq!(Place::parse(token).err().map(|status| status.code()), Some(tonic::Code::Aborted));
        }
    }
}
