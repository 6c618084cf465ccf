//! Copying what a restored volume reads from archives, as long as it is served.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::host::Found;
use holdfast_engine::volume::{Hydrate, Hydration, Volume, VolumeError, hydrate};
use tokio::sync::watch;

use super::Parts;
use crate::handles::VolumeHandle;
use crate::pools::deadline;

/// The pause before it is asked again what there was to copy.
const PAUSE: Duration = Duration::from_secs(5);

impl Parts {
    /// Copies what lies in archives into the volume's own pool from now on, behind the user's back.
    pub(super) fn hydrate(
        &self,
        handle: VolumeHandle,
        writer: &Volume,
        found: Found,
    ) -> watch::Receiver<Hydration> {
        let done = !writer.reads_from(&found.foreign());
        let (progress, hydration) = watch::channel(Hydration { done, ..Hydration::default() });
        if done {
            return hydration;
        }
        let (parts, writer) = (self.clone(), writer.clone());
        tokio::spawn(async move {
            match parts.hydrate_all(&writer, &found, progress).await {
                Ok(()) => tracing::info!(volume = %handle, "the volume needs its archive no longer"),
                Err(error) => tracing::warn!(volume = %handle, %error, "hydration has ended early"),
            }
        });
        hydration
    }

    async fn hydrate_all(
        &self,
        writer: &Volume,
        found: &Found,
        progress: watch::Sender<Hydration>,
    ) -> Result<(), VolumeError> {
        let total_bytes = loop {
            match self.pools.host().restored_bytes(found, deadline()).await {
                Ok(total_bytes) => break total_bytes,
                Err(error) => {
                    writer.check()?;
                    tracing::warn!(volume = %writer.id(), %error, "hydration waits");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        let task = Hydrate { foreign: found.foreign(), total_bytes, pace: Arc::clone(&self.hydration) };
        hydrate(writer.clone(), task, progress).await
    }
}
