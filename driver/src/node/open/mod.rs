//! The volumes that this process has open: sessions of the engine under stacks of the front end.
//!
//! # Guarantees
//! - One operation at a time on each volume.
//! - What flushes to a volume's journal is in the store when the volume is detached; a journal whose grant is over is
//!   never replayed ([`journals`]).
//! - What was written is in the store when [`Volumes::detach`] returns; the session is closed then.
//! - After a restart every volume is served again, as soon as its pool can be reached, with what its predecessor had
//!   answered; until then its I/O waits. One whose grant was taken back meanwhile is given up: its I/O fails.
//!
//! # Assumptions
//! This process holds the node's [`crate::frontend::Incarnation`].
//!
//! # Crash behaviour
//! The keeper holds stacks and dirty buffers; the publication stands in the stack's context.

mod adopt;
mod hydration;
mod journals;
mod parts;
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_engine::cache::CountedCache;
use holdfast_engine::journal::{JournalName, JournaledBuffer, Waiting};
use holdfast_engine::volume::{Hydration, Volume, VolumeError};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use super::volumes::{Attached, Volumes};
use crate::frontend::{BlockDevice, Stack};
use crate::handles::VolumeHandle;
use crate::mount::Freeze;
use crate::publication::Publication;
use crate::status;

pub use parts::{Parts, Refused};
use reader::ReadOnlyVolume;

/// How long a call waits for a store, so that it is answered before its caller gives up.
const STORE_LIMIT: Duration = Duration::from_secs(20);

/// A volume that is being served.
#[derive(Debug)]
pub struct OpenVolume {
    /// Its handle.
    pub handle: VolumeHandle,
    /// What it was opened under.
    pub publication: Publication,
    /// Its block device.
    pub stack: Stack,
    /// The freeze that holds its file system still, and its name.
    pub freeze: tokio::sync::Mutex<Option<(String, Freeze)>>,
    /// The cache as it uses it.
    pub cache: Arc<CountedCache>,
    hydration: Option<watch::Receiver<Hydration>>,
    served: Served,
}

#[derive(Debug, Clone)]
enum Served {
    Writer(Volume, Arc<JournaledBuffer>),
    Reader(Arc<ReadOnlyVolume>),
}

impl Served {
    fn device(&self) -> Arc<dyn BlockDevice> {
        match self {
            Self::Writer(volume, _) => Arc::new(volume.clone()),
            Self::Reader(volume) => Arc::clone(volume) as Arc<dyn BlockDevice>,
        }
    }
}

impl OpenVolume {
    /// The session, if it is one that writes.
    pub fn writer(&self) -> Option<&Volume> {
        match &self.served {
            Served::Writer(volume, _) => Some(volume),
            Served::Reader(_) => None,
        }
    }

    /// The dirty buffer of the session, if it is one that writes.
    fn buffer(&self) -> Option<&JournaledBuffer> {
        match &self.served {
            Served::Writer(_, buffer) => Some(buffer),
            Served::Reader(_) => None,
        }
    }

    /// Whether flushes end in the volume's journal, if they are to.
    pub fn journal_works(&self) -> Option<bool> {
        self.buffer()?.works()
    }

    /// What waits in the volume's journal, if it has one.
    pub fn journal_waiting(&self) -> Option<Waiting> {
        Some(self.buffer()?.journal()?.waiting())
    }

    /// How far it has been copied from the archive that it was restored from; `done` if from none.
    pub fn hydration(&self) -> Hydration {
        let none = Hydration { done: true, ..Hydration::default() };
        self.hydration.as_ref().map_or(none, |hydration| *hydration.borrow())
    }

    fn journal_name(&self) -> JournalName {
        journals::name(self.handle, self.publication.grant)
    }

    /// Fails once the session is over.
    fn over(&self) -> Option<String> {
        self.writer().and_then(|volume| volume.check().err()).map(|error| error.to_string())
    }

    /// Since when the store has been away, if it is, and what it said last.
    pub fn away(&self) -> Option<(Instant, String)> {
        match &self.served {
            Served::Writer(volume, _) => volume.away(),
            Served::Reader(volume) => volume.away().map(|away| (away.since, away.error.to_string())),
        }
    }

    fn attached(&self) -> Attached {
        let away = self.away().map(|(since, reason)| {
            let seconds = since.elapsed().as_secs();
            format!("the store has been away for {seconds} s, and I/O waits for it: {reason}")
        });
        Attached {
            device: self.stack.loop_path(),
            publication: self.publication,
            size_bytes: self.served.device().size_bytes(),
            over: self.over(),
            away,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct OpenVolumes {
    parts: Parts,
    open: Mutex<BTreeMap<VolumeHandle, Arc<OpenVolume>>>,
    /// What a predecessor served and could not be taken over yet.
    pending: Mutex<BTreeSet<VolumeHandle>>,
    locks: Mutex<BTreeMap<VolumeHandle, Arc<tokio::sync::Mutex<()>>>>,
    /// Journals of this node that were set aside and are still there.
    set_aside: AtomicUsize,
}

impl OpenVolumes {
    /// No volumes yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            open: Mutex::default(),
            pending: Mutex::default(),
            locks: Mutex::default(),
            set_aside: AtomicUsize::new(0),
        }
    }

    /// What volumes are opened with.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// A volume that is being served.
    pub fn get(&self, handle: VolumeHandle) -> Option<Arc<OpenVolume>> {
        self.open().get(&handle).cloned()
    }

    /// All that are being served.
    pub fn all(&self) -> Vec<Arc<OpenVolume>> {
        self.open().values().cloned().collect()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<VolumeHandle, Arc<OpenVolume>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, BTreeSet<VolumeHandle>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for other operations on the volume.
    async fn alone(&self, handle: VolumeHandle) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|other, lock| *other == handle || Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(handle).or_default())
        };
        lock.lock_owned().await
    }

    fn insert(&self, volume: OpenVolume) -> Attached {
        let attached = volume.attached();
        self.pending().remove(&volume.handle);
        self.open().insert(volume.handle, Arc::new(volume));
        attached
    }

    /// Removes what there is of the volume without waiting for its I/O. The caller is alone with it.
    async fn drop_all(&self, handle: VolumeHandle) -> Result<(), Status> {
        let key = handle.to_string();
        let (dropped_bytes, why) = match self.get(handle) {
            Some(volume) => {
                let why = volume.over().unwrap_or_else(|| "it is attached anew".into());
                // What answered writes there are no longer grows once the session is over.
                let session = volume.writer().inspect(|writer| writer.abandon());
                volume.stack.abort().await.map_err(status::stack)?;
                volume.stack.teardown().await.map_err(status::stack)?;
                self.parts.drop_journal(&volume).await?;
                (session.map_or(0, Volume::dirty_bytes), why)
            }
            None => {
                let left_bytes = self.parts.left_bytes(handle).await?;
                self.parts.front_end.discard(&key).await.map_err(status::stack)?;
                (left_bytes, "the volume was taken from this node while it was not served".into())
            }
        };
        self.parts.front_end.drop_dirty_region(&key).await.map_err(status::stack)?;
        if dropped_bytes > 0 {
            self.parts.incidents.writes_dropped(&self.parts.env, handle, dropped_bytes, &why);
        }
        self.pending().remove(&handle);
        self.open().remove(&handle);
        Ok(())
    }

    async fn attach_or_refuse(
        &self,
        handle: VolumeHandle,
        publication: Publication,
    ) -> Result<Attached, Refused> {
        let _alone = self.alone(handle).await;
        if let Some(volume) = self.get(handle) {
            return if volume.publication == publication {
                Ok(volume.attached())
            } else {
                let reason = format!("volume {handle} is attached under another grant");
                Err(Refused::Failed(Status::failed_precondition(reason)))
            };
        }
        let saved = self.parts.front_end.saved(&handle.to_string()).await.map_err(status::stack)?;
        if let Some(saved) = saved {
            if adopt::publication(&saved) == Some(publication) {
                return Ok(self.insert(self.parts.adopt(handle, publication, saved).await?));
            }
            drop(saved);
            self.drop_all(handle).await?;
        }
        Ok(self.insert(self.parts.create(handle, publication).await?))
    }
}

/// Does something with the session of a volume that writes, within the time of a call.
async fn soon(
    volume: &OpenVolume,
    action: impl AsyncFnOnce(&Volume) -> Result<(), VolumeError>,
) -> Result<(), Status> {
    match volume.writer() {
        Some(writer) => in_time(volume.handle, writer, action(writer)).await,
        None => Ok(()),
    }
}

/// Waits for what a session does with its store, as long as a call may take. What waits for the store goes on when it
/// is back.
async fn in_time(
    handle: VolumeHandle,
    volume: &Volume,
    work: impl Future<Output = Result<(), VolumeError>>,
) -> Result<(), Status> {
    match tokio::time::timeout(STORE_LIMIT, work).await {
        Ok(outcome) => outcome.map_err(status::volume),
        Err(_) => {
            let reason = volume.away().map_or_else(|| "it is slow".into(), |(_, reason)| reason);
            let bytes = volume.dirty_bytes();
            Err(Status::unavailable(format!(
                "volume {handle} waits for its store, and keeps {bytes} bytes that it has not taken: {reason}"
            )))
        }
    }
}

#[async_trait]
impl Volumes for OpenVolumes {
    async fn attach(&self, handle: VolumeHandle, publication: Publication) -> Result<Attached, Status> {
        Ok(self.attach_or_refuse(handle, publication).await?)
    }

    async fn flush(&self, handle: VolumeHandle) -> Result<(), Status> {
        match self.get(handle) {
            Some(volume) => soon(&volume, Volume::drain).await,
            None => Ok(()),
        }
    }

    async fn detach(&self, handle: VolumeHandle) -> Result<(), Status> {
        let _alone = self.alone(handle).await;
        let Some(volume) = self.get(handle) else {
            return Ok(());
        };
        // First what may fail for want of the store, while everything still stands.
        soon(&volume, Volume::drain).await?;
        volume.stack.teardown().await.map_err(status::stack)?;
        soon(&volume, Volume::drain).await?;
        self.parts.drop_journal(&volume).await?;
        soon(&volume, Volume::close).await?;
        let key = handle.to_string();
        self.parts.front_end.drop_dirty_region(&key).await.map_err(status::stack)?;
        self.open().remove(&handle);
        Ok(())
    }

    async fn give_up(&self, handle: VolumeHandle) -> Result<(), Status> {
        let _alone = self.alone(handle).await;
        self.drop_all(handle).await
    }

    async fn attached(&self, handle: VolumeHandle) -> Result<Option<Attached>, Status> {
        if self.pending().contains(&handle) {
            return Err(Status::unavailable(format!(
                "volume {handle} cannot be served yet after a restart of the driver: its pool cannot be reached"
            )));
        }
        Ok(self.get(handle).map(|volume| volume.attached()))
    }

    async fn grow(&self, handle: VolumeHandle) -> Result<Attached, Status> {
        let _alone = self.alone(handle).await;
        let volume = self
            .get(handle)
            .ok_or_else(|| Status::not_found(format!("volume {handle} is not attached to this node")))?;
        volume.stack.grow().await.map_err(status::stack)?;
        Ok(volume.attached())
    }
}
