//! What a session can reach at one moment: what the collector must leave alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Request, Volume, VolumeError};
use crate::ids::{ObjectId, RecordNumber};
use crate::log::Control;
use crate::map::MapView;

/// Everything that an open session can reach, between two records.
///
/// An existing object that is named neither here nor by a durable root is never named again, unless a record or a
/// checkpoint that is under way has just put it. So what is missing here is garbage if it was there before an append
/// and a checkpoint that have both begun and completed since.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The control state.
    pub control: Arc<Control>,
    /// The head's map.
    pub head: MapView,
    /// The maps of snapshots that have no durable map yet.
    pub unmapped: Vec<MapView>,
    /// Those of the records after `seen_after` that may never be deleted.
    pub kept: BTreeSet<RecordNumber>,
    /// The session has seen all records after this one.
    pub seen_after: RecordNumber,
    /// Segments of bulk writes that are not committed yet.
    pub uploading: BTreeSet<ObjectId>,
    /// The runs of those bulk writes.
    pub runs: BTreeSet<ObjectId>,
}

impl Volume {
    /// What the session can reach now.
    pub async fn cut(&self) -> Result<Cut, VolumeError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Cut(reply)).await.map_err(|_| self.over())?;
        answer.await.map_err(|_| self.over())
    }
}
