//! A volume that is published read-only, as a block device.
//!
//! # Guarantees
//! - It shows the volume as it was when it was opened: while a node may read, no other may write.
//! - A segment that a collector has moved meanwhile is found again in the log.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId};
use holdfast_engine::log::{Control, Log, LogError, Record, Sink};
use holdfast_engine::map::{Map, PageSource, StoredMap};
use holdfast_engine::volume::{
    Away, BlockReader, Blocks, FetchError, Fetcher, OpenError, Outage, VolumeError, cut,
};
use tokio::sync::RwLock;
use tokio::time::Instant;

use crate::frontend::{BlockDevice, DeviceError};

/// How long a replay may take when a segment was moved.
const REPLAY_LIMIT: Duration = Duration::from_secs(60);

/// A read-only volume.
#[derive(Debug)]
pub struct ReadOnlyVolume {
    log: Log,
    pages: Arc<dyn PageSource>,
    fetcher: Fetcher,
    size_bytes: u64,
    reader: RwLock<BlockReader>,
    reads: Outage<VolumeError>,
}

/// Follows the map through a replay.
#[derive(Debug)]
struct MapSink {
    pages: Arc<dyn PageSource>,
    map: Map,
}

#[async_trait]
impl Sink for MapSink {
    fn begin(&mut self, root: Option<&StoredMap>) {
        let pages = Arc::clone(&self.pages);
        self.map = match root {
            Some(stored) => Map::from_stored(pages, stored),
            None => Map::empty(pages),
        };
    }

    async fn effective(&mut self, record: &Record, _: &Control) -> Result<(), LogError> {
        Ok(self.map.apply(&record.ops).await?)
    }
}

impl ReadOnlyVolume {
    /// Opens the volume of `log` under `grant`. Its reads wait for a store that is away at most `outage`.
    pub async fn open(
        log: Log,
        grant: GrantId,
        (pages, fetcher): (Arc<dyn PageSource>, Fetcher),
        outage: Duration,
        deadline: Instant,
    ) -> Result<Self, OpenError> {
        let (control, map) = replay(&log, &pages, deadline).await?;
        if !control.readers.iter().any(|reader| reader.id == grant) {
            return Err(OpenError::NotGranted { volume: log.volume });
        }
        fetcher.lineage().reaches(&map.origins())?;
        let reader = RwLock::new(BlockReader::new(log.volume, Blocks::Head(map), fetcher.clone()));
        let reads = Outage::new(log.volume, "reads", outage);
        Ok(Self { log, pages, fetcher, size_bytes: control.size_bytes, reader, reads })
    }

    /// The outage of the store, if it is away.
    pub fn away(&self) -> Option<Away<VolumeError>> {
        self.reads.away()
    }

    async fn read_blocks(&self, from: u64, to: u64) -> Result<Vec<Bytes>, VolumeError> {
        let reader = self.reader.read().await.clone();
        let failed = self.reads.read(&reader, (from, to), &self.log.env).await;
        let Err(VolumeError::Read { reason: FetchError::Gone { .. }, .. }) = failed else { return failed };
        let mut reader = self.reader.write().await;
        let (_, map) = replay(&self.log, &self.pages, Instant::now() + REPLAY_LIMIT)
            .await
            .map_err(|reason| VolumeError::Log { volume: self.log.volume, reason: Arc::new(reason) })?;
        *reader = BlockReader::new(self.log.volume, Blocks::Head(map), self.fetcher.clone());
        self.reads.read(&reader, (from, to), &self.log.env).await
    }
}

async fn replay(
    log: &Log,
    pages: &Arc<dyn PageSource>,
    deadline: Instant,
) -> Result<(Control, Arc<Map>), LogError> {
    let mut sink = MapSink { pages: Arc::clone(pages), map: Map::empty(Arc::clone(pages)) };
    let control = log.replay(&mut sink, deadline).await?.control;
    Ok((control, Arc::new(sink.map)))
}

fn read_only() -> DeviceError {
    DeviceError::Io("the volume is published read-only".into())
}

#[async_trait]
impl BlockDevice for ReadOnlyVolume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Bytes>, DeviceError> {
        let end = offset + u64::from(len);
        let (from, to) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        Ok(cut(self.read_blocks(from, to).await?, offset, u64::from(len)))
    }

    async fn write(&self, _: u64, _: &[u8]) -> Result<(), DeviceError> {
        Err(read_only())
    }

    async fn discard(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Err(read_only())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
