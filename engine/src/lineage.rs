//! Where the objects of a volume and of its ancestors are read: a clone's map names pages and segments of the volumes
//! it descends from, in their pools and under their keys.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, RwLock};

use crate::codec::DataKey;
use crate::ids::VolumeId;
use crate::map::Origin;
use crate::store::Store;

/// How one volume's objects are read.
#[derive(Debug, Clone)]
pub struct Source {
    /// The store of its pool.
    pub store: Arc<dyn Store>,
    /// Its data key, in an encrypted pool.
    pub key: Option<DataKey>,
}

/// A volume and the data key that its objects are opened with. Says nothing of the key, and never leaves the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId([u8; 16]);

impl SourceId {
    /// Of `volume` under `key`. Without a key it is the volume's own id, which nobody can make one under a key equal.
    pub fn of(volume: VolumeId, key: Option<&DataKey>) -> Self {
        Self(key.map_or(volume.0, |key| key.id(volume)))
    }
}

/// A map or a segment names a volume whose pool is not loaded.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "volume {volume} is an ancestor whose pool is not loaded here; add the pool or the archive target it lives in"
)]
pub struct UnknownAncestor {
    /// The volume.
    pub volume: VolumeId,
}

/// The sources of a volume and of its ancestors.
#[derive(Debug, Clone, Default)]
pub struct Lineage {
    sources: Arc<RwLock<BTreeMap<VolumeId, (SourceId, Source)>>>,
}

impl Lineage {
    /// Adds a volume, or replaces how it is read (credentials change).
    pub fn insert(&self, volume: VolumeId, source: Source) {
        let id = SourceId::of(volume, source.key.as_ref());
        let mut sources = self.sources.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        sources.insert(volume, (id, source));
    }

    /// How `volume`'s objects are read.
    pub fn source(&self, volume: VolumeId) -> Result<Source, UnknownAncestor> {
        let sources = self.sources.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        sources.get(&volume).map(|(_, source)| source.clone()).ok_or(UnknownAncestor { volume })
    }

    /// Fails unless it is known how all of `origins` are read.
    pub fn reaches(&self, origins: &[Origin]) -> Result<(), UnknownAncestor> {
        origins.iter().try_for_each(|origin| self.source_id(origin.volume).map(drop))
    }

    /// What `volume`'s objects are opened with.
    pub fn source_id(&self, volume: VolumeId) -> Result<SourceId, UnknownAncestor> {
        let sources = self.sources.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        sources.get(&volume).map(|(id, _)| *id).ok_or(UnknownAncestor { volume })
    }
}
