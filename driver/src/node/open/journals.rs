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
use holdfast_engine::control;
use holdfast_engine::ids::{GrantId, VolumeId};
use holdfast_engine::journal::{Journal, JournalName, JournaledBuffer, Owner, Waiting};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::parts::Opened;
use super::{OpenVolume, OpenVolumes, Parts, Refused, Served, in_time};
use crate::handles::VolumeHandle;
use crate::params::{DURABILITY, Durability};
use crate::pools::{Found, deadline};
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

fn owner(found: &Found, volume: VolumeId, grant: GrantId) -> Owner {
    Owner { volume, grant, key: found.log.key.clone(), env: found.log.env.clone() }
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
        let name = name(handle, grant);
        let there = self.journals.contains(&name);
        let journal = match there || wanted {
            true => match self.journals.open(&name, owner(found, handle.volume, grant)).await {
                Ok(journal) => Some(journal),
                Err(error) if there => return Err(status::journal(error)),
                Err(error) => {
                    tracing::warn!(
                        volume = %handle, %error,
                        "the volume has no journal: its flushes wait for the store until it is staged again"
                    );
                    None
                }
            },
            false => None,
        };
        let buffer = JournaledBuffer::new(inner, journal);
        if !wanted {
            buffer.leave();
        }
        Ok(Arc::new(buffer))
    }

    /// Lets go of the journal of a volume that is served no longer.
    pub(super) fn drop_journal(&self, volume: &OpenVolume) -> Result<(), Status> {
        match volume.buffer().and_then(JournaledBuffer::take_journal) {
            Some(journal) => self.end_journal(&volume.journal_name(), &journal),
            None => Ok(()),
        }
    }

    /// Removes a journal of which the log has everything; sets one aside that has more.
    fn end_journal(&self, name: &JournalName, journal: &Journal) -> Result<(), Status> {
        let Waiting { entries, bytes, .. } = journal.waiting();
        if entries == 0 {
            return self.journals.remove(name).map_err(status::journal);
        }
        let path = self.journals.set_aside(name, self.env.clock.now_ms()).map_err(status::journal)?;
        tracing::warn!(
            volume = name.volume, grant = %name.grant, entries, bytes, path = %path.display(),
            "the volume was taken back before its journal was in the store: up to so many writes are lost; the journal \
             is set aside"
        );
        Ok(())
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
                        let owner = owner(&found, handle.volume, volume.publication.grant);
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
        for name in self.parts.journals.list().map_err(status::journal)? {
            let Some(handle) = VolumeHandle::parse(&name.volume) else { continue };
            if let Err(status) = self.settle_journal(handle, &name).await {
                tracing::warn!(volume = %handle, %status, "a journal that a loss of power left has to wait");
            }
        }
        let now_ms = self.parts.env.clock.now_ms();
        let left = self.parts.journals.expire(now_ms, KEEP, KEEP_BYTES).map_err(status::journal)?;
        self.set_aside.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Puts what a journal holds into the store, if its grant is still in force and nobody serves the volume.
    async fn settle_journal(&self, handle: VolumeHandle, name: &JournalName) -> Result<(), Status> {
        let _alone = self.alone(handle).await;
        let served = self.get(handle).is_some_and(|volume| volume.publication.grant == name.grant);
        if served || self.pending().contains(&handle) || !self.parts.journals.contains(name) {
            return Ok(());
        }
        if !self.holds(handle, name.grant).await? {
            return self.end_unserved(handle, name).await;
        }
        let written = self.write_out(handle, name).await;
        let key = handle.to_string();
        self.parts.front_end.drop_dirty_region(&key).await.map_err(status::stack)?;
        written
    }

    /// Opens a volume that nobody serves, for as long as it takes to put what its journal holds into the store.
    async fn write_out(&self, handle: VolumeHandle, name: &JournalName) -> Result<(), Status> {
        let publication = Publication { grant: name.grant, access: Access::ReadWrite };
        let (volume, buffer) = match self.parts.open(handle, publication).await {
            Ok(Opened { served: Served::Writer(volume, buffer), .. }) => (volume, buffer),
            // Taken back this moment: next time it is seen.
            Ok(Opened { served: Served::Reader(_), .. }) | Err(Refused::Lost(_)) => return Ok(()),
            Err(Refused::Failed(status)) => return Err(status),
        };
        if let Err(status) = in_time(handle, &volume, volume.drain()).await {
            volume.abandon();
            return Err(status);
        }
        if let Some(journal) = buffer.take_journal() {
            self.parts.end_journal(name, &journal)?;
        }
        in_time(handle, &volume, volume.close()).await?;
        tracing::info!(volume = %handle, "what the journal held is in the store");
        Ok(())
    }

    /// Whether a volume is still granted to this node.
    async fn holds(&self, handle: VolumeHandle, grant: GrantId) -> Result<bool, Status> {
        let deadline = deadline();
        let found = match self.parts.pools.find(handle, deadline).await {
            Ok(found) => found,
            Err(status) if status.code() == Code::NotFound => return Ok(false),
            Err(status) => return Err(status),
        };
        let control = control::describe(&found.log, deadline).await.map_err(status::log)?;
        Ok(control.grant.is_some_and(|held| held.id == grant))
    }

    /// Ends a journal whose grant is over.
    async fn end_unserved(&self, handle: VolumeHandle, name: &JournalName) -> Result<(), Status> {
        match self.parts.pools.find(handle, deadline()).await {
            Ok(found) => {
                let owner = owner(&found, handle.volume, name.grant);
                let journal = self.parts.journals.open(name, owner).await.map_err(status::journal)?;
                self.parts.end_journal(name, &journal)
            }
            // Nobody can want what was written to a volume that is gone.
            Err(status) if status.code() == Code::NotFound => {
                self.parts.journals.remove(name).map_err(status::journal)
            }
            Err(status) => Err(status),
        }
    }
}
