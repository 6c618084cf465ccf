//! Volumes and mounts in memory, for tests of the service.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use holdfast_engine::ids::GrantId;
use tonic::Status;

use super::volumes::{Attached, Volumes};
use crate::handles::VolumeHandle;
use crate::mount::{FsSpec, FsStats, Mount, MountError, Mounter};
use crate::publication::Publication;

/// A volume or directory and whether it is shown read-only.
pub type Shown = (PathBuf, bool);

#[derive(Debug, Default)]
struct State {
    attached: BTreeMap<VolumeHandle, Attached>,
    revoked: BTreeSet<GrantId>,
    away: bool,
    sizes: BTreeMap<VolumeHandle, u64>,
    mounts: BTreeMap<PathBuf, Shown>,
    /// What was done, in order.
    log: Vec<String>,
}

/// A node whose kernel is a map.
#[derive(Debug, Clone, Default)]
pub struct FakeNode {
    state: Arc<Mutex<State>>,
}

impl FakeNode {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }

    /// What is mounted, by path.
    pub fn mounts(&self) -> BTreeMap<PathBuf, Shown> {
        self.state().mounts.clone()
    }

    /// What was done since the last look.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    /// Takes a grant back, as a detach by the controller does.
    pub fn revoke(&self, grant: GrantId) {
        let mut state = self.state();
        state.revoked.insert(grant);
        for attached in state.attached.values_mut().filter(|attached| attached.publication.grant == grant) {
            attached.over = Some("another host ended the session".into());
        }
    }

    /// Takes the store away, or brings it back.
    pub fn take_store_away(&self, away: bool) {
        let mut state = self.state();
        state.away = away;
        for attached in state.attached.values_mut() {
            attached.away = away.then(|| "the store does not answer".into());
        }
    }

    /// Grows the volume, as the controller does.
    pub fn resize(&self, volume: VolumeHandle, size_bytes: u64) {
        self.state().sizes.insert(volume, size_bytes);
    }
}

#[async_trait]
impl Volumes for FakeNode {
    async fn attach(&self, volume: VolumeHandle, publication: Publication) -> Result<Attached, Status> {
        let mut state = self.state();
        if state.revoked.contains(&publication.grant) {
            return Err(Status::failed_precondition("the grant is no longer in force"));
        }
        if let Some(attached) = state.attached.get(&volume) {
            assert_eq!(attached.publication, publication, "an older publication is given up first");
            return Ok(attached.clone());
        }
        state.log.push("attach".into());
        let size_bytes = *state.sizes.entry(volume).or_insert(1 << 30);
        let attached =
            Attached { device: "/dev/loop7".into(), publication, size_bytes, over: None, away: None };
        state.attached.insert(volume, attached.clone());
        Ok(attached)
    }

    async fn flush(&self, _: VolumeHandle) -> Result<(), Status> {
        if self.state().away { Err(Status::unavailable("the store is away")) } else { Ok(()) }
    }

    async fn detach(&self, volume: VolumeHandle) -> Result<(), Status> {
        let mut state = self.state();
        if let Some(attached) = state.attached.remove(&volume) {
            assert_eq!(attached.over, None, "a session that is over cannot be drained");
            assert!(state.mounts.is_empty(), "the device is in use: {:?}", state.mounts);
            state.log.push("detach".into());
        }
        Ok(())
    }

    async fn give_up(&self, volume: VolumeHandle) -> Result<(), Status> {
        let mut state = self.state();
        if state.attached.remove(&volume).is_some() {
            state.log.push("give up".into());
        }
        Ok(())
    }

    async fn attached(&self, volume: VolumeHandle) -> Result<Option<Attached>, Status> {
        Ok(self.state().attached.get(&volume).cloned())
    }

    async fn grow(&self, volume: VolumeHandle) -> Result<Attached, Status> {
        let mut state = self.state();
        let size_bytes = state.sizes[&volume];
        let attached = state.attached.get_mut(&volume).ok_or_else(|| Status::not_found("not attached"))?;
        attached.size_bytes = size_bytes;
        Ok(attached.clone())
    }
}

impl State {
    fn show(&mut self, target: &Path, shown: Shown) -> Result<(), MountError> {
        match self.mounts.get(target) {
            Some(found) if *found == shown => Ok(()),
            Some((found, _)) => {
                Err(MountError::Conflict { target: target.into(), found: found.display().to_string() })
            }
            None => {
                self.log.push(format!("mount {}", target.display()));
                self.mounts.insert(target.into(), shown);
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Mounter for FakeNode {
    async fn mount(&self, device: &Path, target: &Path, spec: &FsSpec) -> Result<(), MountError> {
        self.state().show(target, (device.into(), spec.read_only))
    }

    async fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<(), MountError> {
        let mut state = self.state();
        if !state.mounts.contains_key(source) {
            return Err(MountError::NotMounted { target: source.into() });
        }
        state.show(target, (source.into(), read_only))
    }

    async fn bind_device(&self, device: &Path, target: &Path, read_only: bool) -> Result<(), MountError> {
        self.state().show(target, (device.into(), read_only))
    }

    async fn unmount(&self, target: &Path) -> Result<(), MountError> {
        let mut state = self.state();
        if state.mounts.values().any(|(source, _)| source == target) {
            return Err(MountError::Busy { target: target.into() });
        }
        if state.mounts.remove(target).is_some() {
            state.log.push(format!("unmount {}", target.display()));
        }
        Ok(())
    }

    async fn detach(&self, target: &Path) -> Result<(), MountError> {
        let mut state = self.state();
        if state.mounts.remove(target).is_some() {
            state.log.push(format!("take away {}", target.display()));
        }
        Ok(())
    }

    async fn grow(&self, target: &Path) -> Result<(), MountError> {
        let mounted = self.state().mounts.contains_key(target);
        if mounted { Ok(()) } else { Err(MountError::NotMounted { target: target.into() }) }
    }

    async fn stats(&self, _: &Path) -> Result<FsStats, MountError> {
        Ok(FsStats {
            total_bytes: 1000,
            available_bytes: 700,
            used_bytes: 300,
            total_inodes: 10,
            free_inodes: 6,
        })
    }

    async fn mounted(&self, _: &Path) -> Result<Option<Mount>, MountError> {
        Ok(None)
    }
}
