//! A real volume in a directory, opened as the node process does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_driver::frontend::Region;
use holdfast_engine::buffer::Ring;
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::control::publish;
use holdfast_engine::env::Env;
use holdfast_engine::ids::VolumeId;
use holdfast_engine::lineage::{Lineage, Source};
use holdfast_engine::log::{Decision, GrantMode, Log, Op};
use holdfast_engine::map::{PageCache, VolumePages};
use holdfast_engine::store::Directory;
use holdfast_engine::volume::{Limits, OpenOptions, Volume};
use tokio::time::Instant;

/// Opens the volume in `pool`, which is made of `size_bytes` if it is not there, with its dirty buffer in
/// `region`.
pub async fn open_volume(pool: &Path, size_bytes: u64, region: Arc<Region>) -> Volume {
    std::fs::create_dir_all(pool).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let env = Env::system();
    let store = Arc::new(Directory::new(pool.into()));
    let log = Log { store, volume: VolumeId([7; 16]), key: None, env };
    let create = |control: &holdfast_engine::log::Control| {
        Ok(if control.last.is_none() {
            Decision::Append(vec![Op::Create { size_bytes }])
        } else {
            Decision::Answer(())
        })
    };
    log.decide(deadline, create).await.unwrap();
    let grant = publish(&log, "node", GrantMode::ReadWrite, deadline).await.unwrap();
    let lineage = Lineage::default();
    lineage.insert(log.volume, Source { store: log.store.clone(), key: None });
    let pages = VolumePages::new(PageCache::new(16 << 20), lineage.clone(), log.volume, log.env.clone());
    let options = OpenOptions {
        grant,
        endpoint: String::new(),
        buffer: Arc::new(Ring::open(region).unwrap()),
        cache: Arc::new(MemoryCache::new(64 << 20)),
        pages,
        lineage,
        limits: Limits::default(),
    };
    Volume::open(log, options, deadline).await.unwrap()
}
