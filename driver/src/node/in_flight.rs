//! One operation at a time on each volume.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

use crate::handles::VolumeHandle;

/// The volumes on which an operation runs.
#[derive(Debug, Clone, Default)]
pub struct InFlight {
    volumes: Arc<Mutex<BTreeSet<VolumeHandle>>>,
}

/// Marks an operation; it ends when this is dropped.
#[derive(Debug)]
pub struct Operation {
    in_flight: InFlight,
    volume: VolumeHandle,
}

impl InFlight {
    /// Begins an operation. `ABORTED` while another one runs, as CSI asks; the kubelet tries again.
    pub fn begin(&self, volume: VolumeHandle) -> Result<Operation, Status> {
        if self.lock().insert(volume) {
            Ok(Operation { in_flight: self.clone(), volume })
        } else {
            Err(Status::aborted(format!("another operation on volume {volume} is still running")))
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<VolumeHandle>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.in_flight.lock().remove(&self.volume);
    }
}
