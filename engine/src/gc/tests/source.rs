//! A volume that is cloned.

use std::sync::Arc;

use super::scene::{BLOCKS, Scene, deadline, host};
use crate::buffer::MemoryBuffer;
use crate::codec::Codec;
use crate::control::{CreateVolume, SourceSnapshot, publish};
use crate::gc::Collector;
use crate::host::{Host, OpenAs};
use crate::ids::{BLOCK_BYTES, SnapshotId, VolumeId};
use crate::log::{GrantMode, Op};
use crate::pool::{NewVolume, Pool};
use crate::store::Memory;
use crate::volume::Volume;

/// A volume in a pool with a snapshot that nothing but itself keeps, and its collector.
pub struct Source {
    pub scene: Scene,
    pub volume: Volume,
    pub snapshot: SnapshotId,
    pub collector: Collector,
    /// What the snapshot holds.
    pub model: Vec<u64>,
}

impl Source {
    pub async fn new() -> Self {
        let store = Memory::default();
        let (pool, _) = host(Arc::new(store.clone())).await;
        let mut scene = Scene::unencrypted(store).await;
        let new = NewVolume {
            name: "source".into(),
            size_bytes: BLOCKS * BLOCK_BYTES,
            parents: Vec::new(),
            codec: Codec::Raw,
            parameters: Default::default(),
        };
        pool.create_volume_json(scene.log.volume, &new, deadline()).await.unwrap();
        let volume = scene.open(scene.grant("a").await).await;
        scene.write(&volume, 0..64).await;
        let snapshot = volume.snapshot("s", "").await.unwrap();
        let model = scene.model.clone();
        scene.write(&volume, 0..64).await;
        volume.flush().await.unwrap();
        let collector = Collector::new(volume.clone());
        Self { scene, volume, snapshot, collector, model }
    }

    /// Deletes the snapshot, and everything that nothing else needs.
    pub async fn forget(&mut self) {
        self.volume.append(vec![Op::DeleteSnapshot { snapshot: self.snapshot }], false).await.unwrap();
        for _ in 0..4 {
            self.collector.round().await.unwrap();
        }
    }

    /// A clone of the snapshot.
    pub fn clone_in(&self, pool: &Arc<Pool>) -> CreateVolume {
        CreateVolume {
            name: "clone".into(),
            size_bytes: BLOCKS * BLOCK_BYTES,
            source: Some(SourceSnapshot {
                pool: Arc::clone(pool),
                volume: self.scene.log.volume,
                snapshot: self.snapshot,
            }),
            codec: Codec::Raw,
            parameters: Default::default(),
        }
    }

    /// A clone, opened by `host`.
    pub async fn opened(&self, host: &Host, pool: &Arc<Pool>, clone: VolumeId) -> Volume {
        let found = host.find(pool, clone, deadline()).await.unwrap();
        let grant = publish(&found.log, "b", GrantMode::ReadWrite, deadline()).await.unwrap();
        let buffer = Arc::new(MemoryBuffer::new(32 << 20));
        let open = OpenAs { grant, endpoint: String::new(), buffer, limits: self.scene.limits.clone() };
        host.open(&found, open, deadline()).await.unwrap()
    }
}
