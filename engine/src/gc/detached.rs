//! Collecting a volume that is attached nowhere.

use tokio::time::Instant;

use super::{Collector, GcError, Round, after_grace};
use crate::control::{PublishError, describe, publish, revoke};
use crate::ids::GrantId;
use crate::log::{GrantMode, Log};
use crate::volume::{OpenError, OpenOptions, Volume, VolumeError};

/// Rounds at most: one finds garbage, one deletes it, one deletes what rewriting has left.
const ROUNDS: usize = 3;

/// How a detached collection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// The garbage that there was is gone, or what is left waits for somebody else.
    Collected(Round),
    /// The volume is attached or was attached meanwhile: its owner collects.
    Attached,
}

/// Collects the garbage of a volume that is attached nowhere, also of a deleted one whose snapshots are needed, under a
/// maintenance grant for `collector`, which names who collects. Waits for the grace time between its rounds, without
/// requests; gives way to any publish. `options` says how to open the volume; its grant is filled in here.
pub async fn collect_detached(
    log: &Log,
    collector: &str,
    options: OpenOptions,
    deadline: Instant,
) -> Result<Detached, GcError> {
    // Who reads the head has replayed once, and must find what it saw.
    if !describe(log, deadline).await?.readers.is_empty() {
        return Ok(Detached::Attached);
    }
    let grant = match publish(log, collector, GrantMode::Maintenance, deadline).await {
        Ok(grant) => grant,
        Err(PublishError::HeldBy { .. }) => return Ok(Detached::Attached),
        Err(PublishError::NoSuchVolume) => return Err(OpenError::NoSuchVolume { volume: log.volume }.into()),
        Err(PublishError::Log(error)) => return Err(error.into()),
    };
    let outcome = rounds(log, grant, options, deadline).await;
    if let Err(GcError::Volume(VolumeError::Over { .. }) | GcError::Open(OpenError::NotGranted { .. })) =
        outcome
    {
        // Somebody else has taken the volume, perhaps another collector under the same grant.
        return Ok(Detached::Attached);
    }
    // After an error too a volume that nobody collects should not look held.
    let revoked = revoke(log, grant, deadline).await;
    let round = outcome?;
    revoked?;
    Ok(Detached::Collected(round))
}

async fn rounds(
    log: &Log,
    grant: GrantId,
    options: OpenOptions,
    deadline: Instant,
) -> Result<Round, GcError> {
    let volume = Volume::open(log.clone(), OpenOptions { grant, ..options }, deadline).await?;
    let mut collector = Collector::new(volume.clone());
    let mut total = Round::default();
    for _ in 0..ROUNDS {
        let round = collector.round().await?;
        total = Round {
            deleted: total.deleted + round.deleted,
            moved_bytes: total.moved_bytes + round.moved_bytes,
            ..round
        };
        let again = after_grace(volume.limits().grace);
        if round.left == 0 && round.moved_bytes == 0 || again >= deadline {
            break;
        }
        tokio::select! {
            biased;
            reason = volume.wait_over() => return Err(VolumeError::Over { volume: log.volume, reason }.into()),
            () = tokio::time::sleep_until(again) => {}
        }
    }
    volume.give_back().await?;
    Ok(total)
}
