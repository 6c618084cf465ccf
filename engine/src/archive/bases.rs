//! Letting go of a deleted volume.
//!
//! An archive pins the snapshot that its newest point is a copy of, so that the next run can take the difference to it.
//! A deleted volume has no next run, and an archive reads nothing of its source, so such a pin keeps nothing that
//! anybody needs. Neither does the pin of a clone whose creation was given up, which a slow creator may have put after
//! whoever gave it up had removed the others: it can never come to exist.
//!
//! # Guarantees
//! Only pins of volumes that do not descend from the deleted one, or never will exist, are removed.
//!
//! # Crash behaviour
//! Every step can be repeated.

use tokio::time::Instant;

use crate::control::ControlError;
use crate::host::Host;
use crate::ids::VolumeId;
use crate::pool::{Pool, PoolError};

impl Host {
    /// Removes the pins that archives, and creations that were given up, hold on the deleted volume. One whose owner
    /// lies in a pool that is not loaded here stays.
    pub(crate) async fn release_bases(
        &self,
        pool: &Pool,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        for (holder, snapshot) in pool.pins(volume, deadline).await? {
            let Some(pin) = pool.pin(volume, snapshot, holder, deadline).await? else { continue };
            let Some(home) = self.pools.get(pin.clone_pool) else { continue };
            let description = match home.volume_json(holder, deadline).await {
                Ok(description) => description,
                // Whoever gives a clone up removes its pins.
                Err(PoolError::NoSuchVolume { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let descends = description.parents.iter().any(|parent| parent.volume == volume);
            if !descends || self.is_given_up(&home, holder, deadline).await? {
                pool.remove_pin(volume, snapshot, holder, deadline).await?;
            }
        }
        Ok(())
    }

    /// Whether record 1 says that the volume will never exist.
    async fn is_given_up(
        &self,
        home: &Pool,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<bool, ControlError> {
        match self.describe(home, volume, deadline).await {
            Ok((_, control)) => Ok(control.is_given_up()),
            Err(ControlError::NoSuchVolume { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
