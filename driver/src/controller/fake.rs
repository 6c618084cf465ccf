//! Pools in memory, for tests of the service.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use holdfast_engine::ids::{GrantId, ObjectId, PoolId, SnapshotId, VolumeId};
use tonic::Status;

use super::storage::{NewVolume, Page, PageRequest, SnapshotInfo, Storage, VolumeInfo};
use crate::handles::{SnapshotHandle, VolumeHandle};
use crate::params::Durability;
use crate::publication::Access;

/// The one pool of the fake.
pub const POOL: PoolId = PoolId([0xab; 16]);

/// The nodes of the fake.
pub const NODES: [&str; 2] = ["n1", "n2"];

#[derive(Debug)]
struct FakeVolume {
    name: String,
    info: VolumeInfo,
    durability: Durability,
    grants: Vec<(String, Access, GrantId)>,
}

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<VolumeHandle, FakeVolume>,
    snapshots: BTreeMap<SnapshotHandle, (String, SnapshotInfo)>,
    made: u8,
}

/// See the module.
#[derive(Debug, Default)]
pub struct FakeStorage {
    state: Mutex<State>,
}

impl FakeStorage {
    /// When the fsyncs of the volume called `name` return.
    pub fn durability(&self, name: &str) -> Option<Durability> {
        self.state().volumes.values().find(|volume| volume.name == name).map(|volume| volume.durability)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }
}

impl State {
    fn next(&mut self) -> u8 {
        self.made += 1;
        self.made
    }

    fn volume(&mut self, handle: VolumeHandle) -> Result<&mut FakeVolume, Status> {
        self.volumes.get_mut(&handle).ok_or_else(|| Status::not_found(format!("no volume {handle}")))
    }
}

/// Tokens are the key of the last entry.
fn page<K: Ord + ToString, T: Clone>(
    all: impl Iterator<Item = (K, T)>,
    request: &PageRequest,
) -> Result<Page<T>, Status> {
    let after = request.token.as_deref();
    if after.is_some_and(|token| !token.contains('-')) {
        return Err(Status::aborted("no such token"));
    }
    let rest: Vec<(K, T)> =
        all.filter(|(key, _)| after.is_none_or(|token| *key.to_string() > *token)).collect();
    let next = rest.get(request.limit).map(|_| rest[request.limit - 1].0.to_string());
    Ok(Page { entries: rest.into_iter().take(request.limit).map(|(_, entry)| entry).collect(), next })
}

#[async_trait]
impl Storage for FakeStorage {
    async fn volume_by_name(&self, _: Option<&str>, name: &str) -> Result<Option<VolumeInfo>, Status> {
        Ok(self.state().volumes.values().find(|volume| volume.name == name).map(|volume| volume.info.clone()))
    }

    async fn create_volume(&self, volume: &NewVolume) -> Result<VolumeInfo, Status> {
        let mut state = self.state();
        let handle = VolumeHandle { pool: POOL, volume: VolumeId([state.next(); 16]) };
        let info = VolumeInfo {
            handle,
            size_bytes: volume.size_bytes,
            source: volume.source,
            nodes: Vec::new(),
            abnormal: None,
        };
        let fake = FakeVolume {
            name: volume.name.clone(),
            info: info.clone(),
            durability: volume.durability,
            grants: Vec::new(),
        };
        state.volumes.insert(handle, fake);
        Ok(info)
    }

    async fn volume(&self, volume: VolumeHandle) -> Result<VolumeInfo, Status> {
        let mut state = self.state();
        let volume = state.volume(volume)?;
        let nodes = volume.grants.iter().map(|(node, ..)| node.clone()).collect();
        Ok(VolumeInfo { nodes, ..volume.info.clone() })
    }

    async fn delete_volume(&self, volume: VolumeHandle) -> Result<(), Status> {
        self.state().volumes.remove(&volume);
        Ok(())
    }

    async fn publish(&self, volume: VolumeHandle, node: &str, access: Access) -> Result<GrantId, Status> {
        if !NODES.contains(&node) {
            return Err(Status::not_found(format!("no node {node}")));
        }
        let mut state = self.state();
        let fresh = ObjectId([state.next(); 16]);
        let grants = &mut state.volume(volume)?.grants;
        if let Some((_, held, grant)) = grants.iter().find(|(holder, ..)| holder == node) {
            return if *held == access { Ok(*grant) } else { Err(Status::already_exists("other mode")) };
        }
        if grants.iter().any(|(_, held, _)| *held == Access::ReadWrite || access == Access::ReadWrite) {
            return Err(Status::failed_precondition("on another node"));
        }
        grants.push((node.into(), access, fresh));
        Ok(fresh)
    }

    async fn unpublish(&self, volume: VolumeHandle, node: Option<&str>) -> Result<(), Status> {
        if let Ok(volume) = self.state().volume(volume) {
            volume.grants.retain(|(holder, ..)| node.is_some_and(|node| node != holder));
        }
        Ok(())
    }

    async fn set_durability(&self, volume: VolumeHandle, durability: Durability) -> Result<(), Status> {
        self.state().volume(volume)?.durability = durability;
        Ok(())
    }

    async fn resize(&self, volume: VolumeHandle, size_bytes: u64) -> Result<u64, Status> {
        let mut state = self.state();
        let info = &mut state.volume(volume)?.info;
        info.size_bytes = info.size_bytes.max(size_bytes);
        Ok(info.size_bytes)
    }

    async fn create_snapshot(&self, volume: VolumeHandle, name: &str) -> Result<SnapshotInfo, Status> {
        let mut state = self.state();
        if let Some((_, found)) = state.snapshots.values().find(|(bound, _)| bound == name) {
            return if found.handle.source == volume {
                Ok(found.clone())
            } else {
                Err(Status::already_exists("of another volume"))
            };
        }
        let size_bytes = state.volume(volume)?.info.size_bytes;
        let handle = volume.snapshot(SnapshotId(state.next().into()));
        let info = SnapshotInfo { handle, size_bytes, time_ms: 1_700_000_000_123, ready: true };
        state.snapshots.insert(handle, (name.into(), info.clone()));
        Ok(info)
    }

    async fn snapshot(&self, snapshot: SnapshotHandle) -> Result<SnapshotInfo, Status> {
        let state = self.state();
        let found = state.snapshots.get(&snapshot).map(|(_, info)| info.clone());
        found.ok_or_else(|| Status::not_found(format!("no snapshot {snapshot}")))
    }

    async fn delete_snapshot(&self, snapshot: SnapshotHandle) -> Result<(), Status> {
        self.state().snapshots.remove(&snapshot);
        Ok(())
    }

    async fn volumes(&self, request: &PageRequest) -> Result<Page<VolumeInfo>, Status> {
        page(self.state().volumes.iter().map(|(handle, volume)| (*handle, volume.info.clone())), request)
    }

    async fn snapshots(
        &self,
        of: Option<VolumeHandle>,
        request: &PageRequest,
    ) -> Result<Page<SnapshotInfo>, Status> {
        let state = self.state();
        let chosen =
            state.snapshots.iter().filter(|(handle, _)| of.is_none_or(|volume| handle.source == volume));
        page(chosen.map(|(handle, (_, info))| (*handle, info.clone())), request)
    }

    async fn available_bytes(&self, _: Option<&str>) -> Result<Option<u64>, Status> {
        Ok(Some(1 << 40))
    }
}
