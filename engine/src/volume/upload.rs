//! Putting closed layers into segments, several at a time, while newer writes gather and records are on their way.
//!
//! # Guarantees
//! A segment is protected from the collector from before its put until a record names it.
//!
//! # Crash behaviour
//! Segments that no record names yet are garbage of this session; the dirty buffer still has what is in them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use super::batch::{self, Batch};
use super::overlay::Overlay;
use super::{Limits, Over, Shared};
use crate::pool::layout;
use crate::store::{Backoff, StoreError};

/// Layers that are compressed, sealed and put at once, for one volume. Each takes a segment's memory, and as much again
/// where its data compress.
pub(super) const UPLOADS: usize = 8;

/// Memory of segments that have landed, for those that follow.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn memory(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for a segment, or none.
    pub(super) fn take(&self) -> Vec<u8> {
        self.memory().pop().unwrap_or_default()
    }

    /// Keeps the memory of `body`, unless the store's client still holds it.
    fn keep(&self, body: Bytes) {
        let mut memory = self.memory();
        if let Ok(mut bytes) = body.try_into_mut()
            && memory.len() < UPLOADS
        {
            // Or what is left would be moved to the front.
            bytes.clear();
            memory.push(bytes.into());
        }
    }

    /// Gives all of it back to the system.
    pub(super) fn clear(&self) {
        self.memory().clear();
    }
}

/// Ends the session if the upload panics: nobody would wait for it to any purpose.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Over::Broken { reason: "a task that uploads its writes has failed".into() });
        }
    }
}

impl Shared {
    /// Begins to upload the layers that are closed.
    pub(super) fn begin_uploads(self: &Arc<Self>) {
        let closed = self.unlogged().begin_uploads();
        for (last, overlay) in closed {
            tokio::spawn(upload(Ending(Arc::clone(self)), last, overlay));
        }
    }

    /// Puts the data of `overlay` into segments.
    async fn store(&self, overlay: &Overlay) -> Result<Batch, Over> {
        let limits = Limits { inline_bytes: 0, ..self.limits.clone() };
        let batch = batch::encode(overlay, self.session, &limits, &self.log, &self.spare).await;
        let mut batch = batch.map_err(|reason| Over::Broken { reason: reason.to_string() })?;
        self.ownership().uploading.extend(batch.segments.iter().map(|segment| segment.id));
        let uploads = batch.segments.iter().map(|segment| {
            let key = layout::segment(self.id, segment.id);
            self.put_object(key, segment.body.clone())
        });
        futures::future::try_join_all(uploads).await?;
        for segment in &mut batch.segments {
            self.spare.keep(std::mem::take(&mut segment.body));
        }
        Ok(batch)
    }

    /// Puts an object with a random id, as often as it takes.
    async fn put_object(&self, key: String, body: Bytes) -> Result<(), Over> {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            match self.log.store.put_if_absent(&key, body.clone()).await {
                // The id is random, so what is there is ours: an earlier attempt whose reply was lost.
                Ok(()) | Err(StoreError::AlreadyExists { .. }) => return Ok(()),
                Err(error) => self.board.failed(begun, Arc::new(error.into())),
            }
            self.pause(&mut backoff).await?;
        }
    }

    /// A pause that the end of the session cuts short.
    pub(super) async fn pause(&self, backoff: &mut Backoff) -> Result<(), Over> {
        tokio::select! {
            biased;
            over = self.board.wait_over() => Err(over),
            () = backoff.pause(&self.log.env) => Ok(()),
        }
    }
}

async fn upload(ending: Ending, last: u64, overlay: Arc<Overlay>) {
    let shared = &ending.0;
    let stored = async {
        // Never closed.
        let _permit = shared.uploads.acquire().await;
        shared.store(&overlay).await
    };
    tokio::select! {
        biased;
        _ = shared.board.wait_over() => {}
        stored = stored => match stored {
            Ok(batch) => {
                shared.unlogged().uploaded(last, batch);
                shared.bell.notify_one();
            }
            Err(over) => shared.end(over),
        }
    }
}
