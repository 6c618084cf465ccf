//! Volumes that are attached nowhere, and deleted ones.

use std::sync::Arc;
use std::time::Duration;

use super::scene::{BLOCKS, Gate, Scene, deadline, host};
use crate::codec::Codec;
use crate::gc::{Detached, GcError, collect_detached, reclaim};
use crate::host::Host;
use crate::ids::{BLOCK_BYTES, ObjectId, PoolId, RecordNumber, VolumeId};
use crate::log::{ControlOnly, Log, Op};
use crate::pool::{NewVolume, Parent, Pool, layout};
use crate::store::{Memory, Store};

#[tokio::test(start_paused = true)]
async fn a_detached_volume_is_collected_after_the_grace_time() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..BLOCKS).await;
    volume.flush().await.unwrap();
    scene.write(&volume, 0..BLOCKS).await;
    volume.close().await.unwrap();
    scene.detach("a").await;
    scene.limits.grace = Duration::from_secs(3600);
    // The store's clock follows the tests'.
    let store = scene.store.clone();
    let clock = tokio::spawn(async move {
        for minute in 0.. {
            store.set_time_ms(minute * 60_000);
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    });
    let options = scene.options(Arc::new(scene.store.clone()), ObjectId::NONE);
    let outcome = collect_detached(&scene.log, "job", options, deadline()).await.unwrap();
    clock.abort();
    assert!(
        matches!(outcome, Detached::Collected(round) if round.deleted > 8 && round.left == 0),
        "{outcome:?}"
    );
    assert!(scene.control().await.grant.is_none());
    assert!(scene.stored_bytes().await < BLOCKS * BLOCK_BYTES * 5 / 4);
    scene.check_reopened(scene.grant("b").await).await;
}

#[tokio::test(start_paused = true)]
async fn a_detached_collection_leaves_three_records_for_ever() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..BLOCKS).await;
    volume.close().await.unwrap();
    scene.detach("a").await;
    let before = scene.log.replay(&mut ControlOnly, deadline()).await.unwrap().next;
    let options = scene.options(Arc::new(scene.store.clone()), ObjectId::NONE);
    collect_detached(&scene.log, "job", options, deadline()).await.unwrap();
    let after = scene.log.replay(&mut ControlOnly, deadline()).await.unwrap();
    let mut kept = 0;
    for number in before.0..after.next.0 {
        let record = scene.log.get(RecordNumber(number), deadline()).await.unwrap();
        kept += usize::from(record.is_some_and(|record| record.is_kept()));
    }
    // Grant; Open; Close and Revoke.
    assert_eq!(kept, 3);
    assert!(after.control.grant.is_none() && after.control.session.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_detached_collection_gives_way_to_a_publish() {
    let mut scene = Scene::new().await;
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..64).await;
    volume.flush().await.unwrap();
    scene.write(&volume, 0..64).await;
    volume.close().await.unwrap();
    scene.detach("a").await;
    scene.limits.grace = Duration::from_secs(3600);
    let options = scene.options(Arc::new(scene.store.clone()), ObjectId::NONE);
    let log = scene.log.clone();
    let collecting = tokio::spawn(async move { collect_detached(&log, "job", options, deadline()).await });
    // It waits for the grace time when this sleep ends.
    tokio::time::sleep(Duration::from_secs(60)).await;
    scene.store.set_time_ms(2 * 3_600_000);
    let volume = scene.open(scene.grant("b").await).await;
    scene.write(&volume, 32..96).await;
    volume.flush().await.unwrap();
    assert_eq!(collecting.await.unwrap().unwrap(), Detached::Attached);
    scene.check(&volume).await;
    let options = scene.options(Arc::new(scene.store.clone()), ObjectId::NONE);
    let refused = collect_detached(&scene.log, "job", options, deadline()).await.unwrap();
    assert_eq!(refused, Detached::Attached);
    volume.flush().await.unwrap();
}

struct Deleted {
    scene: Scene,
    host: Host,
    pool: Arc<Pool>,
    parent: Parent,
}

/// A deleted volume in a pool, with a pin on what it was cloned from.
async fn deleted() -> Deleted {
    let store = Memory::default();
    let (pool, host) = host(Arc::new(store.clone())).await;
    let mut scene = Scene::unencrypted(store).await;
    let parent = Parent { pool: pool.id(), volume: VolumeId([3; 16]), snapshot: crate::ids::SnapshotId(5) };
    let new = NewVolume {
        name: "data".into(),
        size_bytes: 1 << 20,
        parents: vec![parent],
        codec: Codec::Lz4,
        parameters: Default::default(),
    };
    pool.create_volume_json(scene.log.volume, &new, deadline()).await.unwrap();
    pool.put_pin(parent.volume, parent.snapshot, scene.log.volume, PoolId([1; 16]), deadline())
        .await
        .unwrap();
    let volume = scene.open(scene.grant("a").await).await;
    scene.write(&volume, 0..64).await;
    scene.scatter(&volume, 20, 2).await;
    volume.close().await.unwrap();
    scene.detach("a").await;
    Deleted { scene, host, pool, parent }
}

impl Deleted {
    async fn delete(&self) {
        self.scene.append(ObjectId::NONE, vec![Op::Maintain, Op::Dead]).await;
    }

    async fn reclaim_through(&self, store: Arc<dyn Store>) -> Result<(), GcError> {
        let log = Log { store, ..self.scene.log.clone() };
        reclaim(&self.pool, &self.host.pools, &log, deadline()).await
    }

    async fn reclaim(&self) -> Result<(), GcError> {
        self.reclaim_through(Arc::new(self.scene.store.clone())).await
    }

    async fn left(&self) -> Vec<String> {
        self.scene.keys(&layout::volume(self.scene.log.volume)).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_is_removed_whole_with_its_pins() {
    let deleted = deleted().await;
    let refused = deleted.reclaim().await;
    assert!(matches!(refused, Err(GcError::Needed { .. })), "{refused:?}");
    deleted.delete().await;
    deleted.reclaim().await.unwrap();
    assert!(deleted.left().await.is_empty());
    assert!(deleted.pool.pins(deleted.parent.volume, deadline()).await.unwrap().is_empty());
    // Repeated, it finds nothing to do.
    deleted.reclaim().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_stays_while_a_snapshot_or_a_pin_needs_it() {
    let mut deleted = deleted().await;
    let grant = deleted.scene.grant("a").await;
    let volume = deleted.scene.open(grant).await;
    let snapshot = volume.snapshot("s", "").await.unwrap();
    volume.close().await.unwrap();
    deleted.scene.detach("a").await;
    deleted.delete().await;
    assert!(matches!(deleted.reclaim().await, Err(GcError::Needed { .. })));

    let owner = VolumeId([9; 16]);
    let pin = layout::pin(deleted.scene.log.volume, owner, snapshot);
    let pool = &deleted.pool;
    pool.put_pin(deleted.scene.log.volume, snapshot, owner, pool.id(), deadline()).await.unwrap();
    deleted.scene.append(ObjectId::NONE, vec![Op::Maintain, Op::DeleteSnapshot { snapshot }]).await;
    let collect = async |scene: &Scene| {
        let options = scene.options(Arc::new(scene.store.clone()), ObjectId::NONE);
        collect_detached(&scene.log, "job", options, deadline()).await.unwrap()
    };
    assert!(matches!(collect(&deleted.scene).await, Detached::Collected(_)));
    let model = std::mem::take(&mut deleted.scene.model);
    deleted.scene.check_snapshot(snapshot, &model).await;
    assert!(matches!(deleted.reclaim().await, Err(GcError::Needed { .. })));

    // The controller finds it once the pin is gone.
    let host = &deleted.host;
    // The ancestor's pin lies in the pool as well.
    let mut after = None;
    let mut found = Vec::new();
    while let Some(volume) = host.volume_after(&deleted.pool, after, deadline()).await.unwrap() {
        found.push(volume);
        after = Some(volume);
    }
    let volume = deleted.scene.log.volume;
    assert_eq!(found.len(), 2);
    assert!(found.contains(&volume) && found.contains(&deleted.parent.volume));
    let tend = || host.tend(&deleted.pool, volume, None, deleted.scene.limits.clone(), deadline());
    assert_eq!(tend().await.unwrap(), Some(deleted.scene.control().await.last));
    deleted.scene.store.delete(&pin).await.unwrap();
    assert_eq!(tend().await.unwrap(), None);
    assert!(deleted.left().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_died_anywhere_is_finished_by_the_next() {
    for stop_at in 0.. {
        let deleted = deleted().await;
        deleted.delete().await;
        let gate = Gate::new(&deleted.scene.store, stop_at, "");
        let died = tokio::select! {
            biased;
            outcome = deleted.reclaim_through(gate.clone()) => {
                outcome.unwrap();
                false
            }
            () = gate.arrived.notified() => true,
        };
        if !died {
            assert!(stop_at > 20, "only {stop_at} calls");
            break;
        }
        // Who looks meanwhile finds a deleted volume, or none.
        let control = deleted.scene.control().await;
        assert!(control.dead || control.last.is_none() && deleted.left().await.len() <= 1);
        deleted.reclaim().await.unwrap();
        assert!(deleted.left().await.is_empty(), "after {stop_at} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_under_way_and_one_given_up_are_left_alone() {
    let deleted = deleted().await;
    let (pool, volume) = (&deleted.pool, VolumeId([4; 16]));
    let new = NewVolume {
        name: "new".into(),
        size_bytes: 1 << 20,
        parents: Vec::new(),
        codec: Codec::Lz4,
        parameters: Default::default(),
    };
    pool.bind_volume_name("new", volume, deadline()).await.unwrap();
    pool.create_volume_json(volume, &new, deadline()).await.unwrap();
    let log = Log { volume, ..deleted.scene.log.clone() };
    let reclaimed = reclaim(pool, &deleted.host.pools, &log, deadline()).await;
    assert!(matches!(reclaimed, Err(GcError::Needed { .. })), "{reclaimed:?}");
    let mut given_up = deleted.scene;
    given_up.log = log;
    given_up.append(ObjectId::NONE, vec![Op::Dead]).await;
    reclaim(pool, &deleted.host.pools, &given_up.log, deadline()).await.unwrap();
    assert!(given_up.control().await.dead);
}
