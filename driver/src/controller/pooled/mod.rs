//! [`Storage`] over the engine's pools.
//!
//! An operation on a volume that is open on a node is asked of that node ([`crate::owner`]); on one that is not, it is
//! done here.

mod listings;
mod owned;
mod snapshots;
pub mod tending;
mod volumes;

use std::path::Path;

use async_trait::async_trait;
use holdfast_engine::control;
use holdfast_engine::host::{Found, Host};
use holdfast_engine::ids::GrantId;
use holdfast_engine::log::{Control, GrantMode};
use tokio::time::Instant;
use tonic::{Code, Status};
use url::Url;

use super::storage::{NewVolume, Page, PageRequest, SnapshotInfo, Storage, VolumeInfo};
use crate::handles::{SnapshotHandle, VolumeHandle};
use crate::owner::client::Owners;
use crate::params::Durability;
use crate::pools::{Pools, deadline};
use crate::publication::Access;
use crate::status;

/// See the module.
#[derive(Debug, Clone)]
pub struct PooledStorage {
    pools: Pools,
    owners: Owners,
}

impl PooledStorage {
    /// The storage over `pools`; `owners` are asked about volumes that are open.
    pub fn new(pools: Pools, owners: Owners) -> Self {
        Self { pools, owners }
    }

    fn host(&self) -> &Host {
        self.pools.host()
    }

    /// A volume that lives, and its state. `NOT_FOUND` if it does not exist, or not any more.
    async fn living(&self, volume: VolumeHandle, deadline: Instant) -> Result<(Found, Control), Status> {
        let (found, control) = self.described(volume, deadline).await?;
        if control.last.is_none() || control.dead {
            return Err(Status::not_found(format!("volume {volume} does not exist any more")));
        }
        Ok((found, control))
    }

    /// A volume, perhaps a dead one, and its state.
    async fn described(&self, volume: VolumeHandle, deadline: Instant) -> Result<(Found, Control), Status> {
        let found = self.pools.find(volume, deadline).await?;
        let control = control::describe(&found.log, deadline).await.map_err(status::log)?;
        Ok((found, control))
    }
}

/// `None` for what does not exist.
fn if_found<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

#[async_trait]
impl Storage for PooledStorage {
    async fn volume_by_name(&self, pool: Option<&str>, name: &str) -> Result<Option<VolumeInfo>, Status> {
        let pool = self.pools.named(pool)?;
        let deadline = deadline();
        let Some(volume) = pool.volume_named(name, deadline).await.map_err(status::pool)? else {
            return Ok(None);
        };
        if_found(self.info(VolumeHandle { pool: pool.id(), volume }, deadline).await)
    }

    async fn create_volume(&self, volume: &NewVolume) -> Result<VolumeInfo, Status> {
        self.create(volume, deadline()).await
    }

    async fn volume(&self, volume: VolumeHandle) -> Result<VolumeInfo, Status> {
        self.info(volume, deadline()).await
    }

    async fn delete_volume(&self, volume: VolumeHandle) -> Result<(), Status> {
        self.delete(volume, deadline()).await
    }

    async fn publish(&self, volume: VolumeHandle, node: &str, access: Access) -> Result<GrantId, Status> {
        let deadline = deadline();
        let (found, control) = self.living(volume, deadline).await?;
        if !found.pool.has_node(node, deadline).await.map_err(status::pool)? {
            return Err(Status::not_found(format!(
                "no node {node} is registered in pool {:?}; is the node plugin running there?",
                found.pool.name()
            )));
        }
        if holds_otherwise(&control, node, access) {
            return Err(Status::already_exists(format!(
                "volume {volume} is attached to node {node} in another access mode"
            )));
        }
        control::publish(&found.log, node, GrantMode::from(access), deadline).await.map_err(status::publish)
    }

    async fn unpublish(&self, volume: VolumeHandle, node: Option<&str>) -> Result<(), Status> {
        let deadline = deadline();
        let Some(found) = if_found(self.pools.find(volume, deadline).await)? else { return Ok(()) };
        let revoked = match node {
            Some(node) => control::unpublish(&found.log, node, deadline).await,
            None => control::release(&found.log, deadline).await,
        };
        match revoked.map_err(status::log) {
            // A dead volume has no grants any more.
            Err(status) if status.code() == Code::NotFound => Ok(()),
            other => other,
        }
    }

    async fn resize(&self, volume: VolumeHandle, size_bytes: u64) -> Result<u64, Status> {
        self.grow(volume, size_bytes, deadline()).await
    }

    async fn set_durability(&self, volume: VolumeHandle, durability: Durability) -> Result<(), Status> {
        self.modify(volume, durability, deadline()).await
    }

    async fn create_snapshot(&self, volume: VolumeHandle, name: &str) -> Result<SnapshotInfo, Status> {
        self.cut(volume, name, deadline()).await
    }

    async fn snapshot(&self, snapshot: SnapshotHandle) -> Result<SnapshotInfo, Status> {
        self.snapshot_info(snapshot, deadline()).await
    }

    async fn delete_snapshot(&self, snapshot: SnapshotHandle) -> Result<(), Status> {
        self.remove_snapshot(snapshot, deadline()).await
    }

    async fn volumes(&self, page: &PageRequest) -> Result<Page<VolumeInfo>, Status> {
        self.list_volumes(page, deadline()).await
    }

    async fn snapshots(
        &self,
        of: Option<VolumeHandle>,
        page: &PageRequest,
    ) -> Result<Page<SnapshotInfo>, Status> {
        match of {
            Some(volume) => self.list_snapshots_of(volume, page, deadline()).await,
            None => self.list_snapshots(page, deadline()).await,
        }
    }

    async fn available_bytes(&self, pool: Option<&str>) -> Result<Option<u64>, Status> {
        let pools = match pool {
            Some(name) => vec![self.pools.named(Some(name))?],
            None => self.pools.for_volumes(),
        };
        let mut most = Some(0);
        for pool in pools {
            most = most.max_or_unbounded(directory_bytes(&pool.url())?);
        }
        Ok(most)
    }
}

/// Sizes of which `None` is the largest: no bound is known.
trait MaxOrUnbounded {
    fn max_or_unbounded(self, other: Self) -> Self;
}

impl MaxOrUnbounded for Option<u64> {
    fn max_or_unbounded(self, other: Self) -> Self {
        self.zip(other).map(|(a, b)| a.max(b))
    }
}

/// Room in the file system of a directory pool; `None` for other stores.
fn directory_bytes(url: &str) -> Result<Option<u64>, Status> {
    let path = match Url::parse(url) {
        Ok(url) if url.scheme() == "file" => url.path().to_owned(),
        Ok(_) | Err(_) => return Ok(None),
    };
    let stat = rustix::fs::statvfs(Path::new(&path))
        .map_err(|error| Status::unavailable(format!("cannot tell the room in {path}: {error}")))?;
    Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// Whether the node has the volume in the other mode.
fn holds_otherwise(control: &Control, node: &str, access: Access) -> bool {
    let writes =
        control.grant.as_ref().is_some_and(|grant| grant.node == node && grant.mode == GrantMode::ReadWrite);
    let reads = control.readers.iter().any(|reader| reader.node == node);
    match access {
        Access::ReadWrite => reads,
        Access::ReadOnly => writes,
    }
}
