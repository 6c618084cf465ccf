//! What nothing needs, and is there all the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::control::describe;
use holdfast_engine::ids::{ObjectId, RecordNumber, SnapshotId};
use holdfast_engine::log::Log;
use holdfast_engine::map::{
    MapObject, MapView, PageSource, SegmentKind, SegmentRef, live_blocks, map_objects,
};
use holdfast_engine::pool::layout;
use holdfast_engine::snapshot;
use holdfast_engine::volume::Volume;
use tokio::time::Instant;

use crate::client::Site;
use crate::marks::BLOCKS;
use crate::world::{Bucket, World};

/// Roots and idle records that the collector may leave behind: those of its own last rounds.
const RECENT: usize = 12;

const PATIENCE: Duration = Duration::from_secs(60);

/// Every object of an open volume, whose collector has come to rest, is needed.
pub async fn look(site: &Site, log: &Log, volume: &Volume) -> Result<(), String> {
    let deadline = || Instant::now() + PATIENCE;
    let head = volume.frozen().ok_or("an open volume has no head")?;
    let source = Arc::clone(head.source());
    let control = describe(log, deadline()).await.map_err(|error| format!("describe: {error}"))?;
    let roots = log.roots(deadline()).await.map_err(|error| format!("roots: {error}"))?;
    let mut views = vec![head];
    let mut maps: BTreeSet<ObjectId> = BTreeSet::new();
    for (id, found) in &control.snapshots {
        maps.extend(found.map);
        let state = snapshot::find(log, *id, deadline()).await;
        let state = state.map_err(|error| format!("snapshot {id}: {error}"))?;
        views.push(MapView::from_stored(Arc::clone(&source), &state.map.map));
    }
    for (number, _) in roots.iter().rev().take(2) {
        let root = log.root(*number, deadline()).await.map_err(|error| format!("root {number}: {error}"))?;
        let root = root.ok_or_else(|| format!("root {number} is gone"))?;
        maps.extend(root.control.snapshots.values().filter_map(|found| found.map));
        views.push(MapView::from_stored(Arc::clone(&source), &root.map));
    }
    let mut named = BTreeSet::new();
    for view in views {
        let objects = map_objects(&view).await.map_err(|error| format!("walk: {error}"))?;
        maps.extend(own(site, objects));
        named.extend(live_blocks(&view).await.map_err(|error| format!("walk: {error}"))?.into_keys());
    }
    for view in earlier_generations(site, log, &source, &mut maps).await {
        maps.extend(own(site, map_objects(&view).await.unwrap_or_default()));
        named.extend(named_by_what_is_left_of(&view).await);
    }
    let (mut segments, mut records) = (BTreeSet::new(), BTreeSet::new());
    for segment in named.into_iter().filter(|segment| segment.volume == site.volume) {
        match segment.kind {
            SegmentKind::Object => segments.insert(segment.id),
            SegmentKind::Record => records.insert(segment.birth),
        };
    }
    let list = |prefix: &str| site.world.list(Bucket::Pool, prefix).into_keys();
    let mut garbage: Vec<String> = Vec::new();
    let unneeded = |needed: BTreeSet<ObjectId>| {
        move |key: &String| layout::object_id_in(key).is_none_or(|id| !needed.contains(&id))
    };
    garbage.extend(list(&layout::segments(site.volume)).filter(unneeded(segments)));
    garbage.extend(list(&layout::maps(site.volume)).filter(unneeded(maps)));
    let grants = control.grant.iter().map(|grant| grant.id).collect();
    garbage.extend(list(&layout::fences(site.volume)).filter(unneeded(grants)));
    let covered = roots.iter().rev().nth(1).map_or(RecordNumber(0), |(number, _)| *number);
    let idle = list(&layout::records(site.volume)).filter(|key| {
        let number = layout::number_in(key).unwrap_or_default();
        number <= covered && !records.contains(&number) && !site.world.is_kept(site.volume, number)
    });
    for old in [idle.collect::<Vec<_>>(), list(&layout::roots(site.volume)).collect()] {
        if old.len() > RECENT {
            garbage.extend(old);
        }
    }
    if garbage.is_empty() { Ok(()) } else { Err(format!("garbage stays: {garbage:?}")) }
}

fn own(site: &Site, objects: BTreeSet<MapObject>) -> impl Iterator<Item = ObjectId> {
    let own = site.volume;
    objects.into_iter().filter(move |object| object.volume == own).map(|object| object.id)
}

/// What an earlier map names, as far as it can be read. A put of it that was repeated may have landed once more after it
/// was deleted with its pages, when nothing pinned it.
async fn named_by_what_is_left_of(view: &MapView) -> BTreeSet<SegmentRef> {
    let mut named = BTreeSet::new();
    for lba in 0..BLOCKS {
        let extents = view.lookup(lba..lba + 1).await.unwrap_or_default();
        named.extend(extents.iter().filter_map(|extent| extent.location).map(|location| location.segment));
    }
    named
}

/// The maps that pinned snapshots had before their present ones, as far as they are there; adds them to `maps`. A pin
/// does not say which of them its clone began with, so all are needed until no pin names the snapshot.
async fn earlier_generations(
    site: &Site,
    log: &Log,
    source: &Arc<dyn PageSource>,
    maps: &mut BTreeSet<ObjectId>,
) -> Vec<MapView> {
    let list = |prefix: &str| site.world.list(Bucket::Pool, prefix).into_keys();
    let pins = list(&layout::pins(site.volume)).filter_map(|key| layout::pin_in(&key));
    let pinned: BTreeSet<SnapshotId> = pins.map(|(_, snapshot)| snapshot).collect();
    let mut views = Vec::new();
    for id in list(&layout::maps(site.volume)).filter_map(|key| layout::object_id_in(&key)) {
        if pinned.is_empty() || maps.contains(&id) {
            continue;
        }
        // Pages and indexes cannot be read as the map of a snapshot.
        let Ok(earlier) = snapshot::read_map(log, id, Instant::now() + PATIENCE).await else { continue };
        if pinned.contains(&earlier.snapshot) {
            maps.insert(id);
            views.push(MapView::from_stored(Arc::clone(source), &earlier.map));
        }
    }
    views
}

/// Of deleted volumes nothing is left; of creations that were given up, what keeps a slow creator out, and the root that
/// such a one may still put.
pub fn look_for_remains(world: &World, bucket: Bucket) -> Result<(), String> {
    let remains = remains(world, bucket);
    if remains.is_empty() { Ok(()) } else { Err(format!("of deleted volumes there is left: {remains:?}")) }
}

/// Everything of volumes but what may stay of one that was given up.
pub fn remains(world: &World, bucket: Bucket) -> Vec<String> {
    let mut remains = Vec::new();
    for volume in world.volumes(bucket) {
        let root = layout::root(volume, RecordNumber(0));
        let stays = [layout::volume_json(volume), layout::record(volume, RecordNumber(1)), root];
        let all = world.list(bucket, &layout::volume(volume)).into_keys();
        remains.extend(all.filter(|key| !stays.contains(key)));
    }
    remains
}
