//! After a restart: what a predecessor served is served again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{OpenVolumes, Refused};
use crate::frontend::Saved;
use crate::handles::VolumeHandle;
use crate::mount::freeze;
use crate::node::volumes::Volumes;
use crate::publication::Publication;
use crate::status;

/// The pause before a volume is tried again whose pool cannot be reached.
const PAUSE: Duration = Duration::from_secs(1);

/// The publication as a text that the keeper holds with the stack.
pub(super) fn context(publication: Publication) -> String {
    let context: std::collections::BTreeMap<_, _> = publication.to_context().into_iter().collect();
    serde_json::Value::from_iter(context).to_string()
}

/// The publication that a stack was built under.
pub(super) fn publication(saved: &Saved) -> Option<Publication> {
    let context: HashMap<String, String> = serde_json::from_str(saved.context()).ok()?;
    Publication::parse(&context).ok()
}

impl OpenVolumes {
    /// Serves everything again that a predecessor served, each volume as soon as it can be opened, while `load` opens
    /// the pools: one that is slow holds up the volumes in it, and no others. Returns when each volume has been tried
    /// with all pools that there are by the end of `load`; those that have to wait for their pools go on being tried.
    pub async fn adopt_all(self: &Arc<Self>, load: impl Future<Output = ()>) -> Result<(), Status> {
        let keys = self.parts.front_end.saved_keys().await.map_err(status::stack)?;
        let loaded = CancellationToken::new();
        let tries = keys.into_iter().map(async |key| match VolumeHandle::parse(&key) {
            Some(handle) => {
                self.pending().insert(handle);
                self.adopt_soon(handle, &loaded).await;
            }
            None => {
                tracing::error!(key, "the keeper holds a stack whose name is no volume; it is left alone")
            }
        });
        let loading = async {
            load.await;
            loaded.cancel();
        };
        tokio::join!(loading, futures::future::join_all(tries));
        let devices: Vec<PathBuf> = self.all().iter().map(|volume| volume.stack.loop_path()).collect();
        if let Err(error) = freeze::thaw_leftovers(&devices, &self.parts.offload).await {
            tracing::error!(%error, "a file system may have stayed frozen");
        }
        Ok(())
    }

    /// Tries to serve a volume each time that a pool has been opened, and once more when all are `loaded`; from then on
    /// in the background.
    async fn adopt_soon(self: &Arc<Self>, handle: VolumeHandle, loaded: &CancellationToken) {
        let mut changes = self.parts.pools.changes();
        loop {
            let is_last = loaded.is_cancelled();
            let is_worth_it = is_last || self.parts.pools.pool(handle.pool).is_ok();
            if is_worth_it && self.try_adopt(handle).await {
                return;
            }
            if is_last {
                break;
            }
            tokio::select! {
                () = loaded.cancelled() => {}
                // The sender is there as long as the pools are.
                _ = changes.changed() => {}
            }
        }
        let volumes = Arc::clone(self);
        tokio::spawn(async move {
            while !volumes.try_adopt(handle).await {
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// Whether nothing remains to be tried.
    async fn try_adopt(&self, handle: VolumeHandle) -> bool {
        let saved = match self.parts.front_end.saved(&handle.to_string()).await {
            Ok(Some(saved)) => saved,
            // Unstaged meanwhile.
            Ok(None) => {
                self.pending().remove(&handle);
                return true;
            }
            Err(error) => {
                tracing::warn!(volume = %handle, %error, "cannot look for what a predecessor served");
                return false;
            }
        };
        if self.get(handle).is_some() {
            return true;
        }
        let Some(publication) = publication(&saved) else {
            tracing::error!(volume = %handle, "what a predecessor served has no publication; giving it up");
            return self.give_up(handle).await.is_ok();
        };
        drop(saved);
        match self.attach_or_refuse(handle, publication).await {
            Ok(_) => true,
            // Its I/O must fail now, and must not block unstaging.
            Err(Refused::Lost(status)) => {
                tracing::warn!(volume = %handle, %status, "a volume is not this node's any more; giving it up");
                self.give_up(handle).await.is_ok()
            }
            Err(Refused::Failed(status)) => {
                tracing::warn!(volume = %handle, %status, "a volume cannot be served yet; its I/O waits");
                false
            }
        }
    }
}
