//! Calm weather, a volume, and what is done with it step by step.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::control::publish;
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, SnapshotId};
use holdfast_engine::log::GrantMode;
use holdfast_engine::volume::VolumeError;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::client::{Keys, Opened, Place, Site, Visitor};
use crate::director::detach;
use crate::faults::Faults;
use crate::marks::bytes_of;
use crate::memory;
use crate::model::Model;
use crate::process::Process;
use crate::run::found;
use crate::world::World;

pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(300)
}

/// A world with one volume.
pub struct Scene {
    pub site: Arc<Site>,
    pub chance: Chance,
}

impl Scene {
    pub async fn new(seed: u64) -> Self {
        let world = Arc::new(World::new(Chance::new(seed), Faults::CALM, false));
        let site = found(&world, Keys::default(), Model::default(), Faults::CALM).await;
        let chance = world.chance.fork();
        Self { site: Arc::new(site.expect("a volume is made in calm weather")), chance }
    }

    pub async fn visitor(&self, name: &str) -> Visitor {
        self.site.visitor(&process(name)).await.expect("the pools are opened in calm weather")
    }

    pub async fn grant(&self, site: &Site, node: &str) -> GrantId {
        let log = site.log(&process("controller"));
        let grant = publish(&log, node, GrantMode::ReadWrite, deadline()).await.expect("published");
        site.model.granted(grant, node);
        grant
    }

    pub async fn detach(&self, site: &Site, node: &str) {
        detach(site, &site.log(&process("controller")), node).await.expect("unpublished");
    }

    pub async fn open(&self, site: &Site, place: &Place, grant: GrantId) -> Opened {
        let opened = site.open(place, grant, &self.chance).await.expect("the volume is opened");
        opened.expect("nobody has opened the volume since")
    }

    /// Nothing that the models or the world know of is wrong.
    pub fn check(&self, when: &str) {
        let violations = [self.site.model.violations(), self.site.world.violations()].concat();
        assert_eq!(violations, [""; 0], "{when}");
    }
}

pub fn process(name: &str) -> Arc<Process> {
    Arc::new(Process::new(name.into()))
}

pub fn place(process: &Arc<Process>, memory_number: usize) -> Place {
    Place { process: Arc::clone(process), memory: memory::fresh(), memory_number, disk: None, journal: None }
}

/// Writes a block, or discards it, and flushes.
pub async fn write(site: &Site, opened: &Opened, block: u64, data: bool) -> Result<(), VolumeError> {
    let mark = site.model.begins(opened.session, block..block + 1, data);
    let offset = block * BLOCK_BYTES;
    match data {
        true => opened.volume.write(offset, bytes_of(mark, block..block + 1)).await?,
        false => opened.volume.discard(offset, BLOCK_BYTES).await?,
    }
    site.model.answered(opened.session);
    opened.flush(&site.model).await
}

/// Takes a snapshot.
pub async fn cut(site: &Site, opened: &Opened, name: &str) -> Result<SnapshotId, VolumeError> {
    site.model.cut_begins(opened.session, name.into());
    let id = opened.volume.snapshot(name, "").await?;
    site.model.cut_taken(opened.session, name, id);
    Ok(id)
}
