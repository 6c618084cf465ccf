//! An archive run: one snapshot into a target.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::resume::{self, Covered};
use super::{ArchiveError, PointMeta, PointSource};
use crate::codec::Codec;
use crate::control::{ControlError, CreateVolume, Maintenance};
use crate::host::Host;
use crate::ids::{BLOCK_BYTES, Handle, SnapshotId, VolumeId};
use crate::log::{Control, GrantMode, Log, Op};
use crate::map::{Diff, Extent, MapView};
use crate::pool::Pool;
use crate::volume::{BlockReader, Blocks, Bulk};

/// Bytes read from the source at once.
const STEP_BYTES: u64 = 4 << 20;
/// How long one decision about a log may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a run is to do.
#[derive(Debug, Clone)]
pub struct ArchiveRun {
    /// The snapshot to copy.
    pub source: Handle,
    /// The name of the point. A run under the name of a point that exists does nothing.
    pub point: String,
    /// Where the volume comes from, for whoever finds the point.
    pub origin: PointSource,
    /// The time of the snapshot's contents, RFC 3339.
    pub point_in_time: String,
    /// When the point may be removed, RFC 3339.
    pub expires_at: Option<String>,
    /// Bytes per second at most; 0: no limit.
    pub bytes_per_second: u64,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of blocks that differ from the point before, as far as they are known.
    pub changed_bytes: u64,
    /// Bytes uploaded: what was changed, compressed and encrypted.
    pub transferred_bytes: u64,
    /// Bytes of the source's address range looked at.
    pub scanned_bytes: u64,
    /// Bytes of the source's address range.
    pub total_bytes: u64,
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Copies a snapshot into `target`, and answers the handle of the point. Repeating a run that is done finds its point.
pub async fn archive(
    host: &Host,
    target: &Arc<Pool>,
    run: &ArchiveRun,
    progress: &watch::Sender<Progress>,
) -> Result<Handle, ArchiveError> {
    let snapshot = run.source.snapshot.ok_or(ArchiveError::NoSnapshot { handle: run.source })?;
    let source_pool =
        host.pools.get(run.source.pool).ok_or(ArchiveError::UnknownPool { handle: run.source })?;
    let reader = host.snapshot_reader(&source_pool, run.source.volume, snapshot, deadline()).await?;
    let (_, source) = host.describe(&source_pool, run.source.volume, deadline()).await?;
    let size_bytes = source.live_snapshot(snapshot).map_or(0, |found| found.size_bytes);
    if size_bytes == 0 {
        return Err(ArchiveError::NoSnapshot { handle: run.source });
    }
    let new = CreateVolume {
        name: archive_name(run.source.volume),
        size_bytes,
        source: None,
        codec: Codec::Zstd,
        parameters: BTreeMap::new(),
    };
    let volume = host.create_volume(target, &new, deadline()).await?;
    let handle = |snapshot| Handle { pool: target.id(), volume, snapshot: Some(snapshot) };
    let begun_ms = target.snapshot_name_put_at(&run.point, deadline()).await?;
    host.name_snapshot(target, volume, &run.point, deadline()).await?;
    // Pinned before it is read, and as long as it is the newest point's source.
    source_pool.put_pin(run.source.volume, snapshot, volume, target.id(), deadline()).await?;

    let (log, control) = host.describe(target, volume, deadline()).await?;
    if let Some((point, found)) = control.snapshot_named(&run.point)
        && found.map.is_some()
    {
        unpin_older(&source_pool, run.source.volume, volume, &control).await?;
        return Ok(handle(point));
    }
    let session = take_over(host, target, &log, &control).await?;
    let outcome =
        copy(host, &source_pool, &session, run, begun_ms, snapshot, &reader, size_bytes, progress).await;
    let point = match outcome {
        Ok(point) => point,
        Err(error) => {
            session.volume.abandon();
            session.end(deadline()).await?;
            return Err(error);
        }
    };
    session.end(deadline()).await?;
    let (_, control) = host.describe(target, volume, deadline()).await?;
    unpin_older(&source_pool, run.source.volume, volume, &control).await?;
    Ok(handle(point))
}

/// The name of a volume's archive.
fn archive_name(source: VolumeId) -> String {
    format!("archive/{source}")
}

/// A maintenance session on the archive's volume. A run that died, or is stuck, gives way to its successor.
async fn take_over(
    host: &Host,
    target: &Arc<Pool>,
    log: &Log,
    control: &Control,
) -> Result<Maintenance, ArchiveError> {
    if let Some(grant) = control.grant.as_ref().filter(|grant| grant.mode == GrantMode::Maintenance) {
        crate::control::revoke(log, grant.id, deadline()).await?;
    }
    match host.maintain(target, log, deadline()).await {
        Err(ControlError::InUse { .. }) => Err(ArchiveError::Busy { volume: log.volume }),
        session => Ok(session?),
    }
}

#[allow(clippy::too_many_arguments, reason = "each is a thing of its own; a struct would only name the call")]
async fn copy(
    host: &Host,
    source_pool: &Arc<Pool>,
    session: &Maintenance,
    run: &ArchiveRun,
    begun_ms: Option<u64>,
    snapshot: SnapshotId,
    reader: &BlockReader,
    size_bytes: u64,
    progress: &watch::Sender<Progress>,
) -> Result<SnapshotId, ArchiveError> {
    let archive = &session.volume;
    let control = archive.append(Vec::new(), false).await?.control;
    if let Some((point, _)) = control.snapshot_named(&run.point) {
        // An earlier run died after its record and before its checkpoint.
        archive.append(Vec::new(), true).await?;
        return Ok(point);
    }
    if control.size_bytes < size_bytes {
        archive.resize(size_bytes).await?;
    }
    let Blocks::Moment(new) = reader.blocks() else {
        return Err(ArchiveError::NoSnapshot { handle: run.source });
    };
    let base = base_view(host, source_pool, run.source.volume, &control).await?;
    // Without a base everything is copied, over whatever the head has.
    let full = base.is_none();
    let old = base.unwrap_or_else(|| MapView::empty(new.source().clone()));
    let id = resume::run_id(&control, run.source, &run.point);
    let mut bulk = archive.bulk(id);
    let mut covered = Covered::default();
    // Only an attempt before this one can have left something.
    if let Some(begun_ms) = begun_ms {
        let found;
        (found, covered) = resume::uploaded(archive.log(), id, begun_ms, deadline).await?;
        if !found.is_empty() {
            tracing::info!(
                point = run.point,
                segments = found.len(),
                "goes on with what an earlier attempt uploaded"
            );
        }
        found.into_iter().for_each(|segment| bulk.adopt(segment.id, segment.chunks));
    }
    let mut diff = Diff::new(&old, new, 0);
    let mut step =
        Step { reader, run, progress, full, covered, at: 0, extents: Vec::new(), bytes: 0, changed_bytes: 0 };
    progress.send_modify(|progress| progress.total_bytes = size_bytes);
    while let Some(extent) = diff.next().await? {
        step.take(extent, &mut bulk).await?;
    }
    step.finish(size_bytes.div_ceil(BLOCK_BYTES), &mut bulk).await?;
    let meta = PointMeta {
        source: run.origin.clone(),
        source_handle: Handle { snapshot: Some(snapshot), ..run.source }.to_string(),
        point_in_time: run.point_in_time.clone(),
        expires_at: run.expires_at.clone(),
        changed_bytes: step.changed_bytes,
    };
    let point = Op::Snapshot { name: run.point.clone(), meta: meta.to_note() };
    let appended = archive.commit_bulk(bulk, vec![Op::RunCommitted { run: id }, point]).await?;
    Ok(SnapshotId(appended.number.0))
}

/// The map of the snapshot that the archive's newest point is a copy of, if the source still has it.
async fn base_view(
    host: &Host,
    source_pool: &Arc<Pool>,
    source: VolumeId,
    archive: &Control,
) -> Result<Option<MapView>, ArchiveError> {
    let Some(base) =
        newest_source(archive).filter(|base| base.pool == source_pool.id() && base.volume == source)
    else {
        return Ok(None);
    };
    let Some(snapshot) = base.snapshot else { return Ok(None) };
    let (_, control) = host.describe(source_pool, source, deadline()).await?;
    if !control.snapshots.contains_key(&snapshot) {
        return Ok(None);
    }
    let reader = host.snapshot_reader(source_pool, source, snapshot, deadline()).await?;
    match reader.blocks() {
        Blocks::Moment(view) => Ok(Some(view.clone())),
        Blocks::Head(_) => Ok(None),
    }
}

/// The handle that the newest point is a copy of.
fn newest_source(archive: &Control) -> Option<Handle> {
    let (_, newest) = archive.snapshots.last_key_value()?;
    PointMeta::from_note(&newest.meta)?.source_handle.parse().ok()
}

/// Removes the archive's pins on snapshots of the source other than the newest point's.
async fn unpin_older(
    source_pool: &Arc<Pool>,
    source: VolumeId,
    archive: VolumeId,
    control: &Control,
) -> Result<(), ArchiveError> {
    let newest = newest_source(control).and_then(|handle| handle.snapshot);
    for (clone, snapshot) in source_pool.pins(source, deadline()).await? {
        if clone == archive && Some(snapshot) != newest {
            source_pool.remove_pin(source, snapshot, archive, deadline()).await?;
        }
    }
    Ok(())
}

/// Gathers what differs and copies it in steps.
struct Step<'a> {
    reader: &'a BlockReader,
    run: &'a ArchiveRun,
    progress: &'a watch::Sender<Progress>,
    full: bool,
    /// What earlier attempts have uploaded.
    covered: Covered,
    at: u64,
    extents: Vec<Extent>,
    bytes: u64,
    changed_bytes: u64,
}

impl Step<'_> {
    async fn take(&mut self, extent: Extent, bulk: &mut Bulk) -> Result<(), ArchiveError> {
        if self.full && extent.lba > self.at {
            bulk.discard(self.at, extent.lba - self.at);
        }
        self.at = extent.end();
        if extent.location.is_none() {
            bulk.discard(extent.lba, u64::from(extent.blocks));
            return Ok(());
        }
        for missing in self.covered.missing_of(extent) {
            self.bytes += missing.bytes();
            self.extents.push(missing);
        }
        self.changed_bytes += extent.bytes();
        if self.bytes >= STEP_BYTES { self.copy(bulk).await } else { Ok(()) }
    }

    async fn copy(&mut self, bulk: &mut Bulk) -> Result<(), ArchiveError> {
        let started = Instant::now();
        let before = bulk.uploaded_bytes();
        let extents = std::mem::take(&mut self.extents);
        for group in extents.chunk_by(|a, b| a.end() == b.lba) {
            let Some(first) = group.first() else { continue };
            let data = self.reader.extents(group).await?.concat();
            bulk.write(first.lba, 0, &data).await?;
        }
        self.bytes = 0;
        let transferred_bytes = bulk.uploaded_bytes();
        self.progress.send_modify(|progress| {
            progress.changed_bytes = self.changed_bytes;
            progress.transferred_bytes = transferred_bytes;
            progress.scanned_bytes = (self.at * BLOCK_BYTES).min(progress.total_bytes);
        });
        if self.run.bytes_per_second > 0 {
            let sent = (transferred_bytes - before) as f64 / self.run.bytes_per_second as f64;
            tokio::time::sleep_until(started + Duration::from_secs_f64(sent)).await;
        }
        Ok(())
    }

    async fn finish(&mut self, blocks: u64, bulk: &mut Bulk) -> Result<(), ArchiveError> {
        self.copy(bulk).await?;
        if self.full && blocks > self.at {
            bulk.discard(self.at, blocks - self.at);
        }
        self.progress.send_modify(|progress| progress.scanned_bytes = progress.total_bytes);
        Ok(())
    }
}
