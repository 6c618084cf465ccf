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

use tokio::time::Instant;

use super::GcError;
use crate::codec;
use crate::ids::{ObjectId, RecordNumber};
use crate::log::{Log, LogError, Move, Op};
use crate::map::{Restater, SnapshotMap};
use crate::pool::layout;
use crate::store::StoreError;
use crate::volume::{Cut, Volume};

/// Snapshots switched by one record.
const SWITCHES_MAX: usize = 1024;

/// Rewrites the maps of `snapshots` that name anything in the place it was moved from, and switches to the new ones,
/// which `snapshots` then holds. Answers the last record that did so.
pub(super) async fn switch(
    volume: &Volume,
    cut: &Cut,
    snapshots: &mut [SnapshotMap],
    moves: Vec<Move>,
    deadline: Instant,
) -> Result<Option<RecordNumber>, GcError> {
    let mut restater = Restater::new(cut.head.source().clone(), moves);
    let mut switched = None;
    for batch in snapshots.chunks_mut(SWITCHES_MAX) {
        let mut ops = Vec::new();
        let control = volume.cut().await?.control;
        for snapshot in batch {
            let Some(map) = restater.restate(&snapshot.map).await? else { continue };
            let Some(found) = control.snapshots.get(&snapshot.snapshot) else { continue };
            let next =
                SnapshotMap { id: ObjectId::random(&*volume.log().env.entropy), map, ..snapshot.clone() };
            put(volume, &next, deadline).await?;
            ops.push(Op::SwitchSnapshotMap {
                snapshot: next.snapshot,
                generation: found.generation + 1,
                map: next.id,
            });
            *snapshot = next;
        }
        if !ops.is_empty() {
            switched = Some(volume.append(ops, false).await?.number);
        }
    }
    Ok(switched)
}

async fn put(volume: &Volume, map: &SnapshotMap, deadline: Instant) -> Result<(), GcError> {
    let log: &Log = volume.log();
    let body = codec::encode_snapshot_map(volume.session(), map, log.key.as_ref()).map_err(LogError::from)?;
    let key = layout::map(log.volume, map.id);
    match log.retry(deadline, || log.store.put_if_absent(&key, body.clone())).await {
        // The id is random: an attempt whose reply was lost.
        Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
