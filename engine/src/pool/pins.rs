//! Pins: `pins/CLONE.SNAP` below a volume says that a clone needs one of its snapshots.
//!
//! # Guarantees
//! - A pin is there when [`Pool::put_pin`] returns, and says which pool its clone lives in.
//!
//! # Assumptions
//! A removed pin is never put again: a clone's id is random and used once, and whoever gives a clone up has first put
//! an end to its creation in its log.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{LIST_PAGE, Pool, PoolError, layout};
use crate::ids::{ObjectId, PoolId, SnapshotId, VolumeId};

/// The body of a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// The clone.
    pub clone: VolumeId,
    /// The pool it lives in.
    pub clone_pool: PoolId,
    /// The snapshot it needs.
    pub snapshot: SnapshotId,
    nonce: ObjectId,
}

impl Pool {
    /// Pins `snapshot` of `volume`, which lives in this pool, for `clone`, which lives in `clone_pool`.
    pub async fn put_pin(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        clone: VolumeId,
        clone_pool: PoolId,
        deadline: Instant,
    ) -> Result<(), PoolError> {
        let pin = Pin { clone, clone_pool, snapshot, nonce: ObjectId::random(&*self.env.entropy) };
        // Whichever creator of the clone was first, the pin says the same.
        self.create(&layout::pin(volume, clone, snapshot), &pin, deadline).await.map(|_| ())
    }

    /// Who needs which snapshot of `volume`.
    pub async fn pins(
        &self,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<Vec<(VolumeId, SnapshotId)>, PoolError> {
        let prefix = layout::pins(volume);
        let mut pins = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let listed = self.list(&prefix, after.as_deref(), LIST_PAGE, deadline).await?;
            for found in &listed {
                let pin = layout::pin_in(&found.key).ok_or_else(|| PoolError::Malformed {
                    pool: self.name.clone(),
                    key: found.key.clone(),
                    reason: "its key is not that of a pin".into(),
                })?;
                pins.push(pin);
            }
            if listed.len() < LIST_PAGE {
                return Ok(pins);
            }
            after = listed.into_iter().next_back().map(|found| found.key);
        }
    }

    /// The pin of `clone` on `snapshot` of `volume`.
    pub async fn pin(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        clone: VolumeId,
        deadline: Instant,
    ) -> Result<Option<Pin>, PoolError> {
        self.read(&layout::pin(volume, clone, snapshot), deadline).await
    }

    /// Removes the pin of `clone` on `snapshot` of `volume`, if it is there.
    pub async fn remove_pin(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        clone: VolumeId,
        deadline: Instant,
    ) -> Result<(), PoolError> {
        self.delete(&layout::pin(volume, clone, snapshot), deadline).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pool::testing;
    use bytes::Bytes;

    const PARENT: VolumeId = VolumeId([1; 16]);

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[tokio::test]
    async fn pins_are_put_once_listed_and_removed() {
        let pool = testing::pool().await;
        let clones: Vec<VolumeId> = (0..LIST_PAGE + 5)
            .map(|n| {
                let mut id = [9; 16];
                id[..8].copy_from_slice(&(n as u64).to_be_bytes());
                VolumeId(id)
            })
            .collect();
        for clone in &clones {
            pool.put_pin(PARENT, SnapshotId(0x2a), *clone, PoolId([5; 16]), soon()).await.unwrap();
        }
        let first = pool.pin(PARENT, SnapshotId(0x2a), clones[0], soon()).await.unwrap().unwrap();
        assert_eq!(first.clone_pool, PoolId([5; 16]));
        pool.put_pin(PARENT, SnapshotId(0x2a), clones[0], PoolId([5; 16]), soon()).await.unwrap();
        assert_eq!(pool.pin(PARENT, SnapshotId(0x2a), clones[0], soon()).await.unwrap(), Some(first));
        let expected: Vec<_> = clones.iter().map(|clone| (*clone, SnapshotId(0x2a))).collect();
        assert_eq!(pool.pins(PARENT, soon()).await.unwrap(), expected);
        pool.remove_pin(PARENT, SnapshotId(0x2a), clones[0], soon()).await.unwrap();
        pool.remove_pin(PARENT, SnapshotId(0x2a), clones[0], soon()).await.unwrap();
        assert_eq!(pool.pins(PARENT, soon()).await.unwrap(), expected[1..]);
    }

    #[tokio::test]
    async fn what_is_no_pin_stops_whoever_would_delete() {
        let pool = testing::pool().await;
        let stray = format!("{}stray", layout::pins(PARENT));
        pool.store().put_if_absent(&stray, Bytes::new()).await.unwrap();
        assert!(matches!(pool.pins(PARENT, soon()).await, Err(PoolError::Malformed { .. })));
    }
}
