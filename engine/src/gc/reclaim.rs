//! Removing a deleted volume.
//!
//! # Guarantees
//! - Nothing is removed while a snapshot of the volume is left, or a pin names one.
//! - Whoever replays the log of a volume that is being removed finds it deleted: its newest root says so, and goes
//!   after everything but `volume.json`.
//!
//! # Crash behaviour
//! A repeated call goes on where the last one stopped.

use futures::future::try_join_all;
use tokio::time::Instant;

use super::{GcError, pins};
use crate::control::{PublishError, publish, release};
use crate::ids::RecordNumber;
use crate::log::{Control, ControlOnly, GrantMode, Log, Op};
use crate::pool::{Access, Pool, PoolError, PoolSet, layout};
use crate::store::StoreError;
use crate::volume::{OpenError, OpenOptions, Volume};

/// Objects deleted at once.
const PARALLEL: usize = 16;

/// Removes everything of the deleted volume of `log`, which lives in `pool`, and its pins on its ancestors. `options`
/// says how to open it; its grant is filled in here.
pub async fn reclaim(
    pool: &Pool,
    pools: &PoolSet,
    log: &Log,
    collector: &str,
    options: OpenOptions,
    deadline: Instant,
) -> Result<(), GcError> {
    let volume = log.volume;
    let parents = match pool.volume_json(volume, deadline).await {
        Ok(json) => json.parents,
        // The last thing to go: somebody has finished.
        Err(PoolError::NoSuchVolume { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let state = log.replay(&mut ControlOnly, deadline).await?;
    if !is_unneeded(&state.control) || !pins::pinned(log, deadline).await?.is_empty() {
        return Err(GcError::Needed { volume });
    }
    let newest = match ended(log, deadline).await? {
        Some(newest) => newest,
        None => {
            put_last_root(log, collector, options, deadline).await?;
            ended(log, deadline).await?.ok_or(GcError::Overtaken { volume })?
        }
    };
    for prefix in
        [layout::segments(volume), layout::maps(volume), layout::records(volume), layout::fences(volume)]
    {
        delete_all(log, &prefix, None, deadline).await?;
    }
    delete_all(log, &layout::roots(volume), Some(newest), deadline).await?;
    for parent in parents {
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

/// The newest root, if it alone says that the volume is deleted and not needed.
async fn ended(log: &Log, deadline: Instant) -> Result<Option<RecordNumber>, GcError> {
    let Some(newest) = log.newest_root(deadline).await? else { return Ok(None) };
    let root = log.root(newest, deadline).await?;
    Ok(root.filter(|root| is_unneeded(&root.control)).map(|_| newest))
}

/// Puts a root that covers the deletion, in a session that ends whoever else collects.
async fn put_last_root(
    log: &Log,
    collector: &str,
    options: OpenOptions,
    deadline: Instant,
) -> Result<(), GcError> {
    // Only collectors can hold a deleted volume, and there is nothing left to collect.
    release(log, deadline).await?;
    let grant = match publish(log, collector, GrantMode::Maintenance, deadline).await {
        Ok(grant) => grant,
        Err(PublishError::Log(error)) => return Err(error.into()),
        Err(PublishError::HeldBy { .. } | PublishError::NoSuchVolume) => {
            return Err(OpenError::NotGranted { volume: log.volume }.into());
        }
    };
    let volume = Volume::open(log.clone(), OpenOptions { grant, ..options }, deadline).await?;
    volume.append(vec![Op::Noop], true).await?;
    // The root is durable, and the session still owned the volume after that.
    volume.append(vec![Op::Noop], false).await?;
    volume.abandon();
    Ok(())
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
