//! What the operator learns from real pools: points of an archive, and how far a restored volume is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_engine::archive::{ArchiveRun, PointSource, Progress, archive};
use holdfast_engine::buffer::MemoryBuffer;
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::codec::Codec;
use holdfast_engine::control::{CreateVolume, SourceSnapshot, publish};
use holdfast_engine::env::Env;
use holdfast_engine::host::{Host, OpenAs};
use holdfast_engine::ids::{Handle, VolumeId};
use holdfast_engine::log::GrantMode;
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolKind, PoolSet};
use holdfast_engine::volume::{Hydrate, Limits, Volume, hydrate};
use holdfast_operator::engine_store::EngineStore;
use holdfast_operator::pool_file::PoolFile;
use holdfast_operator::store::{ArchiveStore, Hydration};
use tokio::sync::watch;
use tokio::time::Instant;

const MIB: u64 = 1 << 20;

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn file(name: &str, root: &Path) -> PoolFile {
    PoolFile::build(name, &format!("file://{}/{name}", root.display()), None, None).expect("a pool file")
}

/// What drivers and Jobs do.
struct Driver {
    host: Host,
    pool: Arc<Pool>,
    target: Arc<Pool>,
}

impl Driver {
    async fn new(pool: &PoolFile, target: &PoolFile) -> Self {
        let env = Env::system();
        let open = async |file: &PoolFile| {
            Pool::open(file.name(), file.config(), &[], Access::ReadWrite, env.clone()).await.expect("a pool")
        };
        let (pool, target) = (open(pool).await, open(target).await);
        let pools = [(PoolKind::Pool, Arc::clone(&pool)), (PoolKind::Target, Arc::clone(&target))];
        let host = Host {
            pools: Arc::new(PoolSet::of(pools, env.clone())),
            pages: PageCache::new(4 << 20),
            cache: Arc::new(MemoryCache::new(4 << 20)),
        };
        Self { host, pool, target }
    }

    async fn create(&self, name: &str, source: Option<SourceSnapshot>) -> VolumeId {
        let new = CreateVolume {
            name: name.to_owned(),
            size_bytes: 64 * MIB,
            source,
            codec: Codec::Lz4,
            parameters: BTreeMap::new(),
        };
        self.host.create_volume(&self.pool, &new, deadline()).await.expect("a volume")
    }

    async fn open(&self, volume: VolumeId) -> Volume {
        let found = self.host.find(&self.pool, volume, deadline()).await.expect("the volume");
        let grant = publish(&found.log, "node", GrantMode::ReadWrite, deadline()).await.expect("a grant");
        let buffer = Arc::new(MemoryBuffer::new(32 << 20));
        let open = OpenAs { grant, endpoint: String::new(), buffer, limits: Limits::default() };
        self.host.open(&found, open, deadline()).await.expect("an open volume")
    }

    /// A volume with that many MiB of data, archived as `point`.
    async fn archived(&self, mebibytes: u64, point: &str) -> Handle {
        let id = self.create("source", None).await;
        let volume = self.open(id).await;
        volume.write(0, Bytes::from(vec![7; (mebibytes * MIB) as usize])).await.expect("written");
        let snapshot = volume.snapshot("first", "").await.expect("a snapshot");
        let run = ArchiveRun {
            source: Handle { pool: self.pool.id(), volume: id, snapshot: Some(snapshot) },
            point: point.to_owned(),
            origin: PointSource {
                cluster_uid: "0b6e".to_owned(),
                namespace: "shop".to_owned(),
                claim_name: "data".to_owned(),
                volume_mode: "Block".to_owned(),
                fs_type: None,
            },
            point_in_time: "2026-11-23T05:00:00Z".to_owned(),
            expires_at: Some("2026-12-23T05:00:00Z".to_owned()),
            bytes_per_second: 0,
        };
        let (progress, _) = watch::channel(Progress::default());
        let handle = archive(&self.host, &self.target, &run, &progress).await.expect("a point");
        volume.close().await.expect("closed");
        handle
    }
}

#[tokio::test]
async fn a_point_and_the_restore_from_it_are_seen_as_they_are() {
    let root = tempfile::tempdir().expect("a directory");
    let (pool, target) = (file("default", root.path()), file("offsite", root.path()));
    let driver = Driver::new(&pool, &target).await;
    let store = EngineStore::new(Env::system(), Some(root.path().to_owned()));
    let handle = driver.archived(4, "offsite-1").await;

    let summary = store.probe(&target).await.expect("the pool");
    assert_eq!(summary.pool_id, driver.target.id().to_string());
    assert!(summary.stored_bytes.is_some_and(|bytes| bytes > 0 && bytes < 4 * MIB), "{summary:?}");
    let points = store.points(&target).await.expect("points");
    assert_eq!(points.len(), 1);
    let point = store.point(&target, "offsite-1").await.expect("an answer").expect("the point");
    assert_eq!(point, points[0]);
    assert_eq!(point.handle, handle.to_string());
    assert_eq!(point.point_in_time.to_string(), "2026-11-23T05:00:00Z");
    assert_eq!(point.expires_at.map(|time| time.to_string()).as_deref(), Some("2026-12-23T05:00:00Z"));
    assert_eq!((point.restore_size_bytes, point.changed_bytes), (64 * MIB, Some(4 * MIB)));
    assert_eq!(point.source.volume_mode.as_str(), "Block");
    assert!(point.newest);

    let source = SourceSnapshot {
        pool: Arc::clone(&driver.target),
        volume: handle.volume,
        snapshot: handle.snapshot.expect("a snapshot"),
    };
    let restored = driver.create("restored", Some(source)).await;
    let look = async |volume: VolumeId| {
        let handle = Handle { pool: driver.pool.id(), volume, snapshot: None }.to_string();
        store.hydration(std::slice::from_ref(&pool), &target, &handle, 0).await.expect("an answer")
    };
    let none_yet = Hydration { hydrated_bytes: 0, total_bytes: 4 * MIB };
    assert_eq!(look(restored).await, Some(none_yet), "readable at once, nothing copied back");

    let volume = driver.open(restored).await;
    volume.write(0, Bytes::from(vec![9; MIB as usize])).await.expect("written");
    volume.write(32 * MIB, Bytes::from(vec![9; MIB as usize])).await.expect("written");
    volume.flush().await.expect("in the log");
    let written = Hydration { hydrated_bytes: MIB, total_bytes: 4 * MIB };
    assert_eq!(
        look(restored).await,
        Some(written),
        "what is overwritten need not be copied back, and what is new is no part of it"
    );

    let foreign = driver.host.find(&driver.pool, restored, deadline()).await.expect("its origin").foreign();
    let (progress, _) = watch::channel(holdfast_engine::volume::Hydration::default());
    hydrate(volume.clone(), Hydrate::unlimited(foreign), progress).await.expect("hydrated");
    let whole = look(restored).await.expect("it was restored");
    assert_eq!(whole.hydrated_bytes, whole.total_bytes);
    volume.close().await.expect("closed");

    let ordinary = driver.create("ordinary", None).await;
    assert_eq!(look(ordinary).await, None, "it reads from no archive");
}
