//! Volumes: made, described, grown, deleted.

use std::collections::BTreeMap;

use holdfast_engine::control::{self, CreateVolume, SourceSnapshot};
use holdfast_engine::log::Control;
use holdfast_engine::pool::VolumeJson;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::PooledStorage;
use super::tending;
use crate::controller::storage::{NewVolume, Source, VolumeInfo};
use crate::handles::{SnapshotHandle, VolumeHandle};
use crate::params::{DURABILITY, Durability};
use crate::status;

/// What the volume was made from, among the notes in its description: CSI wants it back as it was asked for.
const SOURCE: &str = "source";

fn source_of(json: &VolumeJson) -> Option<Source> {
    let text = json.parameters.get(SOURCE)?;
    let snapshot = || SnapshotHandle::parse(text).map(Source::Snapshot);
    VolumeHandle::parse(text).map(Source::Volume).or_else(snapshot)
}

fn info(handle: VolumeHandle, json: &VolumeJson, control: &Control) -> VolumeInfo {
    let writer = control.grant.iter().map(|grant| grant.node.clone());
    let readers = control.readers.iter().map(|reader| reader.node.clone());
    VolumeInfo {
        handle,
        size_bytes: control.size_bytes,
        source: source_of(json),
        nodes: writer.chain(readers).collect(),
        abnormal: None,
    }
}

impl PooledStorage {
    pub(super) async fn info(&self, volume: VolumeHandle, deadline: Instant) -> Result<VolumeInfo, Status> {
        match self.living(volume, deadline).await {
            Ok((found, control)) => Ok(info(volume, &found.json, &control)),
            // A damaged volume is one that exists, and whose condition people should see.
            Err(status) if status.code() == Code::DataLoss => {
                let found = self.pools.find(volume, deadline).await?;
                Ok(VolumeInfo {
                    handle: volume,
                    size_bytes: found.json.size_bytes,
                    source: source_of(&found.json),
                    nodes: Vec::new(),
                    abnormal: Some(status.message().to_owned()),
                })
            }
            Err(status) => Err(status),
        }
    }

    pub(super) async fn create(&self, new: &NewVolume, deadline: Instant) -> Result<VolumeInfo, Status> {
        let pool = self.pools.named(new.pool.as_deref())?;
        let mut parameters = BTreeMap::from([(DURABILITY.to_owned(), new.durability.name().to_owned())]);
        let source = match new.source {
            None => None,
            Some(Source::Snapshot(handle)) => {
                parameters.insert(SOURCE.into(), handle.to_string());
                Some(handle)
            }
            Some(Source::Volume(handle)) => {
                parameters.insert(SOURCE.into(), handle.to_string());
                Some(self.cut(handle, &clone_name(&new.name), deadline).await?.handle)
            }
        };
        let from = match source {
            None => None,
            Some(handle) => Some(SourceSnapshot {
                pool: self.pools.pool(handle.source.pool)?,
                volume: handle.source.volume,
                snapshot: handle.snapshot,
            }),
        };
        let volume = CreateVolume {
            name: new.name.clone(),
            size_bytes: new.size_bytes,
            source: from,
            codec: new.codec,
            parameters,
        };
        let made = self.host().create_volume(&pool, &volume, deadline).await.map_err(status::control)?;
        if let (Some(Source::Volume(_)), Some(passing)) = (new.source, source) {
            // The clone's pin keeps what it needs.
            self.remove_snapshot(passing, deadline).await?;
        }
        self.info(VolumeHandle { pool: pool.id(), volume: made }, deadline).await
    }

    pub(super) async fn grow(
        &self,
        volume: VolumeHandle,
        size_bytes: u64,
        deadline: Instant,
    ) -> Result<u64, Status> {
        let (found, control) = self.living(volume, deadline).await?;
        match self.owner(volume, &control).await? {
            Some(owner) => owner.resize(size_bytes).await,
            None => {
                control::resize_detached(&found.log, size_bytes, deadline).await.map_err(status::log)?;
                Ok(size_bytes.max(control.size_bytes))
            }
        }
    }

    /// The change is noted in the pool first: a volume that is opened from then on follows it. Then a node that has the
    /// volume open is told; until it has answered, the call fails and is repeated.
    pub(super) async fn modify(
        &self,
        volume: VolumeHandle,
        durability: Durability,
        deadline: Instant,
    ) -> Result<(), Status> {
        let (found, _) = self.living(volume, deadline).await?;
        let changes = BTreeMap::from([(DURABILITY.to_owned(), durability.name().to_owned())]);
        found.pool.change_parameters(&found.json, &changes, deadline).await.map_err(status::pool)?;
        // Whoever opens the volume after this replay has read the change.
        let (_, control) = self.living(volume, deadline).await?;
        match self.owner(volume, &control).await? {
            Some(owner) => owner.apply_parameters().await,
            None => Ok(()),
        }
    }

    pub(super) async fn delete(&self, volume: VolumeHandle, deadline: Instant) -> Result<(), Status> {
        let pool = self.pools.pool(volume.pool)?;
        self.host().delete_volume(&pool, volume.volume, deadline).await.map_err(status::control)?;
        tending::reclaim_soon(self.host(), pool, volume.volume);
        Ok(())
    }
}

/// The snapshot through which the volume `name` is cloned from another: the same for every attempt.
fn clone_name(name: &str) -> String {
    format!("clone for {name}")
}
