//! `volume.json`: what a volume is from its first day to its last. What changes is in its log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::create::Created;
use super::{DATA_KEYS_MAX, Pool, PoolError, layout};
use crate::codec::{Codec, DataKey, WrappedKey};
use crate::ids::{ObjectId, PoolId, SnapshotId, VolumeId};

/// A snapshot that a volume was cloned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Parent {
    /// The pool it lives in.
    pub pool: PoolId,
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// What the creator of a volume decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its size at first.
    pub size_bytes: u64,
    /// What it is cloned from: the source first, then what that descends from. Empty for an empty volume.
    pub parents: Vec<Parent>,
    /// How its data are compressed.
    pub codec: Codec,
    /// What the creator wants to find again; the engine does not read it.
    pub parameters: BTreeMap<String, String>,
}

/// The body of `volume.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeJson {
    /// The volume.
    pub id: VolumeId,
    /// The name it was created under.
    pub name: String,
    /// Its size at first; the log has the present one.
    pub size_bytes: u64,
    /// When it was described, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// What it was cloned from: the source first, then what that descends from.
    pub parents: Vec<Parent>,
    /// How its data are compressed.
    pub codec: Codec,
    /// The creator's own notes.
    pub parameters: BTreeMap<String, String>,
    /// The key of its data, wrapped by the pool's master key; absent if the pool is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_key: Option<WrappedKey>,
    /// Random, so that no two descriptions are equal.
    pub nonce: ObjectId,
}

impl Pool {
    /// Describes `volume` unless it is described already, and returns the description that is in force.
    pub async fn create_volume_json(
        &self,
        volume: VolumeId,
        new: &NewVolume,
        deadline: Instant,
    ) -> Result<VolumeJson, PoolError> {
        let entropy = &*self.env.entropy;
        let wrap = |master: &crate::codec::MasterKey| master.wrap(&DataKey::random(entropy), volume, entropy);
        let json = VolumeJson {
            id: volume,
            name: new.name.clone(),
            size_bytes: new.size_bytes,
            created_ms: self.env.clock.now_ms(),
            parents: new.parents.clone(),
            codec: new.codec,
            parameters: new.parameters.clone(),
            data_key: self.master.as_ref().map(wrap),
            nonce: ObjectId::random(entropy),
        };
        match self.create(&layout::volume_json(volume), &json, deadline).await? {
            Created::Ours => Ok(json),
            Created::Theirs(theirs) => self.description_of(volume, theirs),
        }
    }

    /// Reads a volume's description.
    pub async fn volume_json(&self, volume: VolumeId, deadline: Instant) -> Result<VolumeJson, PoolError> {
        let key = layout::volume_json(volume);
        let json: VolumeJson = self
            .read(&key, deadline)
            .await?
            .ok_or_else(|| PoolError::NoSuchVolume { pool: self.name.clone(), volume })?;
        self.description_of(volume, json)
    }

    /// `json`, if it is that of `volume`, in whose place it lay.
    fn description_of(&self, volume: VolumeId, json: VolumeJson) -> Result<VolumeJson, PoolError> {
        if json.id == volume {
            return Ok(json);
        }
        let reason = format!("it describes volume {}", json.id);
        Err(PoolError::Malformed { pool: self.name.clone(), key: layout::volume_json(volume), reason })
    }

    /// The key that a volume's description holds.
    pub(crate) fn key_of(&self, json: &VolumeJson) -> Result<Option<DataKey>, PoolError> {
        let missing = |reason: &str| PoolError::Malformed {
            pool: self.name.clone(),
            key: layout::volume_json(json.id),
            reason: reason.to_owned(),
        };
        let key = match (&self.master, &json.data_key) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(missing("it has a data key, although the pool is not encrypted")),
            (Some(_), None) => return Err(missing("it has no data key, although the pool is encrypted")),
            (Some(master), Some(wrapped)) => {
                master.unwrap(wrapped, json.id).map_err(|reason| self.key_error(reason))?
            }
        };
        let mut known = self.known_keys();
        if known.len() >= DATA_KEYS_MAX {
            known.clear();
        }
        known.insert(json.id, key.clone());
        Ok(Some(key))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::codec::{Identity, UserKey, decode_index, encode_index};
    use crate::env::Env;
    use crate::pool::{Access, testing};
    use crate::store::{Memory, Store};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn new() -> NewVolume {
        let parent = Parent { pool: PoolId([1; 16]), volume: VolumeId([2; 16]), snapshot: SnapshotId(0x1f) };
        NewVolume {
            name: "data".into(),
            size_bytes: 1 << 30,
            parents: vec![parent],
            codec: Codec::Zstd,
            parameters: BTreeMap::from([("a".into(), "b".into())]),
        }
    }

    #[tokio::test]
    async fn the_first_description_stays_in_force() {
        let pool = testing::pool().await;
        let volume = VolumeId([7; 16]);
        assert!(matches!(pool.volume_json(volume, soon()).await, Err(PoolError::NoSuchVolume { .. })));
        let first = pool.create_volume_json(volume, &new(), soon()).await.unwrap();
        let other = NewVolume { size_bytes: 1, ..new() };
        assert_eq!(pool.create_volume_json(volume, &other, soon()).await.unwrap(), first);
        assert_eq!(pool.volume_json(volume, soon()).await.unwrap(), first);
        assert_eq!((first.size_bytes, first.codec, first.data_key), (1 << 30, Codec::Zstd, None));
    }

    #[tokio::test]
    async fn a_data_key_is_the_same_for_all_and_lies_in_the_store_only_wrapped() {
        let (store, env) = (Memory::default(), Env::system());
        let key = UserKey::random(&*env.entropy);
        let open = async || {
            let store = Arc::new(store.clone());
            Pool::over("p", "memory", store, Some(&key), Access::ReadWrite, env.clone()).await.unwrap()
        };
        let (creator, reader) = (open().await, open().await);
        let volume = VolumeId([7; 16]);
        let json = creator.create_volume_json(volume, &new(), soon()).await.unwrap();
        let wrapped = json.data_key.unwrap();
        let creators = creator.data_key(volume, soon()).await.unwrap();
        let readers = reader.data_key(volume, soon()).await.unwrap();
        assert!(creators.is_some() && readers.is_some());
        let id = ObjectId([9; 16]);
        let sealed = encode_index(Identity { volume, id, session: id }, &[], creators.as_ref()).unwrap();
        assert_eq!(decode_index(&sealed, volume, id, readers.as_ref()).unwrap(), []);
        let body = store.get(&layout::volume_json(volume)).await.unwrap();
        assert!(
            String::from_utf8(body.to_vec()).unwrap().contains(&serde_json::to_string(&wrapped).unwrap())
        );
    }

    #[tokio::test]
    async fn a_description_at_another_volumes_place_is_refused() {
        let store = Memory::default();
        let shared = Arc::new(store.clone());
        let pool = Pool::over("p", "memory", shared, None, Access::ReadWrite, Env::system()).await.unwrap();
        pool.create_volume_json(VolumeId([7; 16]), &new(), soon()).await.unwrap();
        let body = store.get(&layout::volume_json(VolumeId([7; 16]))).await.unwrap();
        store.put_if_absent(&layout::volume_json(VolumeId([8; 16])), body).await.unwrap();
        let refused = pool.volume_json(VolumeId([8; 16]), soon()).await;
        assert!(matches!(refused, Err(PoolError::Malformed { .. })));
    }
}
