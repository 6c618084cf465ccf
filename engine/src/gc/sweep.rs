//! Deleting what nothing needs.
//!
//! # Guarantees
//! An object is deleted only if
//! - two sweeps of this session have found it unneeded, the earlier at least [`crate::volume::Limits::grace`] before
//!   the later by the store's own clock;
//! - before the later sweep looked, this session had put a root that does not reach it, and then begun and completed
//!   another append, so that it still owned the volume: whoever opens the volume later builds on that root or a newer;
//! - between the two looks an append and a checkpoint have begun and completed, so that whatever had put the object
//!   and not named it yet has either named it or ended;
//! - its writer may commit no more: it is this session, an earlier one, or a run that has ended. For a run that nobody
//!   has ended the sweeper does so first, and deletes in a later sweep.
//!
//! What the map of a pinned snapshot reaches is needed, in every generation of it that is still there: the pins were
//! listed after the record that switched to the present one.
//!
//! The two newest roots stay, and so do Grant, Revoke, Open, Close and Maintain records, also inert ones, and all
//! records that the older of the two roots does not cover.
//!
//! # Assumptions
//! Who resumes an archive run begins its bulk write before the collector runs in the same session.
//!
//! # Crash behaviour
//! A crash leaves the rest of the garbage, and forgets which of it was found: the next session begins to count anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;

use super::differences::Differences;
use super::history::History;
use super::mark::{Mark, Needed};
use super::{GcError, pins};
use crate::codec::{ENVELOPE_BYTES, Envelope, ObjectKind, ObjectName};
use crate::ids::{GrantId, ObjectId, RecordNumber, SessionId, SnapshotId, VolumeId};
use crate::log::{Log, Op};
use crate::map::MapError;
use crate::pool::layout;
use crate::store::{Listed, StoreError};
use crate::volume::{Cut, Volume};

/// How long one sweep may take.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Objects remembered as garbage at most; more are found when these are gone.
const GARBAGE_MAX: usize = 1 << 18;
/// Names asked for in one listing.
const LIST_PAGE: usize = 1000;
/// Objects looked at or deleted at once.
const PARALLEL: usize = 16;
/// Runs ended in one record.
const RUNS_MAX: usize = 256;

/// An object that may be garbage. In the order of deletion: nothing that a root names goes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Root(RecordNumber),
    Record(RecordNumber),
    Fence(GrantId),
    Map(ObjectId),
    Segment(ObjectId),
}

impl Object {
    fn key(self, volume: VolumeId) -> String {
        match self {
            Self::Root(number) => layout::root(volume, number),
            Self::Record(number) => layout::record(volume, number),
            Self::Fence(grant) => layout::fence(volume, grant),
            Self::Map(id) => layout::map(volume, id),
            Self::Segment(id) => layout::segment(volume, id),
        }
    }

    fn map(self) -> Option<ObjectId> {
        match self {
            Self::Map(id) => Some(id),
            Self::Root(_) | Self::Record(_) | Self::Fence(_) | Self::Segment(_) => None,
        }
    }

    /// Whether it takes room worth coming back for.
    fn is_large(self) -> bool {
        matches!(self, Self::Map(_) | Self::Segment(_))
    }
}

/// What a sweep has found and done.
#[derive(Debug)]
pub(super) struct Swept {
    pub cut: Cut,
    pub needed: Needed,
    /// The older of the two newest roots.
    pub covered: RecordNumber,
    /// The newest root.
    pub newest: RecordNumber,
    pub deleted: u64,
    /// Garbage that is worth another sweep.
    pub left: u64,
}

/// Sweeps the volume of one session, again and again.
#[derive(Debug)]
pub(super) struct Sweeper {
    volume: Volume,
    /// What was found unneeded, and when first, in milliseconds of the store's clock.
    garbage: BTreeMap<Object, u64>,
    history: History,
    /// Map objects that nothing names, and the snapshot whose map each is, if any.
    unnamed: BTreeMap<ObjectId, Option<SnapshotId>>,
}

/// What a look into the store has shown.
struct Look {
    garbage: BTreeSet<Object>,
    /// Records without live data.
    idle: Vec<RecordNumber>,
}

impl Sweeper {
    pub fn new(volume: Volume) -> Self {
        Self { volume, garbage: BTreeMap::new(), history: History::default(), unnamed: BTreeMap::new() }
    }

    fn log(&self) -> &Log {
        self.volume.log()
    }

    /// One sweep.
    pub async fn sweep(&mut self, differences: &mut Differences) -> Result<Swept, GcError> {
        differences.begin_round();
        let deadline = Instant::now() + PATIENCE;
        let pinned = pins::forget_snapshots(&self.volume, deadline).await?;
        self.volume.append(vec![Op::Noop], true).await?;
        self.volume.append(vec![Op::Noop], false).await?;
        let cut = self.volume.cut().await?;
        let roots = self.log().roots(deadline).await?;
        let Some((newest, listed)) = roots.last() else {
            return Err(GcError::Overtaken { volume: self.volume.id() });
        };
        let (newest, now_ms) = (*newest, listed.modified_ms);
        let stay: Vec<RecordNumber> = roots.iter().rev().take(2).map(|(number, _)| *number).collect();
        let covered = stay.get(1).copied().unwrap_or_default();
        let log = self.volume.log().clone();
        let mut mark = Mark::of(&log, &cut, &stay, &pinned, differences, deadline).await?;

        let mut look = self.look(&cut, &mut mark.needed, covered, deadline).await?;
        for map in self.generations(&look, &pinned, deadline).await? {
            mark.generation(map).await?;
        }
        let needed = mark.needed;
        look.garbage.retain(|object| match object {
            Object::Map(id) => !needed.map_objects.contains(id),
            Object::Segment(id) => !needed.segment(*id),
            Object::Root(_) | Object::Record(_) | Object::Fence(_) => true,
        });
        look.idle.retain(|number| !needed.records.contains_key(number));
        look.garbage.extend(roots.iter().rev().skip(2).map(|(number, _)| Object::Root(*number)));
        self.history.learn(&log, &cut, &look.idle, deadline).await?;
        let goes = |number: &&RecordNumber| **number <= covered && self.history.may_go(&cut, **number);
        look.garbage.extend(look.idle.iter().filter(goes).map(|number| Object::Record(*number)));

        let ripe = self.note(look.garbage, now_ms);
        let deleted = self.delete(&cut, ripe, deadline).await?;
        let left = self.garbage.keys().filter(|object| object.is_large()).count() as u64;
        Ok(Swept { cut, needed, covered, newest, deleted, left })
    }

    /// The maps of pinned snapshots besides their present ones, of those that nothing names: the generations before, and
    /// what the root of an earlier session has shown that landed when the next one had opened and wrote a map of its own.
    async fn generations(
        &mut self,
        look: &Look,
        pinned: &BTreeSet<SnapshotId>,
        deadline: Instant,
    ) -> Result<Vec<ObjectId>, GcError> {
        if pinned.is_empty() {
            return Ok(Vec::new());
        }
        let unnamed: BTreeSet<ObjectId> = look.garbage.iter().filter_map(|object| object.map()).collect();
        self.unnamed.retain(|id, _| unnamed.contains(id));
        let unknown: Vec<ObjectId> =
            unnamed.iter().copied().filter(|id| !self.unnamed.contains_key(id)).collect();
        for batch in unknown.chunks(PARALLEL) {
            let looks: Vec<_> = batch.iter().map(|id| self.snapshot_of(*id, deadline)).collect();
            let found = try_join_all(looks).await?;
            self.unnamed.extend(batch.iter().copied().zip(found));
        }
        let of_pinned =
            |(id, of): (&ObjectId, &Option<SnapshotId>)| of.filter(|of| pinned.contains(of)).map(|_| *id);
        Ok(self.unnamed.iter().filter_map(of_pinned).collect())
    }

    /// The snapshot whose map the object is; none if it is a page or an index, or gone.
    async fn snapshot_of(&self, id: ObjectId, deadline: Instant) -> Result<Option<SnapshotId>, GcError> {
        let (volume, log) = (self.volume.id(), self.log());
        let key = layout::map(volume, id);
        let begin = match log.retry(deadline, || log.store.get_range(&key, 0..ENVELOPE_BYTES as u64)).await {
            Ok(begin) => begin,
            Err(StoreError::NotFound { .. } | StoreError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let name = ObjectName::ById { kind: ObjectKind::SnapshotMap, volume, id };
        if Envelope::decode(name, &begin).is_err() {
            return Ok(None);
        }
        match crate::snapshot::read_map(log, id, deadline).await.map_err(GcError::from_log) {
            Ok(map) => Ok(Some(map.snapshot)),
            Err(GcError::Map(MapError::Store(StoreError::NotFound { .. }))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists what there is, and tells garbage from what is needed.
    async fn look(
        &self,
        cut: &Cut,
        needed: &mut Needed,
        covered: RecordNumber,
        deadline: Instant,
    ) -> Result<Look, GcError> {
        let volume = self.volume.id();
        let mut garbage = BTreeSet::new();
        let mut idle = Vec::new();
        self.list(&layout::segments(volume), deadline, |listed| {
            let Some(id) = layout::object_id_in(&listed.key) else { return };
            if needed.segment(id) {
                needed.note_size(id, listed.size_bytes);
            } else if !cut.uploading.contains(&id) {
                garbage.insert(Object::Segment(id));
            }
        })
        .await?;
        self.list(&layout::maps(volume), deadline, |listed| {
            let Some(id) = layout::object_id_in(&listed.key) else { return };
            if needed.present_maps.contains(&id) {
                needed.map_bytes += listed.size_bytes;
            } else if !needed.map_objects.contains(&id) {
                garbage.insert(Object::Map(id));
            }
        })
        .await?;
        self.list(&layout::records(volume), deadline, |listed| {
            let Some(number) = layout::number_in(&listed.key) else { return };
            match needed.records.get(&number).copied() {
                Some(id) => needed.note_size(id, listed.size_bytes),
                None if number <= covered.max(cut.seen_after) || cut.kept.contains(&number) => {
                    idle.push(number)
                }
                None => {}
            }
        })
        .await?;
        let in_force: BTreeSet<GrantId> = {
            let control = &cut.control;
            let readers = control.readers.iter().map(|reader| reader.id);
            readers.chain(control.grant.iter().map(|grant| grant.id)).collect()
        };
        self.list(&layout::fences(volume), deadline, |listed| {
            let revoked = |grant: &GrantId| !in_force.contains(grant);
            garbage.extend(layout::object_id_in(&listed.key).filter(revoked).map(Object::Fence));
        })
        .await?;
        Ok(Look { garbage, idle })
    }

    /// Shows `each` everything below `prefix`, a page at a time.
    async fn list(
        &self,
        prefix: &str,
        deadline: Instant,
        mut each: impl FnMut(&Listed),
    ) -> Result<(), GcError> {
        let log = self.log();
        let mut after: Option<String> = None;
        loop {
            let page = log.retry(deadline, || log.store.list(prefix, after.as_deref(), LIST_PAGE)).await?;
            page.iter().for_each(&mut each);
            if page.len() < LIST_PAGE {
                return Ok(());
            }
            after = page.into_iter().next_back().map(|listed| listed.key);
        }
    }

    /// Remembers what was found; returns what was found long enough ago.
    fn note(&mut self, found: BTreeSet<Object>, now_ms: u64) -> Vec<Object> {
        let grace_ms = self.volume.limits().grace.as_millis() as u64;
        let before = std::mem::take(&mut self.garbage);
        let mut ripe = Vec::new();
        for object in found {
            let since = before.get(&object).copied();
            if since.is_some_and(|since| since + grace_ms <= now_ms) {
                ripe.push(object);
            }
            if since.is_some() || self.garbage.len() < GARBAGE_MAX {
                self.garbage.insert(object, since.unwrap_or(now_ms));
            }
        }
        ripe
    }

    async fn delete(&mut self, cut: &Cut, ripe: Vec<Object>, deadline: Instant) -> Result<u64, GcError> {
        let mut deleted = 0;
        let mut unended = BTreeSet::new();
        for batch in ripe.chunks(PARALLEL) {
            self.volume.check()?;
            let looks: Vec<_> = batch.iter().map(|object| self.verdict(cut, *object, deadline)).collect();
            let mut going = Vec::new();
            for (object, verdict) in batch.iter().zip(try_join_all(looks).await?) {
                match verdict {
                    Verdict::Goes => going.push(*object),
                    Verdict::Stays => {}
                    Verdict::Unended(run) => {
                        unended.insert(run);
                    }
                }
            }
            let deletes: Vec<_> = going.iter().map(|object| self.delete_object(*object, deadline)).collect();
            try_join_all(deletes).await?;
            for object in going {
                self.garbage.remove(&object);
                deleted += 1;
            }
        }
        let ops: Vec<Op> = unended.into_iter().take(RUNS_MAX).map(|run| Op::RunEnded { run }).collect();
        if !ops.is_empty() {
            self.volume.append(ops, false).await?;
        }
        Ok(deleted)
    }

    async fn delete_object(&self, object: Object, deadline: Instant) -> Result<(), GcError> {
        let (log, key) = (self.log(), object.key(self.volume.id()));
        Ok(log.retry(deadline, || log.store.delete(&key)).await?)
    }

    /// Whether the object's writer may still come to name it.
    async fn verdict(&self, cut: &Cut, object: Object, deadline: Instant) -> Result<Verdict, GcError> {
        let Object::Segment(id) = object else { return Ok(Verdict::Goes) };
        let Some(writer) = self.writer(id, deadline).await? else { return Ok(Verdict::Stays) };
        if writer == self.volume.session() || cut.control.ended_runs.contains(&writer) {
            return Ok(Verdict::Goes);
        }
        Ok(match self.history.opened(writer) {
            // Another session than this one: over, since this one is open.
            Some(true) => Verdict::Goes,
            Some(false) if !cut.runs.contains(&writer) => Verdict::Unended(writer),
            Some(false) | None => Verdict::Stays,
        })
    }

    /// The session or run that wrote a segment; none if that cannot be told.
    async fn writer(&self, id: ObjectId, deadline: Instant) -> Result<Option<SessionId>, GcError> {
        let volume = self.volume.id();
        let key = layout::segment(volume, id);
        let log = self.log();
        let begin = match log.retry(deadline, || log.store.get_range(&key, 0..ENVELOPE_BYTES as u64)).await {
            Ok(begin) => begin,
            Err(StoreError::NotFound { .. } | StoreError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let name = ObjectName::ById { kind: ObjectKind::Segment, volume, id };
        match Envelope::decode(name, &begin) {
            Ok(envelope) => Ok(Some(envelope.identity.session)),
            Err(error) => {
                tracing::warn!(%volume, segment = %id, %error, "a damaged segment that nothing needs is left");
                Ok(None)
            }
        }
    }
}

/// What becomes of an object that nothing needs.
#[derive(Debug)]
enum Verdict {
    Goes,
    Stays,
    /// It goes once this run has ended.
    Unended(ObjectId),
}
