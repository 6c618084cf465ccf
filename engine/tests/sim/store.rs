//! The store, as one process reaches it.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_engine::store::{Listed, Store, StoreError};
use tokio::time::{Instant, sleep};

use crate::faults::{Fate, TIME_LIMIT};
use crate::process::{Process, Trap};
use crate::world::{Bucket, World};

/// A connection to a place in the store.
#[derive(Debug, Clone)]
pub struct SimStore {
    pub world: Arc<World>,
    pub process: Arc<Process>,
    pub bucket: Bucket,
}

fn unavailable(key: &str) -> StoreError {
    StoreError::Unavailable { key: key.into(), reason: "simulated".into() }
}

impl SimStore {
    /// One request. It is on its way independently of the process, which may die or be paused meanwhile.
    async fn request<T, F>(&self, what: &'static str, key: &str, apply: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&World, Bucket) -> Result<T, StoreError> + Send + Sync + 'static,
    {
        self.process.enter().await;
        let (world, name, key) = (Arc::clone(&self.world), self.process.name.clone(), key.to_owned());
        let faults = world.faults();
        let fate = faults.fate(&world.chance);
        let (there, back) = (faults.way(&world.chance), faults.way(&world.chance));
        let (apply, bucket) = (Arc::new(apply), self.bucket);
        let delivery = async move {
            let arrive = {
                let (world, key) = (Arc::clone(&world), key.clone());
                move || {
                    let reply = apply(&world, bucket);
                    let outcome = match &reply {
                        Ok(_) => "done",
                        Err(StoreError::NotFound { .. }) => "not found",
                        Err(StoreError::AlreadyExists { .. }) => "exists",
                        Err(_) => "failed",
                    };
                    world.note(format_args!("{name} {what} {bucket:?} {key}: {fate:?}, {outcome}"));
                    reply
                }
            };
            sleep(there).await;
            let reply = match fate {
                Fate::Done => arrive(),
                Fate::Lost => {
                    // The reply is what gets lost.
                    let _ = arrive();
                    Err(unavailable(&key))
                }
                Fate::Dropped => {
                    sleep(TIME_LIMIT).await;
                    Err(unavailable(&key))
                }
                Fate::Late(after) => {
                    tokio::spawn(async move {
                        sleep(after).await;
                        let _ = arrive();
                    });
                    sleep(TIME_LIMIT).await;
                    Err(unavailable(&key))
                }
                Fate::Duplicate(after) => {
                    let reply = arrive();
                    tokio::spawn(async move {
                        sleep(after).await;
                        let _ = arrive();
                    });
                    reply
                }
                Fate::Denied => Err(StoreError::Denied { key: key.clone(), reason: "simulated".into() }),
                Fate::Full => Err(StoreError::Full { key: key.clone() }),
                Fate::Refused => Err(StoreError::Refused { key: key.clone(), reason: "simulated".into() }),
            };
            sleep(back).await;
            reply
        };
        let reply = tokio::spawn(delivery);
        self.process.sent();
        let reply = reply.await.expect("a delivery does not panic");
        self.process.live().await;
        reply
    }
}

#[async_trait]
impl Store for SimStore {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let at = key.to_owned();
        match self.process.spring(key) {
            Some(Trap::Pause(pause)) => {
                self.world.note(format_args!("{} is paused before {key} for {pause:?}", self.process.name));
                self.process.pause_until(Instant::now() + pause);
            }
            Some(Trap::Die(after)) => {
                self.world
                    .note(format_args!("{} dies at {key}, which comes in {after:?}", self.process.name));
                let (world, bucket) = (Arc::clone(&self.world), self.bucket);
                tokio::spawn(async move {
                    sleep(after).await;
                    // Nobody is left to hear of it.
                    let _ = world.put(bucket, &at, &body);
                });
                self.process.kill();
                return std::future::pending().await;
            }
            None => {}
        }
        self.request("put", key, move |world, bucket| world.put(bucket, &at, &body)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let at = key.to_owned();
        self.request("get", key, move |world, bucket| world.get(bucket, &at)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let at = key.to_owned();
        self.request("get range", key, move |world, bucket| {
            let body = world.get(bucket, &at)?;
            if range.start > range.end || range.end > body.len() as u64 {
                let reason = format!("bytes {range:?} of {}", body.len());
                return Err(StoreError::Refused { key: at.clone(), reason });
            }
            Ok(body.slice(range.start as usize..range.end as usize))
        })
        .await
    }

    /// Not atomic: what is put or deleted between its beginning and its end shows or not.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let before = {
            let prefix = prefix.to_owned();
            self.request("begin list", &prefix.clone(), move |world, bucket| Ok(world.list(bucket, &prefix)))
                .await?
        };
        let at = prefix.to_owned();
        let mut found =
            self.request("end list", prefix, move |world, bucket| Ok(world.list(bucket, &at))).await?;
        for (key, listed) in &before {
            if !found.contains_key(key) && self.world.chance.hits(500) {
                found.insert(key.clone(), listed.clone());
            }
        }
        found.retain(|key, _| before.contains_key(key) || self.world.chance.hits(500));
        let listed = found.into_values().filter(|listed| after.is_none_or(|after| *listed.key > *after));
        Ok(listed.take(limit).collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let at = key.to_owned();
        self.request("delete", key, move |world, bucket| {
            world.delete(bucket, &at);
            Ok(())
        })
        .await
    }
}
