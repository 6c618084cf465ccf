//! Snapshots and deletions by the controller. With no open session it acts itself; else the owner has to be asked.

use std::sync::Arc;

use tokio::time::Instant;

use super::grants::{end_maintenance, refuse_open};
use super::{ControlError, publish, revoke};
use crate::buffer::MemoryBuffer;
use crate::host::{Host, OpenAs};
use crate::ids::{ObjectId, SnapshotId, VolumeId};
use crate::log::{Control, ControlOnly, Decision, GrantMode, Inert, Log, LogError, Op};
use crate::pool::{Pool, PoolError};
use crate::volume::{Limits, Volume};

/// Bytes that a maintenance session buffers.
const BUFFER_BYTES: usize = 32 << 20;

fn ask_owner(volume: VolumeId, control: &Control) -> Result<(), ControlError> {
    match &control.session {
        Some(session) => Err(ControlError::AskOwner { volume, endpoint: session.endpoint.clone() }),
        None => Ok(()),
    }
}

impl Host {
    /// The log of a volume that exists, and its control state.
    pub async fn describe(
        &self,
        pool: &Pool,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<(Log, Control), ControlError> {
        let log = match self.log(pool, volume, deadline).await {
            Err(PoolError::NoSuchVolume { .. }) => return Err(ControlError::NoSuchVolume { volume }),
            log => log?,
        };
        let control = log.replay(&mut ControlOnly, deadline).await?.control;
        if control.last.is_none() { Err(ControlError::NoSuchVolume { volume }) } else { Ok((log, control)) }
    }

    /// Binds a snapshot's name to a volume. To be done before the snapshot is taken.
    pub async fn name_snapshot(
        &self,
        pool: &Pool,
        volume: VolumeId,
        name: &str,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        loop {
            let bound = pool.bind_snapshot_name(name, volume, deadline).await?;
            if bound == volume {
                return Ok(());
            }
            // A snapshot that was deleted may have left its name behind.
            let taken = match self.describe(pool, bound, deadline).await {
                Ok((_, control)) => control.snapshot_named(name).is_some(),
                Err(ControlError::NoSuchVolume { .. }) => false,
                Err(error) => return Err(error),
            };
            if taken {
                return Err(ControlError::NameTaken { name: name.into(), volume: bound });
            }
            pool.unbind_snapshot_name(name, bound, deadline).await?;
        }
    }

    /// Takes a snapshot of a volume that is not open, or finds the one that has its name. A volume that is granted and
    /// not yet open gets its record at once and its map when it is opened.
    pub async fn create_snapshot(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        name: &str,
        deadline: Instant,
    ) -> Result<SnapshotId, ControlError> {
        self.name_snapshot(pool, volume, name, deadline).await?;
        let (log, mut control) = self.describe(pool, volume, deadline).await?;
        let complete = |control: &Control| {
            control
                .snapshot_named(name)
                .filter(|(_, found)| found.map.is_some())
                .map(|(snapshot, _)| snapshot)
        };
        if let Some(snapshot) = complete(&control) {
            return Ok(snapshot);
        }
        if end_maintenance(&log, &control, deadline).await? {
            control = self.describe(pool, volume, deadline).await?.1;
        }
        // An owner is about to write the map of what it has cut.
        let begun = control.session.as_ref().and_then(|_| control.snapshot_named(name));
        if let Some(snapshot) = complete(&control).or(begun.map(|(snapshot, _)| snapshot)) {
            return Ok(snapshot);
        }
        if control.dead {
            return Err(ControlError::NoSuchVolume { volume });
        }
        ask_owner(volume, &control)?;
        let granted = control.grant.as_ref().is_some_and(|grant| grant.mode == GrantMode::ReadWrite);
        if granted {
            self.record_snapshot(&log, name, deadline).await?;
            let control = log.replay(&mut ControlOnly, deadline).await?.control;
            let found = control.snapshot_named(name).map(|(snapshot, _)| snapshot);
            return found.ok_or(ControlError::Busy { volume });
        }
        let session = self.maintain(pool, &log, deadline).await?;
        let outcome = session.snapshot(name).await;
        session.end(deadline).await?;
        outcome
    }

    async fn record_snapshot(&self, log: &Log, name: &str, deadline: Instant) -> Result<(), ControlError> {
        log.decide(deadline, |control| {
            if control.snapshot_named(name).is_some() {
                return Ok(Decision::Answer(()));
            }
            if control.session.is_some() {
                return Err(LogError::Illegal { volume: log.volume, reason: Inert::SessionOpen });
            }
            let snapshot = Op::Snapshot { name: name.into(), meta: String::new() };
            Ok(Decision::Append(vec![Op::Maintain, snapshot]))
        })
        .await?;
        Ok(())
    }

    /// Opens a session under a maintenance grant, which gives way to any publish.
    pub async fn maintain(
        &self,
        pool: &Arc<Pool>,
        log: &Log,
        deadline: Instant,
    ) -> Result<Maintenance, ControlError> {
        let found = self.find(pool, log.volume, deadline).await?;
        let node = format!("maintenance-{}", ObjectId::random(&*log.env.entropy));
        let grant = publish(log, &node, GrantMode::Maintenance, deadline)
            .await
            .map_err(|error| ControlError::publishing(log.volume, error))?;
        let open = OpenAs {
            grant,
            endpoint: String::new(),
            buffer: Arc::new(MemoryBuffer::new(BUFFER_BYTES)),
            limits: Limits::default(),
        };
        match self.open(&found, open, deadline).await {
            Ok(volume) => Ok(Maintenance { volume, log: log.clone(), grant }),
            Err(error) => {
                revoke(log, grant, deadline).await?;
                Err(error.into())
            }
        }
    }

    /// Deletes a snapshot of a volume that is not open. One that does not exist is deleted already.
    pub async fn delete_snapshot(
        &self,
        pool: &Pool,
        volume: VolumeId,
        snapshot: SnapshotId,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let (log, mut control) = match self.describe(pool, volume, deadline).await {
            Err(ControlError::NoSuchVolume { .. }) => return Ok(()),
            found => found?,
        };
        let Some(found) = control.snapshots.get(&snapshot).cloned() else { return Ok(()) };
        if !found.deleted {
            if end_maintenance(&log, &control, deadline).await? {
                control = log.replay(&mut ControlOnly, deadline).await?.control;
            }
            ask_owner(volume, &control)?;
            log.decide(deadline, |control| {
                if control.live_snapshot(snapshot).is_err() {
                    return Ok(Decision::Answer(()));
                }
                refuse_open(&log, control)?;
                Ok(Decision::Append(vec![Op::Maintain, Op::DeleteSnapshot { snapshot }]))
            })
            .await?;
        }
        Ok(pool.unbind_snapshot_name(&found.name, volume, deadline).await?)
    }

    /// Deletes a volume that no node holds. Its snapshots stay, and are completed first; what nothing needs any more is
    /// reclaimed later.
    pub async fn delete_volume(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let json = match pool.volume_json(volume, deadline).await {
            Err(PoolError::NoSuchVolume { .. }) => return Ok(()),
            json => json?,
        };
        let log = self.log(pool, volume, deadline).await?;
        self.complete_snapshots(pool, &log, deadline).await?;
        let mut holder = None;
        log.decide(deadline, |control| {
            holder = match (&control.grant, control.readers.first()) {
                (Some(grant), _) if grant.mode == GrantMode::ReadWrite => Some(grant.node.clone()),
                (_, Some(reader)) => Some(reader.node.clone()),
                (Some(_) | None, None) => None,
            };
            if control.last.is_none() || control.dead || holder.is_some() {
                return Ok(Decision::Answer(()));
            }
            // A deleted volume is not opened any more, and only an opener can write a snapshot's map.
            if !are_complete(control) {
                return Err(LogError::Raced { volume });
            }
            // Maintenance gives way here too.
            let revoke = control.grant.iter().map(|grant| Op::Revoke { grant: grant.id });
            let ops: Vec<Op> = match control.grant {
                Some(_) => revoke.collect(),
                None => vec![Op::Maintain, Op::Dead],
            };
            Ok(Decision::Append(ops))
        })
        .await?;
        if let Some(node) = holder {
            return Err(ControlError::InUse { volume, node });
        }
        let control = log.replay(&mut ControlOnly, deadline).await?.control;
        if !control.last.is_none() && !control.dead {
            return Err(ControlError::Busy { volume });
        }
        Ok(pool.unbind_volume_name(&json.name, volume, deadline).await?)
    }

    /// Ends what maintenance a volume is under which no node holds, and writes the maps that its snapshots still lack.
    async fn complete_snapshots(
        &self,
        pool: &Arc<Pool>,
        log: &Log,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let control = log.replay(&mut ControlOnly, deadline).await?.control;
        let held = control.grant.as_ref().is_some_and(|grant| grant.mode == GrantMode::ReadWrite)
            || !control.readers.is_empty();
        if held || control.dead {
            return Ok(());
        }
        end_maintenance(log, &control, deadline).await?;
        if are_complete(&control) {
            return Ok(());
        }
        let session = self.maintain(pool, log, deadline).await?;
        let written = session.volume.append(Vec::new(), true).await;
        session.end(deadline).await?;
        written?;
        Ok(())
    }
}

/// Whether every snapshot has its map.
fn are_complete(control: &Control) -> bool {
    control.snapshots.values().all(|snapshot| snapshot.map.is_some())
}

/// A session under a maintenance grant.
#[derive(Debug)]
pub struct Maintenance {
    /// The open volume.
    pub volume: Volume,
    log: Log,
    grant: ObjectId,
}

impl Maintenance {
    async fn snapshot(&self, name: &str) -> Result<SnapshotId, ControlError> {
        let now = self.volume.append(Vec::new(), true).await?;
        match now.control.snapshot_named(name) {
            // It was there, and the checkpoint has completed it.
            Some((snapshot, _)) => Ok(snapshot),
            None => Ok(self.volume.snapshot(name, "").await?),
        }
    }

    /// Closes the session and gives the grant back.
    pub async fn end(self, deadline: Instant) -> Result<(), ControlError> {
        // A publish may have ended it already; then there is nothing to close.
        if self.volume.check().is_ok() {
            self.volume.give_back().await?;
        }
        Ok(revoke(&self.log, self.grant, deadline).await?)
    }
}
