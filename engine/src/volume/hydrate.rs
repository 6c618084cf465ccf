//! Hydration: copying what a restored volume still reads from an archive into its own pool, behind the user's back.
//!
//! # Guarantees
//! - A block that is written meanwhile keeps the newer data: a copy takes the place of its source only where the map
//!   still names that source.
//! - Progress is exact in bytes of blocks; a restart goes on where the map says that something is missing.
//!
//! # Crash behaviour
//! A crash loses the step under way. What earlier steps copied is in the log.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Bulk, Volume, VolumeError};
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::map::{Extent, MapView, Walk};

/// Bytes copied per step, which is one segment and one record.
const STEP_BYTES: u64 = 4 << 20;
/// The pause before a step is tried again that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// How far a hydration has come, in bytes of blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hydration {
    /// Copied, or overwritten or discarded by the user.
    pub hydrated_bytes: u64,
    /// What there was to copy when this session began.
    pub total_bytes: u64,
    /// Whether nothing is left.
    pub done: bool,
}

/// Copies, until nothing is left or the session is over, every block that lies in a segment of one of `foreign` into
/// the volume's own pool; at most `bytes_per_second` (0: no limit). Tells its progress.
pub async fn hydrate(
    volume: Volume,
    foreign: BTreeSet<VolumeId>,
    bytes_per_second: u64,
    progress: watch::Sender<Hydration>,
) -> Result<(), VolumeError> {
    let mut total_bytes = None;
    loop {
        let outcome = match pass(&volume, &foreign, bytes_per_second, &progress, &mut total_bytes).await {
            Ok(true) => volume.forget_origins(&foreign).await.map(|()| true),
            outcome => outcome,
        };
        match outcome {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => {
                volume.check()?;
                tracing::warn!(volume = %volume.id(), %error, "hydration waits");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    progress.send_modify(|progress| {
        *progress = Hydration { hydrated_bytes: progress.total_bytes, done: true, ..*progress }
    });
    Ok(())
}

/// Copies what one walk through the map finds; true if it found nothing.
async fn pass(
    volume: &Volume,
    foreign: &BTreeSet<VolumeId>,
    bytes_per_second: u64,
    progress: &watch::Sender<Hydration>,
    total_bytes: &mut Option<u64>,
) -> Result<bool, VolumeError> {
    let map_error = |reason| VolumeError::Map { volume: volume.id(), reason: std::sync::Arc::new(reason) };
    let Some(view) = volume.frozen() else { return Ok(true) };
    let mut left_bytes = foreign_bytes(&view, foreign).await.map_err(map_error)?;
    let total_bytes = *total_bytes.get_or_insert(left_bytes);
    let tell = |left_bytes: u64| {
        let hydrated_bytes = total_bytes.saturating_sub(left_bytes);
        progress.send_replace(Hydration { hydrated_bytes, total_bytes, done: false });
    };
    tell(left_bytes);
    if left_bytes == 0 {
        return Ok(true);
    }
    let mut walk = Walk::new(&view);
    let mut step: Vec<Extent> = Vec::new();
    let mut step_bytes = 0;
    loop {
        let extents = walk.next().await.map_err(map_error)?;
        let ended = extents.is_none();
        for extent in extents.unwrap_or_default().into_iter().filter(|extent| is_foreign(extent, foreign)) {
            step_bytes += bytes(&extent);
            step.push(extent);
            if step_bytes >= STEP_BYTES {
                let started = Instant::now();
                copy(volume, &std::mem::take(&mut step)).await?;
                left_bytes = left_bytes.saturating_sub(std::mem::take(&mut step_bytes));
                tell(left_bytes);
                if bytes_per_second > 0 {
                    let due = Duration::from_secs_f64(STEP_BYTES as f64 / bytes_per_second as f64);
                    tokio::time::sleep_until(started + due).await;
                }
            }
        }
        if ended {
            copy(volume, &step).await?;
            tell(left_bytes.saturating_sub(step_bytes));
            // What was written meanwhile is no concern; what a relocation found changed may still be foreign.
            return Ok(false);
        }
    }
}

async fn copy(volume: &Volume, extents: &[Extent]) -> Result<(), VolumeError> {
    if extents.is_empty() {
        return Ok(());
    }
    let mut bulk: Bulk = volume.bulk(volume.session());
    for extent in extents {
        let mut data = vec![0; bytes(extent) as usize];
        volume
            .reader()
            .read_extents(std::slice::from_ref(extent), extent.lba, &mut data)
            .await
            .map_err(|reason| VolumeError::Read { volume: volume.id(), reason })?;
        bulk.relocate(*extent, &data).await?;
    }
    volume.commit_relocation(bulk).await.map(|_| ())
}

async fn foreign_bytes(view: &MapView, foreign: &BTreeSet<VolumeId>) -> Result<u64, crate::map::MapError> {
    let mut walk = Walk::new(view);
    let mut total = 0;
    while let Some(extents) = walk.next().await? {
        total += extents.iter().filter(|extent| is_foreign(extent, foreign)).map(bytes).sum::<u64>();
    }
    Ok(total)
}

fn is_foreign(extent: &Extent, foreign: &BTreeSet<VolumeId>) -> bool {
    extent.location.is_some_and(|location| foreign.contains(&location.segment.volume))
}

fn bytes(extent: &Extent) -> u64 {
    u64::from(extent.blocks) * BLOCK_BYTES
}
