//! Looking after volumes that no node has: deleted ones are removed when nothing needs them, and the garbage of detached
//! ones is collected.
//!
//! # Guarantees
//! - A volume that has not changed since it was looked after costs a few reads a round, and writes nothing.
//! - Several controllers may do this at once: who comes second gives way or finds it done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::gc::GcError;
use holdfast_engine::host::Host;
use holdfast_engine::ids::{ObjectId, VolumeId};
use holdfast_engine::pool::Pool;
use holdfast_engine::volume::Limits;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::pools::{Pools, deadline};

/// When the first round begins after a start, which has more urgent things to do.
const FIRST: Duration = Duration::from_secs(600);
/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(6 * 3600);
/// How long one volume may take, which includes the grace time of its garbage.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// Volumes looked after at once.
const PARALLEL: usize = 8;

/// What was seen of each volume.
type Seen = BTreeMap<VolumeId, ObjectId>;

/// Looks after volumes until `stop`.
pub async fn tend(pools: &Pools, stop: &CancellationToken) {
    let rounds = async {
        let mut seen = Seen::new();
        sleep(FIRST).await;
        loop {
            seen = round(pools, &seen).await;
            sleep(PERIOD).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = rounds => {}
    }
}

/// Looks after all volumes once.
async fn round(pools: &Pools, before: &Seen) -> Seen {
    let host = pools.host();
    let mut seen = Seen::new();
    let mut tasks = JoinSet::new();
    for pool in pools.writable() {
        let mut last = None;
        loop {
            let volume = match host.volume_after(&pool, last, deadline()).await {
                Ok(Some(volume)) => volume,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(pool = pool.name(), %error, "cannot look after the volumes of a pool");
                    break;
                }
            };
            last = Some(volume);
            if tasks.len() >= PARALLEL {
                note(&mut seen, tasks.join_next().await);
            }
            tasks.spawn(one(host.clone(), Arc::clone(&pool), volume, before.get(&volume).copied()));
        }
    }
    while let Some(done) = tasks.join_next().await {
        note(&mut seen, Some(done));
    }
    seen
}

type Done = (VolumeId, Option<ObjectId>);

fn note(seen: &mut Seen, done: Option<Result<Done, tokio::task::JoinError>>) {
    if let Some(Ok((volume, Some(state)))) = done {
        seen.insert(volume, state);
    }
}

async fn one(host: Host, pool: Arc<Pool>, volume: VolumeId, seen: Option<ObjectId>) -> Done {
    match host.tend(&pool, volume, seen, Limits::default(), Instant::now() + PATIENCE).await {
        Ok(state) => (volume, state),
        Err(error) => {
            tracing::warn!(%volume, pool = pool.name(), %error, "a volume could not be looked after");
            (volume, None)
        }
    }
}

/// Removes a deleted volume behind the caller's back, if nothing needs it. What fails is left for the next round.
pub(super) fn reclaim_soon(host: &Host, pool: Arc<Pool>, volume: VolumeId) {
    let host = host.clone();
    tokio::spawn(async move {
        match host.reclaim(&pool, volume, Instant::now() + PATIENCE).await {
            Ok(()) => tracing::info!(%volume, "a deleted volume is removed"),
            Err(GcError::Needed { .. }) => tracing::debug!(%volume, "a deleted volume is still needed"),
            Err(error) => tracing::warn!(%volume, %error, "a deleted volume is not removed yet"),
        }
    });
}
