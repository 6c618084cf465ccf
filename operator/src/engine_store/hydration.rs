//! How much of a volume still lies in another pool, read from its map.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_engine::ids::VolumeId;
use holdfast_engine::log::{Control, Log, LogError, Record, Sink};
use holdfast_engine::map::{Map, PageSource, StoredMap};
use holdfast_engine::volume::bytes_in;
use tokio::time::Instant;

use crate::store::StoreError;

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

/// Bytes of blocks that the head of the log's volume names in segments of the `foreign` volumes.
pub async fn left_bytes(
    log: &Log,
    pages: Arc<dyn PageSource>,
    foreign: &BTreeSet<VolumeId>,
    deadline: Instant,
) -> Result<u64, StoreError> {
    let mut follow = Follow { map: Map::empty(Arc::clone(&pages)), pages };
    log.replay(&mut follow, deadline).await?;
    Ok(bytes_in(&follow.map.freeze(), foreign).await?)
}
