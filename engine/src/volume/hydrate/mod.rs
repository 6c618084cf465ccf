//! Hydration: copying what a restored volume still reads from an archive into its own pool, behind the user's back.
//!
//! Steps of a third of a segment are read, put and committed, several at once, as far as the [`Pace`] lets them. What the
//! volume's user has just read comes first, with what lies around it; then the rest, in ascending order ([`order`]).
//!
//! # Guarantees
//! - A block that is written meanwhile keeps the newer data: a copy takes the place of its source only where the map
//!   still names that source.
//! - Progress is exact in bytes of blocks; a restart goes on where the map says that something is missing.
//! - What is damaged in the archive, or gone, keeps nothing else from being copied.
//! - The user's I/O goes first: few requests at a time are made of the archive, one step at a time runs while the volume
//!   is read, and what is copied takes no room in the cache.
//!
//! # Crash behaviour
//! A crash loses the steps under way. What earlier steps copied is in the log.

mod order;
mod pace;
mod steps;
mod wanted;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::watch;

use super::{Volume, VolumeError};
use crate::ids::VolumeId;
use crate::map::{Extent, MapError, MapView, mapped_bytes};

use order::Order;
pub use pace::Pace;
use pace::STEPS;
use steps::Steps;
pub(super) use wanted::Wanted;

/// The pause before what failed is tried again; of what is damaged or gone, which is looked for in all of the map, it
/// grows.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// What is to be copied.
#[derive(Debug, Clone)]
pub struct Hydrate {
    /// The volumes in whose segments the blocks lie that are copied.
    pub foreign: BTreeSet<VolumeId>,
    /// Bytes of blocks that lay there when the volume was made; if that is not known, none, and progress is counted
    /// from what is found first.
    pub total_bytes: Option<u64>,
    /// How fast.
    pub pace: Arc<Pace>,
}

impl Hydrate {
    /// All that lies in segments of `foreign`, without a limit.
    pub fn unlimited(foreign: BTreeSet<VolumeId>) -> Self {
        Self { foreign, total_bytes: None, pace: Arc::new(Pace::new(0)) }
    }
}

/// How far a hydration has come, in bytes of blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hydration {
    /// Copied, or overwritten or discarded by the user.
    pub hydrated_bytes: u64,
    /// What there was to copy when the volume was made.
    pub total_bytes: u64,
    /// Whether nothing is left.
    pub done: bool,
}

impl Volume {
    /// Whether the volume's map may still name objects of `ancestors`. Needs no request.
    pub fn reads_from(&self, ancestors: &BTreeSet<VolumeId>) -> bool {
        let named = |view: MapView| view.origins().iter().any(|origin| ancestors.contains(&origin.volume));
        self.frozen().is_some_and(named)
    }
}

/// Copies, until nothing is left or the session is over, every block that lies in a segment of one of the foreign volumes
/// into the volume's own pool. Tells its progress.
pub async fn hydrate(
    volume: Volume,
    task: Hydrate,
    progress: watch::Sender<Hydration>,
) -> Result<(), VolumeError> {
    let _watching = volume.shared.wanted.watch();
    let mut total_bytes = task.total_bytes;
    let mut pause = PAUSE;
    loop {
        let outcome = match pass(&volume, &task, &mut total_bytes, &progress).await {
            Ok(true) => volume.forget_origins(&task.foreign).await.map(|()| true),
            outcome => outcome,
        };
        match outcome {
            Ok(true) => break,
            Ok(false) => volume.check()?,
            Err(error) => {
                volume.check()?;
                tracing::warn!(volume = %volume.id(), %error, "hydration waits");
                tokio::select! {
                    biased;
                    _ = volume.wait_over() => volume.check()?,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = if error.may_pass() { PAUSE } else { PAUSE_MAX.min(2 * pause) };
            }
        }
    }
    let total_bytes = total_bytes.unwrap_or_default();
    progress.send_replace(Hydration { hydrated_bytes: total_bytes, total_bytes, done: true });
    Ok(())
}

/// Copies what the map names now; true if there was nothing to copy.
async fn pass(
    volume: &Volume,
    task: &Hydrate,
    total_bytes: &mut Option<u64>,
    progress: &watch::Sender<Hydration>,
) -> Result<bool, VolumeError> {
    let map_error = |reason| VolumeError::Map { volume: volume.id(), reason: Arc::new(reason) };
    if !volume.reads_from(&task.foreign) {
        return Ok(true);
    }
    let Some(view) = volume.frozen() else { return Ok(true) };
    let mut left_bytes = bytes_in(&view, &task.foreign).await.map_err(map_error)?;
    let total_bytes = *total_bytes.get_or_insert(left_bytes);
    let tell = |left_bytes: u64| {
        let hydrated_bytes = total_bytes.saturating_sub(left_bytes);
        progress.send_replace(Hydration { hydrated_bytes, total_bytes, done: false });
    };
    tell(left_bytes);
    if left_bytes == 0 {
        return Ok(true);
    }
    let stopped = Arc::new(AtomicBool::new(false));
    let order = Order::new(view, task.foreign.clone(), volume.limits().segment_bytes / 3);
    let steps = Steps::new(volume.clone(), order, Arc::clone(&task.pace), Arc::clone(&stopped));
    let planned = stream::unfold(steps, |mut steps| async { Some((steps.next().await?, steps)) });
    let copied = planned.map(|step| async { step?.copy().await });
    let mut copied = pin!(copied.buffer_unordered(STEPS));
    let mut failed = None;
    // Steps that run are not given up half-way: the collector would take what they have put.
    while let Some(step) = copied.next().await {
        match step {
            Ok(bytes) => {
                left_bytes = left_bytes.saturating_sub(bytes);
                tell(left_bytes);
            }
            Err(error) => {
                // What is damaged, or gone, does not keep the rest from being copied.
                if error.may_pass() {
                    stopped.store(true, Ordering::Relaxed);
                }
                failed.get_or_insert(error);
            }
        }
    }
    // What was written meanwhile is no concern; what a relocation found changed may still be foreign.
    failed.map_or(Ok(false), Err)
}

/// Bytes of blocks that `view` names in segments of `volumes`.
pub async fn bytes_in(view: &MapView, volumes: &BTreeSet<VolumeId>) -> Result<u64, MapError> {
    mapped_bytes(view, |extent| lies_in(extent, volumes)).await
}

fn lies_in(extent: &Extent, volumes: &BTreeSet<VolumeId>) -> bool {
    extent.location.is_some_and(|location| volumes.contains(&location.segment.volume))
}

fn bytes(extents: &[Extent]) -> u64 {
    extents.iter().map(Extent::bytes).sum()
}
