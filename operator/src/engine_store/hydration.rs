//! How much of a volume still lies in another pool, read from its map.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_engine::ids::{BLOCK_BYTES, VolumeId};
use holdfast_engine::log::{Control, Log, LogError, Record, Sink};
use holdfast_engine::map::{Map, PageSource, StoredMap, live_blocks};
use tokio::time::Instant;

use crate::store::{Hydration, StoreError};

/// Follows a volume's map through a replay.
struct Follow {
    pages: Arc<dyn PageSource>,
    map: Map,
}

#[async_trait]
impl Sink for Follow {
    fn begin(&mut self, root: Option<&StoredMap>) {
        let pages = Arc::clone(&self.pages);
        self.map = match root {
            Some(root) => Map::from_stored(pages, root),
            None => Map::empty(pages),
        };
    }

    async fn effective(&mut self, record: &Record, _control: &Control) -> Result<(), LogError> {
        Ok(self.map.apply(&record.ops).await?)
    }
}

/// Counts the bytes that the head of the log's volume names, and those of them that lie in none of the `foreign`
/// volumes.
pub async fn count(
    log: &Log,
    pages: Arc<dyn PageSource>,
    foreign: &BTreeSet<VolumeId>,
    deadline: Instant,
) -> Result<Hydration, StoreError> {
    let mut follow = Follow { map: Map::empty(Arc::clone(&pages)), pages };
    log.replay(&mut follow, deadline).await?;
    let live = live_blocks(&follow.map.freeze()).await?;
    let own = live.iter().filter(|(segment, _)| !foreign.contains(&segment.volume));
    Ok(Hydration {
        hydrated_bytes: own.map(|(_, blocks)| blocks * BLOCK_BYTES).sum(),
        total_bytes: live.values().map(|blocks| blocks * BLOCK_BYTES).sum(),
    })
}
