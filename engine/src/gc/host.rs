//! Collection by the controller: of volumes that are open nowhere.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Detached, GcError, collect_detached, reclaim};
use crate::buffer::MemoryBuffer;
use crate::control::ControlError;
use crate::host::Host;
use crate::ids::{ObjectId, VolumeId};
use crate::pool::{Pool, layout};
use crate::volume::{Limits, OpenOptions};

/// Bytes that a collecting session buffers: nobody writes in it.
const BUFFER_BYTES: usize = 1 << 20;

impl Host {
    /// Collects the garbage of a volume that is open nowhere; see [`collect_detached`].
    pub async fn collect(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Detached, GcError> {
        let log = self.log(pool, volume, deadline).await?;
        let lineage = self.lineage(pool, volume, deadline).await?;
        let codec = pool.volume_json(volume, deadline).await?.codec;
        let options = OpenOptions {
            grant: ObjectId::NONE,
            endpoint: String::new(),
            buffer: Arc::new(MemoryBuffer::new(BUFFER_BYTES)),
            cache: Arc::clone(&self.cache),
            pages: self.page_source(&log, &lineage),
            lineage,
            limits: Limits { codec, ..limits },
        };
        let collector = format!("collector-{}", ObjectId::random(&*log.env.entropy));
        collect_detached(&log, &collector, options, deadline).await
    }

    /// Removes a deleted volume that nothing needs; see [`reclaim`].
    pub async fn reclaim(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<(), GcError> {
        match self.describe(pool, volume, deadline).await {
            Ok((log, _)) => reclaim(pool, &self.pools, &log, deadline).await,
            Err(ControlError::NoSuchVolume { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes all deleted volumes of a pool that nothing needs; answers how many. What fails is left for the next
    /// time, with a warning.
    pub async fn reclaim_deleted(&self, pool: &Arc<Pool>, deadline: Instant) -> Result<usize, GcError> {
        let mut removed = 0;
        let mut after: Option<VolumeId> = None;
        while let Some(volume) = self.volume_after(pool, after, deadline).await? {
            after = Some(volume);
            let dead = match self.describe(pool, volume, deadline).await {
                Ok((_, control)) => control.dead,
                // Its creation goes on, or whoever repeats it cleans up.
                Err(ControlError::NoSuchVolume { .. }) => false,
                Err(error) => {
                    tracing::warn!(%volume, %error, "cannot tell whether a volume is deleted");
                    false
                }
            };
            if dead {
                match self.reclaim(pool, volume, deadline).await {
                    Ok(()) => removed += 1,
                    Err(GcError::Needed { .. }) => {}
                    Err(error) => tracing::warn!(%volume, %error, "a deleted volume is not removed yet"),
                }
            }
        }
        Ok(removed)
    }

    /// The next volume of which something lies in the pool.
    async fn volume_after(
        &self,
        pool: &Pool,
        after: Option<VolumeId>,
        deadline: Instant,
    ) -> Result<Option<VolumeId>, GcError> {
        let store = pool.store();
        let mut after = after.map(layout::after_volume);
        loop {
            let attempt = || store.list(layout::VOLUMES, after.as_deref(), 1);
            let page = crate::store::retry(pool.env(), deadline, attempt).await?;
            let Some(listed) = page.into_iter().next() else { return Ok(None) };
            match layout::volume_in(&listed.key) {
                Some(volume) => return Ok(Some(volume)),
                None => after = Some(listed.key),
            }
        }
    }
}
