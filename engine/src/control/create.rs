//! Making volumes, empty or as clones, and giving them up.
//!
//! # Order of a creation
//! The name is bound to a random id; `volume.json`; for a clone a pin on every volume that its map will name, and then
//! a fresh replay that shows the snapshot, its map and its own pins unchanged; the root before the first record, with
//! the snapshot's map; record 1. The volume exists from record 1 on.
//!
//! # Guarantees
//! - Of several creations under one name one volume comes out, also after crashes.
//! - What a clone's map names is pinned from before the clone exists. A clone keeps the pin on its source as long as it
//!   names any ancestor. So the source keeps its snapshot, whose map names those ancestors as well, and by that its own
//!   pin on *its* source, and so on: between a volume and whoever needs it no pin is ever missing.
//! - Whoever gives a creation up puts a Dead record in the place of record 1 first, then removes the pins, then unbinds
//!   the name; a removed pin is never put again, because every creation has a new id.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::ControlError;
use crate::codec::{self, Codec};
use crate::host::{Found, Host};
use crate::ids::{ObjectId, RecordNumber, SessionId, SnapshotId, VolumeId};
use crate::log::{Control, ControlOnly, Log, LogError, Op, Put, Record};
use crate::map::{Origin, Root, StoredMap};
use crate::pool::{Access, NewVolume, Parent, Pool, PoolError, VolumeJson, layout};
use crate::snapshot::{self, SnapshotState};

/// A volume to make.
#[derive(Debug, Clone)]
pub struct CreateVolume {
    /// Its name: the same name finds the same volume.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// The snapshot that it is to be a clone of.
    pub source: Option<SourceSnapshot>,
    /// How its data are compressed.
    pub codec: Codec,
    /// What the creator wants to find again.
    pub parameters: BTreeMap<String, String>,
}

/// A snapshot to clone.
#[derive(Debug, Clone)]
pub struct SourceSnapshot {
    /// The pool it lives in.
    pub pool: Arc<Pool>,
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// How an earlier creation under the same name stands.
enum Standing {
    /// The volume exists.
    Exists,
    /// It does not, and its name is free again.
    Free,
}

impl Host {
    /// Makes a volume, or finds the one that has its name, whatever that one's size and source are.
    pub async fn create_volume(
        &self,
        pool: &Arc<Pool>,
        new: &CreateVolume,
        deadline: Instant,
    ) -> Result<VolumeId, ControlError> {
        loop {
            if let Some(volume) = pool.volume_named(&new.name, deadline).await?
                && let Standing::Exists = self.settle(pool, volume, &new.name, deadline).await?
            {
                return Ok(volume);
            }
            let volume = VolumeId::random(&*pool.env().entropy);
            if pool.bind_volume_name(&new.name, volume, deadline).await? != volume {
                continue;
            }
            match self.bring_up(pool, volume, new, deadline).await {
                Ok(()) => return Ok(volume),
                Err(error) => {
                    // If even this fails, the next creation under the name does it.
                    if let Err(left) = self.settle(pool, volume, &new.name, deadline).await {
                        tracing::warn!(%volume, error = %left, "a creation that failed is not cleaned up yet");
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Gives the creation of `volume` up, unless it has come to its end meanwhile.
    pub async fn give_up(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let found = self.find(pool, volume, deadline).await?;
        self.settle_described(&found, deadline).await.map(|_| ())
    }

    /// Finds out whether `volume` exists; if it does not, gives its creation up and frees its name.
    async fn settle(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        name: &str,
        deadline: Instant,
    ) -> Result<Standing, ControlError> {
        let empty = NewVolume {
            name: name.into(),
            size_bytes: 0,
            parents: Vec::new(),
            codec: Codec::Raw,
            parameters: BTreeMap::new(),
        };
        // A creation that died between name and description gets one here, for the key of its Dead record.
        let json = pool.create_volume_json(volume, &empty, deadline).await?;
        self.settle_described(&Found::new(pool, json)?, deadline).await
    }

    /// The same for a creation that has come as far as its description.
    async fn settle_described(&self, found: &Found, deadline: Instant) -> Result<Standing, ControlError> {
        let Found { pool, json, log } = found;
        let control = log.replay(&mut ControlOnly, deadline).await?.control;
        if !control.last.is_none() && !control.dead {
            return Ok(Standing::Exists);
        }
        let given_up = if control.last.is_none() {
            match put_first(log, Op::Dead, deadline).await? {
                Put::Taken(found) if !found.ops.contains(&Op::Dead) => return Ok(Standing::Exists),
                Put::Done | Put::Taken(_) => true,
            }
        } else {
            // One that existed and was deleted may have snapshots left, and those need its pins.
            log.get(RecordNumber(1), deadline).await?.is_some_and(|first| first.ops.contains(&Op::Dead))
        };
        for parent in json.parents.iter().filter(|_| given_up) {
            if let Some(home) = self.pools.get(parent.pool) {
                home.remove_pin(parent.volume, parent.snapshot, json.id, deadline).await?;
            }
        }
        pool.unbind_volume_name(&json.name, json.id, deadline).await?;
        Ok(Standing::Free)
    }

    async fn bring_up(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        new: &CreateVolume,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let source = match &new.source {
            Some(source) => Some((source, self.find_source(source, deadline).await?)),
            None => None,
        };
        let origins = source.as_ref().map(|(source, state)| origins(source, state)).unwrap_or_default();
        if let Some((_, state)) = &source
            && new.size_bytes < state.snapshot.size_bytes
        {
            let (asked_bytes, source_bytes) = (new.size_bytes, state.snapshot.size_bytes);
            return Err(ControlError::TooSmall { asked_bytes, source_bytes });
        }
        let parent =
            |origin: &Origin| Parent { pool: origin.pool, volume: origin.volume, snapshot: origin.snapshot };
        let description = NewVolume {
            name: new.name.clone(),
            size_bytes: new.size_bytes,
            parents: origins.iter().map(parent).collect(),
            codec: new.codec,
            parameters: new.parameters.clone(),
        };
        let json = pool.create_volume_json(volume, &description, deadline).await?;
        // Somebody else gives this creation up: its description names no pins that would be removed.
        if json.parents != description.parents {
            return Err(ControlError::Busy { volume });
        }
        let Found { log, .. } = Found::new(pool, json)?;
        if let Some((source, state)) = source {
            self.pin(pool, volume, &origins, deadline).await?;
            self.confirm(source, &state, deadline).await?;
            put_first_root(&log, StoredMap { runs: state.map.map.runs, origins }, deadline).await?;
        }
        match put_first(&log, Op::Create { size_bytes: new.size_bytes }, deadline).await? {
            Put::Done => Ok(()),
            // Somebody else took this creation for a dead one.
            Put::Taken(_) => Err(ControlError::Busy { volume }),
        }
    }

    async fn find_source(
        &self,
        source: &SourceSnapshot,
        deadline: Instant,
    ) -> Result<SnapshotState, ControlError> {
        let gone = || ControlError::NoSuchSnapshot { volume: source.volume, snapshot: source.snapshot };
        let log = match self.log(&source.pool, source.volume, deadline).await {
            Err(PoolError::NoSuchVolume { .. }) => return Err(gone()),
            log => log?,
        };
        let state = snapshot::find(&log, source.snapshot, deadline).await.map_err(|error| match error {
            snapshot::SnapshotError::Log(LogError::Illegal { .. }) => gone(),
            error => error.into(),
        })?;
        if state.snapshot.deleted { Err(gone()) } else { Ok(state) }
    }

    async fn pin(
        &self,
        pool: &Pool,
        clone: VolumeId,
        origins: &[Origin],
        deadline: Instant,
    ) -> Result<(), ControlError> {
        for origin in origins {
            let home = self.pools.get(origin.pool).filter(|home| home.access() == Access::ReadWrite);
            let home = home.ok_or(ControlError::PoolMissing { pool: origin.pool })?;
            home.put_pin(origin.volume, origin.snapshot, clone, pool.id(), deadline).await?;
        }
        Ok(())
    }

    /// Looks again, now that the pins are there: the snapshot must still exist with the same map, and the source must
    /// still hold its own pins on what that map names.
    async fn confirm(
        &self,
        source: &SourceSnapshot,
        seen: &SnapshotState,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let busy = || ControlError::Busy { volume: source.volume };
        let now = self.find_source(source, deadline).await?;
        if now.map.id != seen.map.id || now.snapshot.generation != seen.snapshot.generation {
            return Err(busy());
        }
        for origin in &seen.map.map.origins {
            let home = self.pools.get(origin.pool).ok_or(ControlError::PoolMissing { pool: origin.pool })?;
            if home.pin(origin.volume, origin.snapshot, source.volume, deadline).await?.is_none() {
                return Err(busy());
            }
        }
        Ok(())
    }

    /// Lets go of the ancestors that neither the head nor a snapshot of the volume names any more; of its source only
    /// when it names no ancestor at all. Answers how many it let go.
    ///
    /// Were the source let go of before, it could go, and its pins on the ancestors with it, while somebody lists those:
    /// a listing that passes the place of this volume's pin before that is put, and the place of the source's when that
    /// is removed, shows neither.
    ///
    /// Both of the two newest roots must show that: while the first one was put, the owner may have cut a snapshot of
    /// the map as it was before. The second one was begun later, and knows of that snapshot.
    pub async fn release_pins(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<usize, ControlError> {
        let Found { json: VolumeJson { parents, .. }, log, .. } = self.find(pool, volume, deadline).await?;
        if parents.is_empty() {
            return Ok(0);
        }
        let mut named: Vec<Origin> = Vec::new();
        for (number, _) in log.roots(deadline).await?.iter().rev().take(2) {
            let Some(root) = log.root(*number, deadline).await? else { return Ok(0) };
            named.extend(root.map.origins);
        }
        let control = log.replay(&mut ControlOnly, deadline).await?.control;
        for snapshot in control.snapshots.values() {
            match snapshot.map {
                Some(map) => named.extend(snapshot::read_map(&log, map, deadline).await?.map.origins),
                // Its map is not written yet, so what it names is not known.
                None => return Ok(0),
            }
        }
        let is_named = |parent: &Parent| {
            named.iter().any(|origin| origin.volume == parent.volume && origin.snapshot == parent.snapshot)
        };
        let names_any = parents.iter().any(is_named);
        let mut released = 0;
        for (place, parent) in parents.into_iter().enumerate() {
            // The first one is the source.
            let needed = is_named(&parent) || (place == 0 && names_any);
            let Parent { pool: home, volume: parent, snapshot } = parent;
            let Some(home) = self.pools.get(home).filter(|home| home.access() == Access::ReadWrite) else {
                continue;
            };
            if !needed && home.pin(parent, snapshot, volume, deadline).await?.is_some() {
                home.remove_pin(parent, snapshot, volume, deadline).await?;
                released += 1;
            }
        }
        Ok(released)
    }
}

/// The volumes that a clone's map names: the source first, then what the source's map names itself.
fn origins(source: &SourceSnapshot, state: &SnapshotState) -> Vec<Origin> {
    let direct = Origin { pool: source.pool.id(), volume: source.volume, snapshot: source.snapshot };
    std::iter::once(direct).chain(state.map.map.origins.iter().copied()).collect()
}

/// Puts record 1.
async fn put_first(log: &Log, op: Op, deadline: Instant) -> Result<Put, ControlError> {
    let id = ObjectId::random(&*log.env.entropy);
    let record = Record {
        volume: log.volume,
        number: RecordNumber(1),
        id,
        session: SessionId::NONE,
        prev: ObjectId::NONE,
        time_ms: log.env.clock.now_ms(),
        buffer_complete: 0,
        ops: vec![op],
    };
    let body = codec::encode_record(record, None, log.key.as_ref())?.bytes;
    Ok(log.put(RecordNumber(1), id, body, deadline).await?)
}

/// Puts the root that stands before record 1: the map that a clone begins with.
async fn put_first_root(log: &Log, map: StoredMap, deadline: Instant) -> Result<(), ControlError> {
    let id = ObjectId::random(&*log.env.entropy);
    let root = Root { volume: log.volume, id, number: RecordNumber(0), control: Control::default(), map };
    let body = codec::encode_root(SessionId::NONE, &root, log.key.as_ref())?;
    let key = layout::root(log.volume, root.number);
    Ok(log.put_own(&key, &body, deadline).await?)
}
