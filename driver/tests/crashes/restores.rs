//! A volume that is copied back from an archive, while the node plugin is killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_csi_proto::csi::VolumeContentSource;
use holdfast_csi_proto::csi::volume_content_source::{SnapshotSource, Type};
use holdfast_engine::buffer::MemoryBuffer;
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::codec::Codec;
use holdfast_engine::control::{CreateVolume, publish};
use holdfast_engine::env::Env;
use holdfast_engine::host::{Host, OpenAs};
use holdfast_engine::ids::Handle;
use holdfast_engine::log::GrantMode;
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolKind, PoolSet};
use holdfast_engine::store::Directory;
use holdfast_engine::volume::Limits;
use tokio::time::Instant;

use crate::ALONE;
use crate::common::eventually;
use crate::site::{MIB, Site, block};

const DATA: usize = 48 << 20;

/// Makes a pool in `directory` with a snapshot of a volume that begins with `data`; answers its handle.
pub async fn archive(directory: &Path, data: &[u8]) -> Handle {
    let env = Env::system();
    let deadline = Instant::now() + Duration::from_secs(60);
    let store = Arc::new(Directory::new(directory.into()));
    let pool = Pool::over("offsite", "file", store, None, Access::ReadWrite, env.clone()).await.unwrap();
    let host = Host {
        pools: Arc::new(PoolSet::of([(PoolKind::Target, Arc::clone(&pool))], env)),
        pages: PageCache::new(4 << 20),
        cache: Arc::new(MemoryCache::new(4 << 20)),
    };
    let new = CreateVolume {
        name: "archived".into(),
        size_bytes: 64 * MIB as u64,
        source: None,
        codec: Codec::Lz4,
        parameters: BTreeMap::new(),
    };
    let volume = host.create_volume(&pool, &new, deadline).await.unwrap();
    let found = host.find(&pool, volume, deadline).await.unwrap();
    let grant = publish(&found.log, "job", GrantMode::ReadWrite, deadline).await.unwrap();
    let buffer = Arc::new(MemoryBuffer::new(64 << 20));
    let open = OpenAs { grant, endpoint: String::new(), buffer, limits: Limits::default() };
    let opened = host.open(&found, open, deadline).await.unwrap();
    opened.write(0, data.to_vec().into()).await.unwrap();
    let snapshot = opened.snapshot("point", "").await.unwrap();
    opened.close().await.unwrap();
    Handle { pool: pool.id(), volume, snapshot: Some(snapshot) }
}

/// What a volume is made from that is to be a copy of an archived point.
pub fn content(point: Handle) -> VolumeContentSource {
    let source = SnapshotSource { snapshot_id: point.to_string() };
    VolumeContentSource { r#type: Some(Type::Snapshot(source)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_goes_on_after_a_kill_where_it_was_and_says_so() {
    let _alone = ALONE.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let mut random = vec![0; DATA];
    Env::system().entropy.fill(&mut random);
    let point = archive(directory.path(), &random).await;
    let mut site = Site::start_with_target(&format!("url: file://{}\n", directory.path().display())).await;
    let mut node = site.node_with("n1", &["--cache-bytes=0", "--hydrate-bytes-per-second=8388608"]).await;
    let volume = site.create("restored", Some(content(point))).await;
    let context = site.attach(&volume, &node, &block()).await.unwrap();
    let device = node.publish(&volume, &context, &block()).await.unwrap();

    let labels = format!("{{volume=\"{}\"}}", volume.volume_id);
    let total = format!("holdfast_volume_restored_bytes{labels}");
    let left = format!("holdfast_volume_to_hydrate_bytes{labels}");
    let mut left_before = DATA as f64;
    for _ in 0..2 {
        eventually("progress", || node.find_metric(&left).is_some_and(|left| left < left_before));
        left_before = node.metric(&left);
        node.restart().await;
        eventually("a look at what is left", || node.find_metric(&total).is_some());
        assert_eq!(node.metric(&total), DATA as f64);
        assert!(node.metric(&left) <= left_before, "what was copied is to be copied again");
    }
    eventually("the end of the copy", || node.find_metric(&left) == Some(0.0));
    assert_eq!(node.metric(&total), DATA as f64);
    let mut found = vec![0; DATA];
    File::open(&device).unwrap().read_exact_at(&mut found, 0).unwrap();
    assert!(found == random, "something else was read");
    node.unpublish(&volume).await.unwrap();
}
