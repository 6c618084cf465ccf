//! Reading a snapshot: of a volume that is open elsewhere, or nowhere.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::cache::ChunkCache;
use crate::codec;
use crate::ids::{ObjectId, SnapshotId, VolumeId};
use crate::lineage::Lineage;
use crate::log::{ControlOnly, Inert, Log, LogError, Snapshot};
use crate::map::{MapView, PageSource, SnapshotMap};
use crate::pool::layout;
use crate::store::StoreError;
use crate::volume::{BlockReader, Fetcher, Present};

/// Why a snapshot could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Its map is not written yet: the session that took it has died, and the next one writes it.
    #[error(
        "snapshot {snapshot} of volume {volume} is not complete yet; it will be when the volume is opened next"
    )]
    Incomplete {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The log failed, or there is no such snapshot.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What is known of a snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotState {
    /// The volume's record of it.
    pub snapshot: Snapshot,
    /// Its map.
    pub map: SnapshotMap,
}

/// Looks a snapshot up. One that is deleted but pinned is found too.
pub async fn find(
    log: &Log,
    snapshot: SnapshotId,
    deadline: Instant,
) -> Result<SnapshotState, SnapshotError> {
    let mut looked_for = None;
    loop {
        let control = log.replay(&mut ControlOnly, deadline).await?.control;
        let missing = LogError::Illegal { volume: log.volume, reason: Inert::NoSuchSnapshot { snapshot } };
        let found = control.snapshots.get(&snapshot).ok_or(missing)?;
        let id = found.map.ok_or(SnapshotError::Incomplete { volume: log.volume, snapshot })?;
        match read_map(log, id, deadline).await {
            // It was rewritten, or the snapshot forgotten, since the replay. What the next one names too is lost.
            Err(LogError::Store(StoreError::NotFound { .. })) if looked_for != Some(id) => {
                looked_for = Some(id);
            }
            map => return Ok(SnapshotState { snapshot: found.clone(), map: map? }),
        }
    }
}

/// Reads a snapshot's map object.
pub async fn read_map(log: &Log, id: ObjectId, deadline: Instant) -> Result<SnapshotMap, LogError> {
    let key = layout::map(log.volume, id);
    let bytes = log.retry(deadline, || log.store.get(&key)).await?;
    Ok(codec::decode_snapshot_map(&bytes, log.volume, id, log.key.as_ref())?)
}

/// A reader of the snapshot's blocks.
pub async fn reader(
    log: &Log,
    snapshot: SnapshotId,
    pages: Arc<dyn PageSource>,
    lineage: Lineage,
    cache: Arc<dyn ChunkCache>,
    deadline: Instant,
) -> Result<BlockReader, SnapshotError> {
    let state = find(log, snapshot, deadline).await?;
    let view = MapView::from_stored(Arc::clone(&pages), &state.map.map);
    let fetcher = Fetcher::new(lineage, cache, log.env.clone());
    let present = Arc::new(PresentMap { log: log.clone(), snapshot, pages });
    Ok(BlockReader::of_snapshot(log.volume, view, fetcher, present))
}

/// How long a reader looks for the present map of a snapshot whose old one is gone.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a snapshot's present map is found.
#[derive(Debug)]
struct PresentMap {
    log: Log,
    snapshot: SnapshotId,
    pages: Arc<dyn PageSource>,
}

#[async_trait]
impl Present for PresentMap {
    async fn map(&self) -> Option<MapView> {
        match find(&self.log, self.snapshot, Instant::now() + PATIENCE).await {
            Ok(state) => Some(MapView::from_stored(Arc::clone(&self.pages), &state.map.map)),
            Err(error) => {
                tracing::warn!(volume = %self.log.volume, snapshot = %self.snapshot, %error, "a snapshot is gone");
                None
            }
        }
    }
}
