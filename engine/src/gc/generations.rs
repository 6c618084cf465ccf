//! New generations of snapshot maps.
//!
//! # Guarantees
//! - A snapshot reads the same bytes before and after. Its new map is durable before the record that switches to it.
//! - The record is legal only if nobody else has switched the snapshot's map meanwhile.
//! - What the old generation names is deleted by the rule for deleting alone ([`super::sweep`]), and not while a pin
//!   names the snapshot: whoever makes a clone confirms, with the pin in place, that the generation is the one that the
//!   clone begins with. If that look came before the switch, the next listing of the pins shows the pin; if it came
//!   after, the cloner has begun again.
//!
//! # Crash behaviour
//! A crash before the record leaves new maps that nothing names: garbage. After it, the old ones are.

use std::ops::Bound;
use std::sync::Arc;

use tokio::time::Instant;

use super::GcError;
use super::differences::{Differences, Held};
use crate::codec;
use crate::ids::{ObjectId, RecordNumber, SnapshotId};
use crate::log::{Log, LogError, Move, Op};
use crate::map::{Restater, SnapshotMap};
use crate::pool::layout;
use crate::snapshot;
use crate::volume::{Cut, Volume};

/// Snapshots switched by one record.
const SWITCHES_MAX: usize = 1024;

/// Adds to `snapshots` those taken after `newest`: while data was copied, so that they may name it where it was. Answers
/// the newest of all.
pub(super) async fn add_late(
    volume: &Volume,
    snapshots: &mut Vec<Held>,
    newest: SnapshotId,
    deadline: Instant,
) -> Result<SnapshotId, GcError> {
    let mut control = volume.cut().await?.control;
    let after = (Bound::Excluded(newest), Bound::Unbounded);
    if control.snapshots.range(after).any(|(_, late)| late.map.is_none()) {
        // Their maps come with a checkpoint.
        volume.append(vec![Op::Noop], true).await?;
        control = volume.cut().await?.control;
    }
    let mut last = newest;
    for (id, late) in control.snapshots.range(after) {
        let Some(map) = late.map else { break };
        let map = snapshot::read_map(volume.log(), map, deadline).await.map_err(GcError::from_log)?;
        snapshots.insert(0, Held { map: Arc::new(map), only: None });
        last = *id;
    }
    Ok(last)
}

/// Rewrites the maps of `snapshots` that name anything in the place it was moved from, and switches to the new ones,
/// which `snapshots` then holds; their `differences` are restated too. Answers the last record that did so.
pub(super) async fn switch(
    volume: &Volume,
    cut: &Cut,
    snapshots: &mut [Held],
    differences: &mut Differences,
    moves: Vec<Move>,
    deadline: Instant,
) -> Result<Option<RecordNumber>, GcError> {
    let before: Vec<ObjectId> = snapshots.iter().map(|held| held.map.id).collect();
    let maps = snapshots.iter().map(|held| &held.map.map);
    let mut restater = Restater::new(cut.head.source().clone(), volume.id(), moves, maps);
    let mut switched = None;
    for batch in snapshots.chunks_mut(SWITCHES_MAX) {
        let mut ops = Vec::new();
        let control = volume.cut().await?.control;
        for held in batch {
            let Some(map) = restater.restate(&held.map.map).await? else { continue };
            // Only the collector of this session forgets snapshots.
            let found = control.snapshots.get(&held.map.snapshot);
            let found = found.ok_or(GcError::Overtaken { volume: volume.id() })?;
            let id = ObjectId::random(&*volume.log().env.entropy);
            let next = SnapshotMap { id, map, ..(*held.map).clone() };
            put(volume, &next, deadline).await?;
            ops.push(Op::SwitchSnapshotMap {
                snapshot: next.snapshot,
                generation: found.generation + 1,
                map: next.id,
            });
            held.map = Arc::new(next);
            differences.note_map(held.map.clone());
        }
        if !ops.is_empty() {
            switched = Some(volume.append(ops, false).await?.number);
        }
    }
    differences.restate(&before, snapshots, restater.moves())?;
    Ok(switched)
}

async fn put(volume: &Volume, map: &SnapshotMap, deadline: Instant) -> Result<(), GcError> {
    let log: &Log = volume.log();
    let body = codec::encode_snapshot_map(volume.session(), map, log.key.as_ref()).map_err(LogError::from)?;
    let key = layout::map(log.volume, map.id);
    Ok(log.put_own(&key, &body, deadline).await?)
}
