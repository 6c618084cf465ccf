//! `volumes/VOL/parameters/N`: what was changed of a volume's parameters since its creation.
//!
//! # Guarantees
//! - Generations have consecutive numbers and are create-only and kept; the greatest one counts, and has all changes so
//!   far. So of two changes at one time the later has both, and everybody who reads afterwards agrees on that.
//! - A change to what is already so writes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::create::Created;
use super::{LIST_PAGE, Pool, PoolError, VolumeJson, layout};
use crate::ids::{ObjectId, VolumeId};

/// The body of `volumes/VOL/parameters/N`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Generation {
    /// The volume.
    volume: VolumeId,
    /// All parameters that differ from those of its creation, or did once.
    parameters: BTreeMap<String, String>,
    /// When it was made, in milliseconds since the Unix epoch.
    created_ms: u64,
    /// Random, so that no two generations are equal.
    nonce: ObjectId,
}

impl Pool {
    /// A volume's parameters as they are now: those of its description, with what was changed since.
    pub async fn parameters(
        &self,
        json: &VolumeJson,
        deadline: Instant,
    ) -> Result<BTreeMap<String, String>, PoolError> {
        let mut parameters = json.parameters.clone();
        if let Some((_, newest)) = self.newest_parameters(json.id, deadline).await? {
            parameters.extend(newest.parameters);
        }
        Ok(parameters)
    }

    /// Changes parameters of a volume.
    pub async fn change_parameters(
        &self,
        json: &VolumeJson,
        changes: &BTreeMap<String, String>,
        deadline: Instant,
    ) -> Result<(), PoolError> {
        loop {
            let newest = self.newest_parameters(json.id, deadline).await?;
            let (number, mut parameters) =
                newest.map_or((0, BTreeMap::new()), |(number, newest)| (number, newest.parameters));
            let holds = |(name, value): (&String, &String)| {
                parameters.get(name).or_else(|| json.parameters.get(name)) == Some(value)
            };
            if changes.iter().all(holds) {
                return Ok(());
            }
            parameters.extend(changes.iter().map(|(name, value)| (name.clone(), value.clone())));
            let generation = Generation {
                volume: json.id,
                parameters,
                created_ms: self.env.clock.now_ms(),
                nonce: ObjectId::random(&*self.env.entropy),
            };
            let key = layout::parameter_generation(json.id, number + 1);
            match self.create(&key, &generation, deadline).await? {
                Created::Ours => return Ok(()),
                // Another change at the same time: ours comes after it.
                Created::Theirs(_) => {}
            }
        }
    }

    async fn newest_parameters(
        &self,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<Option<(u64, Generation)>, PoolError> {
        let prefix = layout::parameter_generations(volume);
        let mut newest: Option<String> = None;
        loop {
            let listed = self.list(&prefix, newest.as_deref(), LIST_PAGE, deadline).await?;
            let more = listed.len() == LIST_PAGE;
            newest = listed.into_iter().next_back().map(|found| found.key).or(newest);
            if !more {
                break;
            }
        }
        let Some(key) = newest else { return Ok(None) };
        let malformed = |reason: &str| PoolError::Malformed {
            pool: self.name.clone(),
            key: key.clone(),
            reason: reason.into(),
        };
        let number = layout::number_in(&key).ok_or_else(|| malformed("its key has no number"))?.0;
        match self.read::<Generation>(&key, deadline).await? {
            Some(generation) if generation.volume == volume => Ok(Some((number, generation))),
            Some(_) => Err(malformed("it is of another volume")),
            // Deleted since it was listed: so is the volume.
            None => Err(PoolError::NoSuchVolume { pool: self.name.clone(), volume }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::codec::Codec;
    use crate::pool::{NewVolume, testing};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    async fn volume(pool: &Pool) -> VolumeJson {
        let new = NewVolume {
            name: "data".into(),
            size_bytes: 1 << 30,
            parents: Vec::new(),
            codec: Codec::Lz4,
            parameters: map(&[("a", "1"), ("b", "1")]),
        };
        pool.create_volume_json(VolumeId([7; 16]), &new, soon()).await.unwrap()
    }

    async fn generations(pool: &Pool) -> usize {
        let prefix = layout::parameter_generations(VolumeId([7; 16]));
        pool.list(&prefix, None, LIST_PAGE, soon()).await.unwrap().len()
    }

    #[tokio::test]
    async fn the_newest_change_counts_and_others_stay() {
        let pool = testing::pool().await;
        let json = volume(&pool).await;
        assert_eq!(pool.parameters(&json, soon()).await.unwrap(), json.parameters);
        for (changes, expected, made) in [
            (map(&[("a", "2")]), map(&[("a", "2"), ("b", "1")]), 1),
            (map(&[("a", "2"), ("b", "1")]), map(&[("a", "2"), ("b", "1")]), 1),
            (map(&[("c", "3")]), map(&[("a", "2"), ("b", "1"), ("c", "3")]), 2),
            (map(&[("a", "1")]), map(&[("a", "1"), ("b", "1"), ("c", "3")]), 3),
        ] {
            pool.change_parameters(&json, &changes, soon()).await.unwrap();
            assert_eq!(pool.parameters(&json, soon()).await.unwrap(), expected);
            assert_eq!(generations(&pool).await, made);
        }
    }

    #[tokio::test]
    async fn changes_at_one_time_are_all_made() {
        let pool = testing::pool().await;
        let json = volume(&pool).await;
        let changes: Vec<_> = (0..8).map(|n| map(&[(["p", "q", "r", "s"][n % 4], "x")])).collect();
        let made = changes.iter().map(|changes| pool.change_parameters(&json, changes, soon()));
        futures::future::try_join_all(made).await.unwrap();
        let expected = map(&[("a", "1"), ("b", "1"), ("p", "x"), ("q", "x"), ("r", "x"), ("s", "x")]);
        assert_eq!(pool.parameters(&json, soon()).await.unwrap(), expected);
        assert!(generations(&pool).await >= 4);
    }
}
