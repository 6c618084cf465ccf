//! Removing a deleted volume.
//!
//! # Guarantees
//! - Nothing is removed while a snapshot of the volume is left, or a pin names one. Deleted snapshots that no pin names
//!   are forgotten first.
//! - Whoever replays the log of a volume that is being removed finds it deleted: a last root says so, which goes after
//!   everything but `volume.json`.
//!
//! # Assumptions
//! A creation that was given up has left a Dead record and a description, which stand in the way of a creator that is
//! slow: they stay. Nothing can bring a deleted volume back, so that a root of its last state, with an empty map, may be
//! put by whoever removes it. Only collectors can hold it; their grants are revoked first.
//!
//! # Crash behaviour
//! A repeated call goes on where the last one stopped.

use futures::future::try_join_all;
use tokio::time::Instant;

use super::{GcError, pins};
use crate::codec;
use crate::control::release;
use crate::ids::{ObjectId, RecordNumber, SessionId};
use crate::log::{Control, ControlOnly, Decision, Log, Op};
use crate::map::{Root, StoredMap};
use crate::pool::{Access, Pool, PoolError, PoolSet, layout};
use crate::store::StoreError;

/// Objects deleted at once.
const PARALLEL: usize = 16;

/// Removes everything of the deleted volume of `log`, which lives in `pool`, and its pins on its ancestors, which live
/// in `pools`. Fails with [`GcError::Needed`] if it is not deleted, or a snapshot is needed.
pub async fn reclaim(pool: &Pool, pools: &PoolSet, log: &Log, deadline: Instant) -> Result<(), GcError> {
    let volume = log.volume;
    let json = match pool.volume_json(volume, deadline).await {
        Ok(json) => json,
        // The last thing to go: somebody has finished.
        Err(PoolError::NoSuchVolume { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let control = log.replay(&mut ControlOnly, deadline).await?.control;
    if control.last.is_none() {
        // Only the description is left, unless a creation is under way: that one's name is bound.
        if pool.volume_named(&json.name, deadline).await? == Some(volume) {
            return Err(GcError::Needed { volume });
        }
        return Ok(delete(log, &layout::volume_json(volume), deadline).await?);
    }
    if control.is_given_up() {
        return Ok(());
    }
    let newest = last_root(log, &control, deadline).await?;
    pool.unbind_volume_name(&json.name, volume, deadline).await?;
    for prefix in [
        layout::segments(volume),
        layout::maps(volume),
        layout::records(volume),
        layout::fences(volume),
        layout::parameter_generations(volume),
    ] {
        delete_all(log, &prefix, None, deadline).await?;
    }
    delete_all(log, &layout::roots(volume), Some(newest), deadline).await?;
    for parent in json.parents {
        let ancestor = pools.get(parent.pool).ok_or(GcError::UnknownPool { volume, pool: parent.pool })?;
        // A clone of what may only be read has no pin there.
        if ancestor.access() == Access::ReadWrite {
            ancestor.remove_pin(parent.volume, parent.snapshot, volume, deadline).await?;
        }
    }
    delete(log, &layout::root(volume, newest), deadline).await?;
    delete(log, &layout::volume_json(volume), deadline).await?;
    Ok(())
}

fn is_unneeded(control: &Control) -> bool {
    control.dead && control.snapshots.is_empty()
}

/// The newest root, which says that the volume is deleted and not needed; it is put if there is none like it.
async fn last_root(log: &Log, control: &Control, deadline: Instant) -> Result<RecordNumber, GcError> {
    let volume = log.volume;
    if !control.dead || control.snapshots.values().any(|found| !found.deleted) {
        return Err(GcError::Needed { volume });
    }
    let pinned = pins::pinned(log, deadline).await?;
    if control.snapshots.keys().any(|snapshot| pinned.contains(snapshot)) {
        return Err(GcError::Needed { volume });
    }
    if let Some(newest) = log.newest_root(deadline).await?
        && log.root(newest, deadline).await?.is_some_and(|root| is_unneeded(&root.control))
    {
        return Ok(newest);
    }
    release(log, deadline).await?;
    log.decide(deadline, |control| {
        let forget = control.snapshots.keys().map(|snapshot| Op::ForgetSnapshot { snapshot: *snapshot });
        let forget: Vec<Op> = forget.collect();
        if forget.is_empty() {
            return Ok(Decision::Answer(()));
        }
        Ok(Decision::Append([vec![Op::Maintain], forget].concat()))
    })
    .await?;
    let state = log.replay(&mut ControlOnly, deadline).await?;
    if !is_unneeded(&state.control) {
        return Err(GcError::Needed { volume });
    }
    let number = RecordNumber(state.next.0 - 1);
    let root = Root {
        volume,
        id: ObjectId::random(&*log.env.entropy),
        number,
        control: state.control,
        map: StoredMap::default(),
    };
    let body =
        codec::encode_root(SessionId::NONE, &root, log.key.as_ref()).map_err(crate::log::LogError::from)?;
    let key = layout::root(volume, number);
    // Another's root of the same state says the same.
    log.put_own(&key, &body, deadline).await?;
    Ok(number)
}

/// Deletes everything below `prefix` but the root `except`.
async fn delete_all(
    log: &Log,
    prefix: &str,
    except: Option<RecordNumber>,
    deadline: Instant,
) -> Result<(), GcError> {
    let keys: Vec<String> = log.list(prefix, deadline).await?.into_iter().map(|listed| listed.key).collect();
    let stays = |key: &str| except.is_some() && layout::number_in(key) == except;
    for batch in keys.chunks(PARALLEL) {
        let deletes: Vec<_> =
            batch.iter().filter(|key| !stays(key)).map(|key| delete(log, key, deadline)).collect();
        try_join_all(deletes).await?;
    }
    Ok(())
}

async fn delete(log: &Log, key: &str, deadline: Instant) -> Result<(), StoreError> {
    log.retry(deadline, || log.store.delete(key)).await
}
