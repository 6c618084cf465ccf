//! What an archive run moves when one block in a hundred has changed, and what a cold clone of an archive asks for.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use holdfast_engine::archive::{ArchiveRun, PointSource, Progress, archive};
use holdfast_engine::codec::UserKey;
use holdfast_engine::control::SourceSnapshot;
use holdfast_engine::env::Env;
use holdfast_engine::host::Host;
use holdfast_engine::ids::{Handle, SnapshotId, VolumeId};
use holdfast_engine::pool::{Pool, RequestKind};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::scene::{self, noise};

const MIB: u64 = 1 << 20;

/// Writes `mib` of data at random, archives them, changes one block in a hundred, archives again, and clones the point.
pub async fn measure(dir: &Path, mib: u64) -> Value {
    let key = UserKey::random(&*Env::system().entropy);
    let pool = scene::pool(dir, "pool", None).await;
    let target = scene::pool(dir, "target", Some(&key)).await;
    let host = scene::host(&pool, Some(&target));
    let size = mib * MIB;
    let id = scene::create(&host, &pool, "volume", size, None).await;
    let grant = scene::grant(&host, &pool, id).await;
    let volume = scene::open(&host, &pool, id, grant).await;
    for at in 0..mib {
        volume.write(at * MIB, noise(at, MIB as usize)).await.unwrap();
    }
    let first = volume.snapshot("first", "").await.unwrap();
    let full_begun = Instant::now();
    run(&scene::host(&pool, Some(&target)), &pool, &target, id, first, "point-1").await;
    let full = full_begun.elapsed();

    let blocks = size / 4096;
    let changed = blocks / 100;
    for number in 0..changed {
        // 37 is prime to the count of hundreds: every block of a hundred is met somewhere.
        let block = number * 100 + number * 37 % 100;
        volume.write(block * 4096, noise(!number, 4096)).await.unwrap();
    }
    let second = volume.snapshot("second", "").await.unwrap();
    let read = pool.requests(RequestKind::Get).bytes;
    let sent = target.requests(RequestKind::Put).bytes;
    let incremental_begun = Instant::now();
    let point = run(&scene::host(&pool, Some(&target)), &pool, &target, id, second, "point-2").await;
    let incremental = incremental_begun.elapsed();
    let read = pool.requests(RequestKind::Get).bytes - read;
    let sent = target.requests(RequestKind::Put).bytes - sent;

    // Another process, which knows nothing yet.
    let cold = scene::host(&pool, Some(&target));
    let Handle { volume: archived, snapshot, .. } = point;
    let source = SourceSnapshot { pool: Arc::clone(&target), volume: archived, snapshot: snapshot.unwrap() };
    let clone_begun = Instant::now();
    let clone = scene::create(&cold, &pool, "clone", size, Some(source)).await;
    let clone_time = clone_begun.elapsed();
    let grant = scene::grant(&cold, &pool, clone).await;
    let cold = scene::host(&pool, Some(&target));
    let gets = || pool.requests(RequestKind::Get).requests + target.requests(RequestKind::Get).requests;
    let before = gets();
    let opened = scene::open(&cold, &pool, clone, grant).await;
    let open_gets = gets() - before;
    let before = gets();
    assert_eq!(opened.read(8192, 4096).await.unwrap(), noise(0, MIB as usize).slice(8192..12288));
    let read_gets = gets() - before;
    json!({
        "changed_bytes": changed * 4096,
        "read_bytes": read,
        "sent_bytes": sent,
        "full_s": full.as_secs_f64(),
        "incremental_s": incremental.as_secs_f64(),
        "clone_ms": clone_time.as_secs_f64() * 1e3,
        "open_gets": open_gets,
        "first_read_gets": read_gets,
    })
}

async fn run(
    host: &Host,
    pool: &Arc<Pool>,
    target: &Arc<Pool>,
    volume: VolumeId,
    snapshot: SnapshotId,
    point: &str,
) -> Handle {
    let origin = PointSource {
        cluster_uid: "bench".into(),
        namespace: "bench".into(),
        claim_name: "data".into(),
        volume_mode: "Block".into(),
        fs_type: None,
    };
    let run = ArchiveRun {
        source: Handle { pool: pool.id(), volume, snapshot: Some(snapshot) },
        point: point.into(),
        origin,
        point_in_time: "2026-11-23T05:00:00Z".into(),
        expires_at: None,
        bytes_per_second: 0,
    };
    let (progress, _) = watch::channel(Progress::default());
    archive(host, target, &run, &progress).await.unwrap()
}
