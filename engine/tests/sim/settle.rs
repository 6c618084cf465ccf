//! The end of a run: the weather clears up, and everything that was made is looked at; then it is taken down, and
//! nothing may be left of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::archive::list_points;
use holdfast_engine::control::{ControlError, describe, publish};
use holdfast_engine::gc::Collector;
use holdfast_engine::ids::{BLOCK_BYTES, ObjectId, SnapshotId, VolumeId};
use holdfast_engine::log::{GrantMode, Log};
use holdfast_engine::pool::Pool;
use holdfast_engine::snapshot;
use holdfast_engine::volume::{BlockReader, Hydrate, Hydration, Limits, hydrate};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::client::{Place, Site, Visitor};
use crate::director::{Director, detach};
use crate::estate::{Estate, archive_cut, archive_name};
use crate::faults::Faults;
use crate::garbage;
use crate::marks::{BLOCKS, Blocks, marks_in};
use crate::memory;
use crate::process::Process;
use crate::world::Bucket;

const PATIENCE: Duration = Duration::from_secs(300);
/// When everything that was late has come, and whoever was slow is done.
const CALM: Duration = Duration::from_secs(5 * 3600);
/// Rounds after which the collector has nothing left to do: rewriting makes new garbage, but less each time.
const ROUNDS: usize = 20;
/// Rounds with nothing to do before nothing more is expected: what is small goes in the second.
const IDLE_ROUNDS: usize = 3;

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Makes text of an error, and says what it was that failed.
fn at<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// The weather clears up. Somebody looks at the volume at once, and at everything when all that was late has come.
pub async fn settle(estate: &Arc<Estate>, director: Director) {
    let world = &estate.site.world;
    world.set_faults(Faults::CALM);
    // Half of the time those who use the volume go on until somebody else takes it from them.
    if world.chance.hits(500) {
        director.kill_all();
    }
    sleep(world.chance.delay(1..20_000)).await;
    let mut end = End { estate, director, tenants: Vec::new(), witnesses: 0 };
    if let Err(what) = end.go().await {
        estate.site.model.violation(format!("in calm weather: {what}"));
    }
}

struct End<'a> {
    estate: &'a Arc<Estate>,
    director: Director,
    tenants: Vec<Arc<Site>>,
    witnesses: usize,
}

impl End<'_> {
    async fn go(&mut self) -> Result<(), String> {
        let first = Arc::clone(&self.estate.site);
        self.look(&first).await?;
        self.director.kill_all();
        sleep(CALM).await;
        let mut directors = Vec::new();
        for tenant in self.estate.take_tenants() {
            let director = tenant.await.map_err(at("a director"))?;
            director.kill_all();
            self.tenants.push(Arc::clone(&director.site));
            directors.push(director);
        }
        sleep(CALM).await;
        for director in directors.iter_mut().chain([&mut self.director]) {
            director.settle_journals().await?;
        }
        let process = self.witness();
        let visitor = first.visitor(&process).await.map_err(at("pools"))?;
        self.complete_clones(&visitor).await?;
        for site in self.tenants.clone() {
            self.look(&site).await.map_err(at(&site.name))?;
        }
        self.look(&first).await.map_err(at(&first.name))?;
        for site in self.tenants.iter().chain([&first]) {
            self.archive_once_more(site, &process).await.map_err(at(&site.name))?;
            self.look_at_archive(site, &visitor).await.map_err(at(&site.name))?;
        }
        self.take_down(&visitor).await
    }

    fn witness(&mut self) -> Arc<Process> {
        self.witnesses += 1;
        Arc::new(Process::new(format!("witness {}", self.witnesses)))
    }

    /// Whoever asked for a clone asks until it is there, or cannot be.
    async fn complete_clones(&mut self, visitor: &Visitor) -> Result<(), String> {
        for order in self.estate.orders() {
            match order.make(visitor).await {
                Ok(site) => {
                    if self.tenants.iter().all(|tenant| tenant.volume != site.volume) {
                        site.world.watch(site.volume, site.key.clone());
                        self.tenants.push(site);
                    }
                }
                Err(ControlError::NoSuchSnapshot { .. }) => {
                    let made = self.tenants.iter().any(|tenant| tenant.name == order.name);
                    if made {
                        return Err(format!("{} is gone", order.name));
                    }
                }
                Err(error) => return Err(format!("{} of {}: {error}", order.name, order.cut)),
            }
        }
        Ok(())
    }

    /// Opens the volume, and looks at it, at its snapshots, and at what nothing needs.
    async fn look(&mut self, site: &Arc<Site>) -> Result<(), String> {
        let process = self.witness();
        let log = site.log(&process);
        let control = describe(&log, deadline()).await.map_err(at("describe"))?;
        if let Some(grant) = control.grant {
            detach(site, &log, &grant.node).await.map_err(at("unpublish"))?;
        }
        let name = process.name.clone();
        let grant = publish(&log, &name, GrantMode::ReadWrite, deadline()).await.map_err(at("publish"))?;
        site.model.granted(grant, &name);
        let memory_number = usize::MAX - self.witnesses;
        let place = Place {
            process: Arc::clone(&process),
            memory: memory::fresh(),
            memory_number,
            disk: None,
            journal: None,
        };
        let opened = site.open(&place, grant, &site.world.chance).await.map_err(at("open"))?;
        let Some(opened) = opened else {
            return Err("somebody has opened the volume who must not".into());
        };
        let volume = &opened.volume;
        if !site.foreign().is_empty() {
            let (progress, _) = watch::channel(Hydration::default());
            let hydrated = tokio::time::timeout(
                PATIENCE,
                hydrate(volume.clone(), Hydrate::unlimited(site.foreign()), progress),
            );
            hydrated.await.map_err(at("hydrate"))?.map_err(at("hydrate"))?;
        }
        let mut collector = Collector::new(volume.clone());
        let mut idle_rounds = 0;
        for _ in 0..ROUNDS {
            let collected = collector.round().await.map_err(at("collect"))?;
            site.world.note(format_args!("the witness collects: {collected:?}"));
            sleep(volume.limits().grace + Duration::from_secs(1)).await;
            idle_rounds = if collected.left == 0 && collected.moved_bytes == 0 { idle_rounds + 1 } else { 0 };
            if idle_rounds == IDLE_ROUNDS {
                break;
            }
        }
        if idle_rounds == 0 {
            return Err(format!("the collector does not come to rest in {ROUNDS} rounds"));
        }
        // When everything that was late has come, nothing stays that nothing needs.
        if site.world.start.elapsed() > CALM {
            garbage::look(site, &log, volume).await?;
        }
        self.look_at_snapshots(site, &process, &log).await?;
        opened.close(&site.model).await.map_err(at("close"))?;
        detach(site, &log, &name).await.map_err(at("unpublish"))
    }

    async fn look_at_snapshots(&self, site: &Site, process: &Arc<Process>, log: &Log) -> Result<(), String> {
        let control = describe(log, deadline()).await.map_err(at("describe"))?;
        let live = control.snapshots.iter().filter(|(_, found)| !found.deleted);
        let found: Vec<(SnapshotId, &str)> = live.map(|(id, found)| (*id, found.name.as_str())).collect();
        for (id, name) in site.model.taken() {
            if !found.contains(&(id, &name)) {
                site.model.violation(format!("snapshot {name} is gone"));
            }
        }
        for (id, name) in found {
            let (pages, lineage) = site.sources(process, log);
            let cache = Arc::new(holdfast_engine::cache::MemoryCache::new(64 << 10));
            let reader = snapshot::reader(log, id, pages, lineage, cache, deadline()).await;
            let blocks = read_all(&reader.map_err(at(name))?).await.map_err(at(name))?;
            site.model.check_cut("the map", name, &blocks);
        }
        Ok(())
    }

    /// The next run goes on from whatever others have left, also if it copies an older snapshot.
    async fn archive_once_more(&self, site: &Site, process: &Arc<Process>) -> Result<(), String> {
        let mut taken = site.model.taken();
        if !self.estate.archives || taken.is_empty() {
            return Ok(());
        }
        let (id, cut) = taken.swap_remove(site.world.chance.among(0..taken.len() as u64) as usize);
        let name = format!("last point of {}", site.name);
        site.model.point_begins(name.clone(), cut);
        let made = archive_cut(site, process, &name, id).await.map_err(at("archive"))?;
        site.model.point_made(&name, made);
        Ok(())
    }

    /// Every point that was made is in the archive, and every point in the archive is what its snapshot was.
    async fn look_at_archive(&self, site: &Site, visitor: &Visitor) -> Result<(), String> {
        let Visitor { host, target, .. } = visitor;
        let listed = list_points(host, target).await.map_err(at("list points"))?;
        let handles: BTreeMap<&str, _> =
            listed.iter().map(|point| (point.name.as_str(), point.handle)).collect();
        for point in site.model.points() {
            let found = handles.get(point.name.as_str());
            if point.handle.is_some() && !point.removed && found != point.handle.as_ref() {
                return Err(format!("{} of {} is {found:?} in the archive", point.name, point.cut));
            }
            let Some(handle) = found else { continue };
            let id = handle.snapshot.ok_or("a point is a snapshot")?;
            let reader = host.snapshot_reader(target, handle.volume, id, deadline()).await;
            let blocks = read_all(&reader.map_err(at(&point.name))?).await.map_err(at(&point.name))?;
            site.model.check_cut(&point.name, &point.cut, &blocks);
        }
        Ok(())
    }

    /// Deletes everything, until nothing is left.
    async fn take_down(&mut self, visitor: &Visitor) -> Result<(), String> {
        let first = Arc::clone(&self.estate.site);
        let mut tenants = self.tenants.clone();
        if !tenants.is_empty() && first.world.chance.hits(500) {
            // What a clone needs stays when its source is gone.
            self.delete(&first, visitor).await?;
            self.tend_all(visitor).await?;
            for tenant in &tenants {
                self.look(tenant).await.map_err(at(&tenant.name))?;
            }
        }
        tenants.push(first);
        for site in &tenants {
            self.delete(site, visitor).await?;
        }
        // Clones of clones let go of their parents one after the other.
        for _ in &tenants {
            self.tend_all(visitor).await?;
        }
        Bucket::ALL
            .into_iter()
            .try_for_each(|bucket| garbage::look_for_remains(&self.estate.site.world, bucket))
    }

    /// Deletes a volume and its archive.
    async fn delete(&self, site: &Site, visitor: &Visitor) -> Result<(), String> {
        let archive = visitor.target.volume_named(&archive_name(site), deadline()).await;
        delete(visitor, &visitor.pool, site.volume).await.map_err(at(&site.name))?;
        if let Some(archive) = archive.map_err(at("names"))? {
            delete(visitor, &visitor.target, archive).await.map_err(at("archive"))?;
        }
        Ok(())
    }

    async fn tend_all(&self, visitor: &Visitor) -> Result<(), String> {
        for (bucket, pool) in [(Bucket::Pool, &visitor.pool), (Bucket::Target, &visitor.target)] {
            for volume in self.estate.site.world.volumes(bucket) {
                // Nobody creates any more: what has no first record has had none for long.
                let seen = Some(ObjectId::NONE);
                let tended = visitor.host.tend(pool, volume, seen, Limits::default(), deadline()).await;
                tended.map_err(at("tend"))?;
            }
        }
        Ok(())
    }
}

/// Deletes a volume and its snapshots.
async fn delete(visitor: &Visitor, pool: &Arc<Pool>, volume: VolumeId) -> Result<(), ControlError> {
    let host = &visitor.host;
    host.delete_volume(pool, volume, deadline()).await?;
    let control = match host.describe(pool, volume, deadline()).await {
        Ok((_, control)) => control,
        Err(ControlError::NoSuchVolume { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    for snapshot in control.snapshots.into_keys() {
        host.delete_snapshot(pool, volume, snapshot, deadline()).await?;
    }
    Ok(())
}

/// The marks of all blocks that `reader` shows.
pub async fn read_all(reader: &BlockReader) -> Result<Blocks, String> {
    let mut bytes = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
    reader.read(0, BLOCKS, &mut bytes).await.map_err(at("read"))?;
    marks_in(&bytes, 0)
}
