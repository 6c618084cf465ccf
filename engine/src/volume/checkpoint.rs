//! Checkpoints of an open volume: taken beside the commits, one at a time.
//!
//! # Guarantees
//! - A root names only objects that are durable already.
//! - No root passes a snapshot whose map is missing: the snapshot's map is written first, by the session that took the
//!   snapshot or by the one whose replay found it missing.
//! - A checkpoint writes what changed without reading the map. Merging, which reads it, may fail: what cannot be read
//!   stays as it is then. So neither damage nor an archive that is away, of whose map a restored volume's is made, stands
//!   in the way.
//!
//! # Crash behaviour
//! A checkpoint that failed may have put its root, or its put may still land: nobody can tell. So the number is not
//! used again: the next attempt waits a while and then appends a record of its own, which also shows whether the
//! session still owns the volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Limits, Over, random_id};
use crate::codec;
use crate::ids::{ObjectId, RecordNumber, SessionId, SnapshotId, VolumeId};
use crate::log::{Control, Log, LogError, Record, Replayed};
use crate::map::{
    Checkpoint, Compactor, Map, MapError, MapView, Root, SnapshotMap, StoredMap, names_pages_of,
    without_pages_of,
};
use crate::pool::layout;
use crate::store::StoreError;

/// How long a checkpoint tries to reach the store before it is given up; the next one does its work.
const PATIENCE: Duration = Duration::from_secs(120);

/// The pause after a checkpoint that failed, so that one which fails at once does not fill the store with pages.
const PAUSE: Duration = Duration::from_secs(5);

/// How long checkpoints let be what a merge could not read: it tries for minutes to read what an archive does not give, and
/// whoever takes a snapshot waits for it.
const MERGE_PAUSE: Duration = Duration::from_secs(300);

/// A checkpoint that is durable.
#[derive(Debug)]
pub(super) struct Done {
    number: RecordNumber,
    frozen: MapView,
    stored: StoredMap,
    snapshots: BTreeMap<SnapshotId, ObjectId>,
    compactor: Compactor,
    /// Whether all of the map that had to be read for merging was.
    merged: bool,
}

/// When to take checkpoints, and what the collector must know of them.
#[derive(Debug)]
pub(super) struct Checkpointer {
    log: Log,
    session: SessionId,
    limits: Limits,
    /// The newest root that this session has built on or written.
    root: RecordNumber,
    /// The highest number under which this session has begun to put a root.
    tried: RecordNumber,
    /// When to try again, after a failure.
    retry_at: Option<Instant>,
    /// Records that took effect since.
    records: u64,
    /// Snapshots whose maps are not durable.
    snapshots: BTreeMap<SnapshotId, MapView>,
    running: Option<JoinHandle<Result<Done, LogError>>>,
    compactor: Compactor,
    /// When to merge again what could not be read.
    merge_at: Option<Instant>,
    /// The root that the session's replay began with: all later records were seen.
    seen_after: RecordNumber,
    /// Those of the records seen that may never be deleted.
    kept: BTreeSet<RecordNumber>,
}

impl Checkpointer {
    pub(super) fn new(
        log: Log,
        session: SessionId,
        limits: Limits,
        state: &Replayed,
        snapshots: BTreeMap<SnapshotId, MapView>,
    ) -> Self {
        Self {
            log,
            session,
            limits,
            root: state.base,
            tried: state.base,
            retry_at: None,
            // What the next replay would read again.
            records: state.next.0 - state.base.next().0,
            snapshots,
            running: None,
            compactor: Compactor::default(),
            merge_at: None,
            seen_after: state.base,
            kept: state.kept.iter().copied().collect(),
        }
    }

    /// The record up to which a durable root covers the log.
    pub(super) fn covers(&self) -> RecordNumber {
        self.root
    }

    /// The newest root that may be this session's own, or that it has built on. Up to there the log is its own too, so
    /// no later session's root can have a number that low.
    pub(super) fn newest_known(&self) -> RecordNumber {
        self.root.max(self.tried)
    }

    /// When a checkpoint that failed is tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Snapshots whose maps are not durable, as views.
    pub(super) fn unmapped_snapshots(&self) -> impl Iterator<Item = &MapView> {
        self.snapshots.values()
    }

    /// All records after this one were seen by the session.
    pub(super) fn seen_after(&self) -> RecordNumber {
        self.seen_after
    }

    /// Those of the records seen that may never be deleted.
    pub(super) fn kept(&self) -> &BTreeSet<RecordNumber> {
        &self.kept
    }

    pub(super) fn appended(&mut self, record: &Record) {
        self.records += 1;
        self.note_kept(record);
    }

    pub(super) fn stepped_over(&mut self, record: &Record) {
        self.note_kept(record);
    }

    fn note_kept(&mut self, record: &Record) {
        if record.is_kept() {
            self.kept.insert(record.number);
        }
    }

    pub(super) fn snapshot_taken(&mut self, snapshot: SnapshotId, view: MapView) {
        self.snapshots.insert(snapshot, view);
    }

    /// Whether to start a checkpoint now: one is due, or `wanted`, and none is running.
    pub(super) fn is_due(&mut self, map: &Map, next: RecordNumber, wanted: bool) -> bool {
        if self.running.is_some() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        self.retry_at = None;
        let due = wanted
            || !self.snapshots.is_empty()
            || self.records >= self.limits.checkpoint_records
            || map.memory_bytes() >= self.limits.checkpoint_map_bytes;
        due && next.0 - 1 > self.root.0
    }

    /// Whether nothing is to be appended before the running checkpoint has ended: so much of `map` is in memory only that
    /// a replay would take long.
    pub(super) fn holds_appends(&self, map: &Map) -> bool {
        self.running.is_some() && map.memory_bytes() >= self.limits.replay_map_bytes
    }

    /// Whether a root of this session may lie under the number that a checkpoint would have now.
    pub(super) fn was_tried(&self, next: RecordNumber) -> bool {
        next.0 - 1 <= self.tried.0
    }

    /// Starts a checkpoint as of the last record. No block of the head lies in a segment of `hydrated` any more.
    pub(super) fn start(
        &mut self,
        map: &Map,
        control: &Control,
        next: RecordNumber,
        hydrated: &BTreeSet<VolumeId>,
    ) {
        let number = RecordNumber(next.0 - 1);
        self.records = 0;
        self.tried = number;
        let frozen = map.freeze();
        let named = frozen.origins().iter().map(|origin| origin.volume);
        if self.merge_at.is_some_and(|at| Instant::now() >= at) {
            self.merge_at = None;
            self.compactor.retry();
        }
        let work = Work {
            log: self.log.clone(),
            session: self.session,
            number,
            control: control.clone(),
            forget: named.filter(|volume| self.merge_at.is_none() && hydrated.contains(volume)).collect(),
            frozen,
            snapshots: self.snapshots.clone(),
        };
        self.running = Some(tokio::spawn(work.run(self.compactor.clone(), Instant::now() + PATIENCE)));
    }

    /// Waits for the running checkpoint; for ever if none is. May be dropped and called again.
    pub(super) async fn finished(&mut self) -> Result<Done, Arc<LogError>> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let outcome = running.await;
        self.running = None;
        let error = match outcome {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            Err(error) => {
                let key = layout::root(self.log.volume, self.tried);
                StoreError::Unavailable { key, reason: error.to_string() }.into()
            }
        };
        self.retry_at = Some(Instant::now() + PAUSE);
        Err(Arc::new(error))
    }

    /// Puts what a checkpoint has stored in the place of what it was made from.
    pub(super) fn install(&mut self, map: &Map, control: &mut Control, done: Done) -> Result<(), Over> {
        if !map.replace(&done.frozen, &done.stored) {
            return Err(Over::Broken { reason: "a checkpoint does not fit the map it was made from".into() });
        }
        self.root = done.number;
        self.compactor = done.compactor;
        if !done.merged {
            self.merge_at = Some(Instant::now() + MERGE_PAUSE);
        }
        for (snapshot, map) in done.snapshots {
            self.snapshots.remove(&snapshot);
            if let Some(found) = control.snapshots.get_mut(&snapshot) {
                found.map.get_or_insert(map);
            }
        }
        // One that is forgotten needs no map.
        self.snapshots.retain(|snapshot, _| control.snapshots.contains_key(snapshot));
        Ok(())
    }
}

/// Everything that one checkpoint needs.
struct Work {
    log: Log,
    session: SessionId,
    number: RecordNumber,
    control: Control,
    frozen: MapView,
    snapshots: BTreeMap<SnapshotId, MapView>,
    /// Ancestors that the map names, and that it may be written without.
    forget: BTreeSet<VolumeId>,
}

impl Work {
    async fn run(mut self, mut compactor: Compactor, deadline: Instant) -> Result<Done, LogError> {
        let views: Vec<&MapView> = self.snapshots.values().chain([&self.frozen]).collect();
        let written = Checkpoint::write(&views).await?;
        let mut snapshots = BTreeMap::new();
        for (snapshot, view) in &self.snapshots {
            let Some(found) = self.control.snapshots.get_mut(snapshot) else { continue };
            let id = random_id(&self.log.env);
            let map = SnapshotMap {
                volume: self.log.volume,
                id,
                snapshot: *snapshot,
                size_bytes: found.size_bytes,
                map: stored(&written, view)?,
            };
            let body = codec::encode_snapshot_map(self.session, &map, self.log.key.as_ref())?;
            self.log.put_own(&layout::map(self.log.volume, id), &body, deadline).await?;
            found.map = Some(id);
            snapshots.insert(*snapshot, id);
        }
        let mut map = stored(&written, &self.frozen)?;
        let merged = self.merge(&mut compactor, &mut map, Compactor::budget(written.pages())).await;
        if let Err(error) = &merged {
            let volume = self.log.volume;
            tracing::warn!(%volume, %error, "a part of the map is checkpointed as it is: merging it waits");
        }
        let root = Root {
            volume: self.log.volume,
            id: random_id(&self.log.env),
            number: self.number,
            control: self.control,
            map,
        };
        let body = codec::encode_root(self.session, &root, self.log.key.as_ref())?;
        let deadline = Instant::now() + PATIENCE;
        self.log.put_own(&layout::root(root.volume, root.number), &body, deadline).await?;
        match self.log.root(root.number, deadline).await? {
            Some(found) if found.id == root.id => {}
            // Only another session can have been here, so this one is over; its next append will find out.
            Some(_) | None => {
                return Err(LogError::Overtaken { volume: root.volume, number: root.number });
            }
        }
        let (frozen, stored, merged) = (self.frozen, root.map, merged.is_ok());
        Ok(Done { number: root.number, frozen, stored, snapshots, compactor, merged })
    }

    /// Merges runs of `map`, and rids it of ancestors. Where that needs what cannot be read the map stays as it is: no
    /// checkpoint fails for it.
    async fn merge(
        &self,
        compactor: &mut Compactor,
        map: &mut StoredMap,
        budget: usize,
    ) -> Result<(), MapError> {
        if !self.forget.is_empty() {
            compactor.request_full_merge();
        }
        compactor.step(self.frozen.source(), map, budget).await?;
        self.forget_in(map).await
    }

    /// Leaves less in `map` that names the ancestors to be forgotten, and in the end not their names either.
    async fn forget_in(&self, map: &mut StoredMap) -> Result<(), MapError> {
        let (source, forget) = (self.frozen.source(), &self.forget);
        if forget.is_empty() {
            return Ok(());
        }
        if let Some(without) = without_pages_of(source, map, forget).await? {
            let names_more = names_pages_of(source, &without, forget).await?;
            *map = without;
            if names_more {
                return Ok(());
            }
        }
        map.origins.retain(|origin| !forget.contains(&origin.volume));
        Ok(())
    }
}

fn stored(written: &Checkpoint, view: &MapView) -> Result<StoredMap, LogError> {
    // The checkpoint was written from just these views.
    let refused = MapError::Refused { what: "layers that its checkpoint has not written" };
    written.stored(view).ok_or(LogError::Map(refused))
}
