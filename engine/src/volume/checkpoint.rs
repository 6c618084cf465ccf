//! Checkpoints of an open volume: taken beside the commits, one at a time.
//!
//! # Guarantees
//! - A root names only objects that are durable already.
//! - No root passes a snapshot whose map is missing: the snapshot's map is written first, by the session that took the
//!   snapshot or by the one whose replay found it missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Limits, Over, random_id};
use crate::codec;
use crate::ids::{ObjectId, RecordNumber, SessionId, SnapshotId, VolumeId};
use crate::log::{Control, Log, LogError, Record};
use crate::map::{Access, Checkpoint, Compactor, Map, MapView, Root, RunRef, SnapshotMap, StoredMap};
use crate::pool::layout;
use crate::store::StoreError;

/// How long a checkpoint tries to reach the store before it is given up; the next one does its work.
const PATIENCE: Duration = Duration::from_secs(120);

/// A checkpoint that is durable.
#[derive(Debug)]
pub(super) struct Done {
    number: RecordNumber,
    frozen: MapView,
    stored: StoredMap,
    snapshots: BTreeMap<SnapshotId, ObjectId>,
}

/// When to take checkpoints, and what the collector must know of them.
#[derive(Debug)]
pub(super) struct Checkpointer {
    log: Log,
    session: SessionId,
    limits: Limits,
    /// The newest root that this session has built on or written.
    root: RecordNumber,
    /// Records that took effect since.
    records: u64,
    /// Snapshots whose maps are not durable.
    snapshots: BTreeMap<SnapshotId, MapView>,
    running: Option<JoinHandle<Result<(Done, Compactor), LogError>>>,
    compactor: Compactor,
    /// The root that the session's replay began with: all later records were seen.
    seen_after: RecordNumber,
    /// Those of the records seen that may never be deleted.
    kept: BTreeSet<RecordNumber>,
    /// Whether the newest root names no ancestor.
    pub(super) origins_forgotten: bool,
}

impl Checkpointer {
    pub(super) fn new(
        log: Log,
        session: SessionId,
        limits: Limits,
        root: RecordNumber,
        kept: BTreeSet<RecordNumber>,
        snapshots: BTreeMap<SnapshotId, MapView>,
    ) -> Self {
        let (running, compactor) = (None, Compactor::default());
        Self {
            log,
            session,
            limits,
            root,
            records: 0,
            snapshots,
            running,
            compactor,
            seen_after: root,
            kept,
            origins_forgotten: false,
        }
    }

    /// The record up to which a durable root covers the log.
    pub(super) fn covers(&self) -> RecordNumber {
        self.root
    }

    /// The newest root that this session knows of.
    pub(super) fn newest_known(&self) -> RecordNumber {
        self.root
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

    /// Starts a checkpoint as of the last record if one is due, or `wanted`, and none is running.
    pub(super) fn start_if_due(
        &mut self,
        map: &Map,
        control: &Control,
        next: RecordNumber,
        wanted: bool,
        hydrated: bool,
    ) {
        let number = RecordNumber(next.0 - 1);
        let due = wanted
            || !self.snapshots.is_empty()
            || self.records >= self.limits.checkpoint_records
            || map.memory_bytes() >= self.limits.checkpoint_map_bytes;
        if self.running.is_some() || !due || number <= self.root {
            return;
        }
        self.records = 0;
        let work = Work {
            log: self.log.clone(),
            session: self.session,
            number,
            control: control.clone(),
            frozen: map.freeze(),
            snapshots: self.snapshots.clone(),
            hydrated,
        };
        self.running = Some(tokio::spawn(work.run(self.compactor.clone(), Instant::now() + PATIENCE)));
    }

    /// Waits for the running checkpoint; for ever if none is. May be dropped and called again.
    pub(super) async fn finished(&mut self) -> Result<Done, Arc<LogError>> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let outcome = running.await;
        self.running = None;
        match outcome {
            Ok(Ok((done, compactor))) => {
                self.compactor = compactor;
                Ok(done)
            }
            Ok(Err(error)) => Err(Arc::new(error)),
            Err(error) => {
                let key = layout::root(self.log.volume, self.root);
                Err(Arc::new(StoreError::Unavailable { key, reason: error.to_string() }.into()))
            }
        }
    }

    /// Puts what a checkpoint has stored in the place of what it was made from.
    pub(super) fn install(&mut self, map: &Map, control: &mut Control, done: Done) -> Result<(), Over> {
        if !map.replace(&done.frozen, &done.stored) {
            return Err(Over::Broken { reason: "a checkpoint does not fit the map it was made from".into() });
        }
        self.root = done.number;
        self.origins_forgotten = done.stored.origins.is_empty();
        for (snapshot, map) in done.snapshots {
            self.snapshots.remove(&snapshot);
            if let Some(found) = control.snapshots.get_mut(&snapshot) {
                found.map.get_or_insert(map);
            }
        }
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
    /// Whether the map may be written without its ancestors.
    hydrated: bool,
}

impl Work {
    async fn run(
        mut self,
        mut compactor: Compactor,
        deadline: Instant,
    ) -> Result<(Done, Compactor), LogError> {
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
            put(&self.log, layout::map(self.log.volume, id), body, deadline).await?;
            found.map = Some(id);
            snapshots.insert(*snapshot, id);
        }
        let mut map = stored(&written, &self.frozen)?;
        if self.hydrated {
            compactor.request_full_merge();
        }
        let budget = Compactor::budget(written.pages());
        if let Some(compacted) = compactor.step(self.frozen.source(), &map, budget).await? {
            map = compacted.map;
        }
        if self.hydrated && is_own(&self.frozen, &map, self.log.volume).await? {
            map.origins.clear();
        }
        let root = Root {
            volume: self.log.volume,
            id: random_id(&self.log.env),
            number: self.number,
            control: self.control,
            map,
        };
        let body = codec::encode_root(self.session, &root, self.log.key.as_ref())?;
        put(&self.log, layout::root(root.volume, root.number), body, deadline).await?;
        match self.log.root(root.number, deadline).await? {
            Some(found) if found.id == root.id => {}
            // Only another session can have been here, so this one is over; its next append will find out.
            Some(_) | None => {
                return Err(LogError::Overtaken { volume: root.volume, number: root.number });
            }
        }
        let done = Done { number: root.number, frozen: self.frozen, stored: root.map, snapshots };
        Ok((done, compactor))
    }
}

/// Whether every object that `map` names is the volume's own.
async fn is_own(view: &MapView, map: &StoredMap, volume: VolumeId) -> Result<bool, LogError> {
    for run in &map.runs {
        let own = match run {
            RunRef::Pages(pages) => pages.iter().all(|page| page.volume == volume),
            RunRef::Indexed(indexes) => {
                let mut own = indexes.iter().all(|index| index.volume == volume);
                for index in indexes.iter().take_while(|index| index.volume == volume) {
                    own &= view
                        .source()
                        .index(index, Access::Scan)
                        .await?
                        .iter()
                        .all(|page| page.volume == volume);
                }
                own
            }
        };
        if !own {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts an object that nobody else puts.
async fn put(log: &Log, key: String, body: Bytes, deadline: Instant) -> Result<(), LogError> {
    match log.retry(deadline, || log.store.put_if_absent(&key, body.clone())).await {
        // An earlier attempt whose reply was lost.
        Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn stored(written: &Checkpoint, view: &MapView) -> Result<StoredMap, LogError> {
    // The checkpoint was written from just these views.
    let refused = crate::map::MapError::Refused { what: "layers that its checkpoint has not written" };
    written.stored(view).ok_or(LogError::Map(refused))
}
