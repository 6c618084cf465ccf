//! The journals of volumes with `durability: journal`.
//!
//! # Guarantees
//! - A journal that a loss of power left is replayed when its volume is opened under the same grant, whatever the volume's
//!   durability is by then; and without anybody's asking, soon after this process has started.
//! - A journal whose grant is over is set aside, with a warning that says where, or removed if the log has all of it.
//! - A volume whose journal cannot be made is served all the same: its flushes wait for the store.
//! - A journal that is there and cannot be read refuses its volume: it may hold what was flushed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_engine::buffer::DirtyBuffer;
use holdfast_engine::host::Found;
use holdfast_engine::ids::GrantId;
use holdfast_engine::journal::{JournalName, JournaledBuffer, Owner, Settled};
use holdfast_engine::volume::Volume;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::parts::Opened;
use super::{OpenVolume, OpenVolumes, Parts, Refused, STORE_LIMIT, Served};
use crate::handles::VolumeHandle;
use crate::params::{DURABILITY, Durability};
use crate::pools::deadline;
use crate::publication::{Access, Publication};
use crate::status;

/// How often journals are looked for that no open volume has.
const LOOK: Duration = Duration::from_secs(60);
/// How long a journal that was set aside is kept.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// What all of those may take on the disk.
const KEEP_BYTES: u64 = 1 << 30;

/// The journal of a volume under a grant.
pub(super) fn name(handle: VolumeHandle, grant: GrantId) -> JournalName {
    JournalName { volume: handle.to_string(), grant }
}

/// When the volume's fsyncs return, as the pool says now.
async fn durability(found: &Found) -> Result<Durability, Status> {
    let parameters = found.pool.parameters(&found.json, deadline()).await.map_err(status::pool)?;
    Ok(parameters.get(DURABILITY).and_then(|name| Durability::parse(name)).unwrap_or_default())
}

impl Parts {
    /// The volume's dirty buffer with its journal, if it is to have one or an earlier life has left one.
    pub(super) async fn journaled(
        &self,
        handle: VolumeHandle,
        grant: GrantId,
        found: &Found,
        inner: Arc<dyn DirtyBuffer>,
    ) -> Result<Arc<JournaledBuffer>, Status> {
        let wanted = durability(found).await? == Durability::Journal;
        let (name, owner) = (name(handle, grant), Owner::of(&found.log, grant));
        let buffer = self.journals.buffer(&name, owner, inner, wanted).await.map_err(status::journal)?;
        Ok(Arc::new(buffer))
    }

    /// Lets go of the journal of a volume that is served no longer.
    pub(super) async fn drop_journal(&self, volume: &OpenVolume) -> Result<(), Status> {
        let Some(journal) = volume.buffer().and_then(JournaledBuffer::take_journal) else { return Ok(()) };
        let ended = self.journals.end(&volume.journal_name(), &journal, self.env.clock.now_ms()).await;
        ended.map(|_| ()).map_err(status::journal)
    }
}

impl OpenVolumes {
    /// Goes by the volume's parameters as the pool has them now.
    pub async fn apply_parameters(&self, handle: VolumeHandle) -> Result<(), Status> {
        let _alone = self.alone(handle).await;
        let Some(volume) = self.get(handle) else {
            return Err(Status::not_found(format!("volume {handle} is not open on this node")));
        };
        let Some(buffer) = volume.buffer() else { return Ok(()) };
        let found = self.parts.pools.find(handle, deadline()).await?;
        match durability(&found).await? {
            Durability::Remote => buffer.leave(),
            Durability::Journal => {
                let journal = match buffer.journal() {
                    Some(_) => None,
                    None => {
                        let owner = Owner::of(&found.log, volume.publication.grant);
                        let opened = self.parts.journals.open(&volume.journal_name(), owner).await;
                        Some(opened.map_err(status::journal)?)
                    }
                };
                buffer.join(journal).map_err(status::buffer)?;
            }
        }
        Ok(())
    }

    /// Looks after the journals that no open volume has, until `stop`.
    pub async fn tend_journals(&self, stop: &CancellationToken) {
        loop {
            if let Err(status) = self.settle_journals().await {
                tracing::warn!(%status, "the journals of this node cannot be looked after");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// How many journals were set aside and are still there.
    pub fn journals_set_aside(&self) -> usize {
        self.set_aside.load(Ordering::Relaxed)
    }

    async fn settle_journals(&self) -> Result<(), Status> {
        for name in self.parts.journals.list().await.map_err(status::journal)? {
            let Some(handle) = VolumeHandle::parse(&name.volume) else { continue };
            if let Err(status) = self.settle_journal(handle, &name).await {
                tracing::warn!(volume = %handle, %status, "a journal that a loss of power left has to wait");
            }
        }
        let now_ms = self.parts.env.clock.now_ms();
        let left = self.parts.journals.expire(now_ms, KEEP, KEEP_BYTES).await.map_err(status::journal)?;
        self.set_aside.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Puts what a journal holds into the store, if its grant is still in force and nobody serves the volume; else ends
    /// it.
    async fn settle_journal(&self, handle: VolumeHandle, name: &JournalName) -> Result<(), Status> {
        let _alone = self.alone(handle).await;
        let journals = &self.parts.journals;
        let served = self.get(handle).is_some_and(|volume| volume.publication.grant == name.grant);
        if served
            || self.pending().contains(&handle)
            || !journals.contains(name).await.map_err(status::journal)?
        {
            return Ok(());
        }
        let found = match self.parts.pools.find(handle, deadline()).await {
            Ok(found) => found,
            // Nobody can want what was written to a volume that is gone.
            Err(status) if status.code() == Code::NotFound => {
                return journals.remove(name).await.map_err(status::journal);
            }
            Err(status) => return Err(status),
        };
        let mut opened = false;
        let open = async || {
            opened = true;
            self.open_unserved(handle, name).await
        };
        let settled = journals.settle(name, &found.log, STORE_LIMIT, open).await;
        if opened {
            self.parts.front_end.drop_dirty_region(&handle.to_string()).await.map_err(status::stack)?;
        }
        if settled.map_err(status::settle)? == Settled::Written {
            tracing::info!(volume = %handle, "what the journal held is in the store");
        }
        Ok(())
    }

    /// Opens a volume that nobody serves, under the grant of its journal.
    async fn open_unserved(
        &self,
        handle: VolumeHandle,
        name: &JournalName,
    ) -> Result<Option<(Volume, Arc<JournaledBuffer>)>, Status> {
        let publication = Publication { grant: name.grant, access: Access::ReadWrite };
        match self.parts.open(handle, publication).await {
            Ok(Opened { served: Served::Writer(volume, buffer), .. }) => Ok(Some((volume, buffer))),
            Ok(Opened { served: Served::Reader(_), .. }) | Err(Refused::Lost(_)) => Ok(None),
            Err(Refused::Failed(status)) => Err(status),
        }
    }
}
