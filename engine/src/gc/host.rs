//! Collection by the controller: of volumes that are open nowhere.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Detached, GcError, collect_detached, reclaim};
use crate::buffer::MemoryBuffer;
use crate::control::ControlError;
use crate::host::Host;
use crate::ids::{ObjectId, VolumeId};
use crate::pool::{Pool, PoolError, layout};
use crate::volume::{Limits, OpenOptions};

/// Who holds the grant: always the same, so that whoever comes after a crash goes on under it.
const COLLECTOR: &str = "collector";
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
        let found = self.find(pool, volume, deadline).await?;
        let lineage = self.lineage(&found, deadline).await?;
        let options = OpenOptions {
            grant: ObjectId::NONE,
            endpoint: String::new(),
            buffer: Arc::new(MemoryBuffer::new(BUFFER_BYTES)),
            cache: Arc::clone(&self.cache),
            pages: self.page_source(&found.log, &lineage),
            lineage,
            limits: Limits { codec: found.json.codec, ..limits },
        };
        collect_detached(&found.log, COLLECTOR, options, deadline).await
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

    /// Does what a volume needs from others than its owner: removes it if it is deleted and nothing needs it; if it
    /// changed since `seen`, which an earlier call has answered, lets go of the ancestors that it names no more, and
    /// collects its garbage unless a node has it. A creation that has not come further since is given up. Answers what it
    /// has seen; none if the volume is gone.
    pub async fn tend(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        seen: Option<ObjectId>,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Option<ObjectId>, GcError> {
        let control = match self.describe(pool, volume, deadline).await {
            Ok((_, control)) => control,
            Err(ControlError::NoSuchVolume { .. }) => {
                return self.tend_unborn(pool, volume, seen, deadline).await;
            }
            Err(error) => return Err(error.into()),
        };
        if control.is_given_up() {
            if seen != Some(control.last) {
                // Whoever gave it up may have died before it removed the pins.
                self.give_up(pool, volume, deadline).await?;
            }
            return Ok(Some(control.last));
        }
        if control.dead {
            if control.snapshots.values().all(|snapshot| snapshot.deleted) {
                self.release_bases(pool, volume, deadline).await?;
            }
            return match self.reclaim(pool, volume, deadline).await {
                Ok(()) => Ok(None),
                Err(GcError::Needed { .. }) => Ok(Some(control.last)),
                Err(error) => Err(error),
            };
        }
        if seen == Some(control.last) {
            return Ok(seen);
        }
        self.release_pins(pool, volume, deadline).await?;
        if self.collect(pool, volume, limits, deadline).await? == Detached::Attached {
            return Ok(Some(control.last));
        }
        Ok(Some(self.describe(pool, volume, deadline).await?.1.last))
    }

    /// Looks after what has no first record: a creation under way or one whose creator died, or the last of a volume that
    /// was being removed. Two looks are longer apart than any creation takes; should one be slower still, it finds that it
    /// was given up.
    async fn tend_unborn(
        &self,
        pool: &Arc<Pool>,
        volume: VolumeId,
        seen: Option<ObjectId>,
        deadline: Instant,
    ) -> Result<Option<ObjectId>, GcError> {
        let log = match self.log(pool, volume, deadline).await {
            // Not even a description: something that was on its way when the volume was removed.
            Err(PoolError::NoSuchVolume { .. }) => return Ok(None),
            log => log?,
        };
        if seen != Some(ObjectId::NONE) {
            return Ok(Some(ObjectId::NONE));
        }
        match reclaim(pool, &self.pools, &log, deadline).await {
            Err(GcError::Needed { .. }) => {
                self.give_up(pool, volume, deadline).await?;
                Ok(Some(ObjectId::NONE))
            }
            outcome => outcome.map(|()| None),
        }
    }

    /// The next volume of which something lies in the pool, also a deleted one.
    pub async fn volume_after(
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
