//! All volumes of a run, and what makes and copies them: clones, archived points, restored volumes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_engine::archive::{ArchiveRun, PointSource, Progress, archive, expire};
use holdfast_engine::control::{ControlError, CreateVolume, SourceSnapshot};
use holdfast_engine::ids::{Handle, ObjectId, SnapshotId, VolumeId};
use holdfast_engine::pool::PoolError;
use holdfast_engine::volume::Limits;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::client::{Ancestor, Site, Visitor};
use crate::director::Director;
use crate::model::Point;
use crate::process::{Process, Trap};
use crate::run::empty;
use crate::world::Bucket;

/// How long one attempt to make something may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Processes that try to make one thing, each after the death of the one before.
const LIVES: u64 = 3;
/// Volumes with processes of their own, besides the first.
const TENANTS: usize = 2;

/// Everything that a run has made.
#[derive(Debug)]
pub struct Estate {
    /// The volume that everything begins with.
    pub site: Arc<Site>,
    /// Clones and restored volumes that were asked for.
    orders: Mutex<Vec<Order>>,
    /// Those who look after clones.
    tenants: Mutex<Vec<JoinHandle<Director>>>,
    points: Mutex<usize>,
    /// Whether the run has an archive.
    pub archives: bool,
}

/// A volume to be made from a snapshot.
#[derive(Debug, Clone)]
pub struct Order {
    pub name: String,
    /// Whose snapshot it is, or is a copy of.
    pub parent: Arc<Site>,
    /// The snapshot.
    pub cut: String,
    /// The snapshot, or its copy in the archive.
    pub source: Handled,
}

/// What a volume is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    Snapshot(SnapshotId),
    Point(Handle),
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// A process that will come to grief, or be slow, or neither.
fn troubled(site: &Site, name: String) -> Arc<Process> {
    let chance = &site.world.chance;
    let process = Arc::new(Process::new(name));
    match chance.among(0..6) {
        0 => process.set_trap("/pins/", Trap::Pause(chance.delay(100..120_000))),
        1 => process.set_trap("/log/", Trap::Pause(chance.delay(100..600_000))),
        2 => process.set_trap("/log/", Trap::Die(chance.delay(1..60_000))),
        3 => process.kill_at_call(chance.among(5..150)),
        _ => {}
    }
    process
}

impl Order {
    /// Makes the volume, or finds it.
    pub async fn make(&self, visitor: &Visitor) -> Result<Arc<Site>, ControlError> {
        let source = match self.source {
            Handled::Snapshot(snapshot) => {
                SourceSnapshot { pool: Arc::clone(&visitor.pool), volume: self.parent.volume, snapshot }
            }
            Handled::Point(Handle { volume, snapshot, .. }) => {
                let snapshot = snapshot.expect("a point is a snapshot");
                SourceSnapshot { pool: Arc::clone(&visitor.target), volume, snapshot }
            }
        };
        let new = CreateVolume { source: Some(source), ..empty(&self.name) };
        let volume = visitor.host.create_volume(&visitor.pool, &new, deadline()).await?;
        Ok(Arc::new(self.site(visitor, volume).await?))
    }

    async fn site(&self, visitor: &Visitor, volume: VolumeId) -> Result<Site, PoolError> {
        let mut ancestors = Vec::new();
        for parent in visitor.pool.volume_json(volume, deadline()).await?.parents {
            let (home, bucket) = match visitor.target.id() == parent.pool {
                true => (&visitor.target, Bucket::Target),
                false => (&visitor.pool, Bucket::Pool),
            };
            let key = home.data_key(parent.volume, deadline()).await?;
            ancestors.push(Ancestor { bucket, volume: parent.volume, key });
        }
        let parent = &self.parent;
        Ok(Site {
            name: self.name.clone(),
            world: Arc::clone(&parent.world),
            model: parent.model.of_clone(self.cut.clone()),
            volume,
            key: visitor.pool.data_key(volume, deadline()).await?,
            ancestors,
            keys: Arc::clone(&parent.keys),
            weather: parent.weather,
        })
    }
}

impl Estate {
    pub fn new(site: Arc<Site>, archives: bool) -> Self {
        Self { site, orders: Mutex::default(), tenants: Mutex::default(), points: Mutex::default(), archives }
    }

    /// The volumes that were asked for so far.
    pub fn orders(&self) -> Vec<Order> {
        self.orders.lock().expect("no holder panics").clone()
    }

    /// Who looks after the clones.
    pub fn take_tenants(&self) -> Vec<JoinHandle<Director>> {
        std::mem::take(&mut *self.tenants.lock().expect("no holder panics"))
    }

    /// Somebody begins to make a clone of `cut` of `parent`, and uses it.
    pub fn begin_clone(self: &Arc<Self>, parent: &Arc<Site>, cut: String, source: Handled) {
        let order = {
            let mut orders = self.orders.lock().expect("no holder panics");
            if orders.len() >= TENANTS {
                return;
            }
            let name = format!("clone {}", orders.len() + 1);
            orders.push(Order { name, parent: Arc::clone(parent), cut, source });
            orders[orders.len() - 1].clone()
        };
        let estate = Arc::clone(self);
        tokio::spawn(async move {
            for life in 1..=LIVES {
                let process = troubled(&order.parent, format!("maker {life} of {}", order.name));
                let made = tokio::select! {
                    biased;
                    () = process.died() => None,
                    made = async { order.make(&order.parent.visitor(&process).await?).await } => Some(made),
                };
                let world = &order.parent.world;
                match made {
                    Some(Ok(site)) => {
                        world.note(format_args!("{} of {} is made", order.name, order.cut));
                        return estate.move_in(site);
                    }
                    Some(Err(error)) => world.note(format_args!("{} is not made: {error}", order.name)),
                    None => world.note(format_args!("{} is not made: {} is dead", order.name, process.name)),
                }
            }
        });
    }

    /// Somebody uses a clone.
    fn move_in(self: &Arc<Self>, site: Arc<Site>) {
        site.world.watch(site.volume, site.key.clone());
        let mut director = Director::new(Arc::clone(self), site);
        let tenancy = tokio::spawn(async move {
            director.run(2..8).await;
            sleep(director.site.world.chance.delay(1..20_000)).await;
            director.kill_all();
            director
        });
        self.tenants.lock().expect("no holder panics").push(tenancy);
    }

    /// Somebody begins to copy `cut` of `site` into the archive.
    pub fn begin_archive(&self, site: &Arc<Site>, cut: String, snapshot: SnapshotId) {
        let name = {
            let mut points = self.points.lock().expect("no holder panics");
            *points += 1;
            format!("point {points}")
        };
        site.model.point_begins(name.clone(), cut);
        let site = Arc::clone(site);
        tokio::spawn(async move {
            for life in 1..=LIVES {
                let process = troubled(&site, format!("job {life} of {name}"));
                let made = tokio::select! {
                    biased;
                    () = process.died() => Err("it is dead".to_owned()),
                    made = archive_cut(&site, &process, &name, snapshot) => made,
                };
                match made {
                    Ok(handle) => return site.model.point_made(&name, handle),
                    Err(why) => site.world.note(format_args!("{} has not made {name}: {why}", process.name)),
                }
            }
        });
    }

    /// Somebody removes a point that was made.
    pub fn begin_expiry(&self, site: &Arc<Site>, point: &Point) {
        let Some(handle) = point.handle else { return };
        site.model.point_removed(&point.name);
        let (site, name) = (Arc::clone(site), point.name.clone());
        tokio::spawn(async move {
            let process = troubled(&site, format!("expiry of {name}"));
            let Ok(visitor) = site.visitor(&process).await else { return };
            let expired = expire(&visitor.host, &visitor.target, handle).await;
            site.world.note(format_args!("{name} expires: {expired:?}"));
        });
    }

    /// A controller looks after a volume, in the pool and in the archive.
    pub fn begin_tending(&self, site: &Arc<Site>) {
        let site = Arc::clone(site);
        tokio::spawn(async move {
            let process = troubled(&site, format!("tender of {}", site.name));
            let Ok(visitor) = site.visitor(&process).await else { return };
            let tended = tend(&site, &visitor).await;
            site.world.note(format_args!("{} is tended: {tended:?}", site.name));
        });
    }
}

/// Copies a snapshot into the archive.
pub async fn archive_cut(
    site: &Site,
    process: &Arc<Process>,
    point: &str,
    snapshot: SnapshotId,
) -> Result<Handle, String> {
    let visitor = site.visitor(process).await.map_err(|error| format!("pool: {error}"))?;
    let run = ArchiveRun {
        source: Handle { pool: visitor.pool.id(), volume: site.volume, snapshot: Some(snapshot) },
        point: point.into(),
        origin: PointSource {
            cluster_uid: "cluster".into(),
            namespace: "namespace".into(),
            claim_name: site.name.clone(),
            volume_mode: "Block".into(),
            fs_type: None,
        },
        point_in_time: String::new(),
        expires_at: None,
        bytes_per_second: 0,
    };
    let (progress, _) = watch::channel(Progress::default());
    let made = archive(&visitor.host, &visitor.target, &run, &progress).await;
    process.live().await;
    made.map_err(|error| error.to_string())
}

/// Looks after a volume and its archive, as the controller does.
async fn tend(site: &Site, visitor: &Visitor) -> Result<(), String> {
    let limits = Limits { grace: Duration::ZERO, ..Limits::default() };
    let Visitor { host, pool, target } = visitor;
    // Another look came before this one: a creation under way that has not come further is given up.
    let seen = Some(ObjectId::NONE);
    let tended = host.tend(pool, site.volume, seen, limits.clone(), deadline()).await;
    tended.map_err(|error| error.to_string())?;
    let archive = target.volume_named(&archive_name(site), deadline()).await;
    if let Some(archive) = archive.map_err(|error| error.to_string())? {
        host.tend(target, archive, seen, limits, deadline()).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The name of the volume in the target that holds a volume's points.
pub fn archive_name(site: &Site) -> String {
    format!("archive/{}", site.volume)
}
