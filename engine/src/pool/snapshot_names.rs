//! Snapshot names: `snapshots/HASH`, which bind a name to the volume that has, or is about to have, the snapshot.
//!
//! # Guarantees
//! - Of all who bind a name one wins, so one name is never the snapshot of two volumes.
//! - A listing has one order for good.
//!
//! # Assumptions
//! A name that was freed is not used again for another volume while a request to free it may still be under way. The
//! callers' names are unique (Kubernetes builds them from UIDs).
//!
//! # Crash behaviour
//! A name is bound before its snapshot is cut and freed after it is deleted: a crash leaves a name whose volume does
//! not show the snapshot. Whoever lists looks into the volume's control state.

use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::create::Created;
use super::names::check_name;
use super::{PARALLEL_READS, Page, Pool, PoolError, layout};
use crate::ids::{ObjectId, VolumeId};

/// A snapshot's name and its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSnapshot {
    /// The name.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
}

/// The body of a binding.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Binding {
    name: String,
    volume: VolumeId,
    nonce: ObjectId,
}

impl Pool {
    /// Binds `name` to `volume` if it is free. Returns the volume that it is bound to now, by this call or before.
    pub async fn bind_snapshot_name(
        &self,
        name: &str,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<VolumeId, PoolError> {
        check_name(name)?;
        let nonce = ObjectId::random(&*self.env.entropy);
        let binding = Binding { name: name.to_owned(), volume, nonce };
        match self.create(&key(name), &binding, deadline).await? {
            Created::Ours => Ok(volume),
            Created::Theirs(theirs) => Ok(theirs.volume),
        }
    }

    /// Frees `name` if it is bound to `volume`.
    pub async fn unbind_snapshot_name(
        &self,
        name: &str,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<(), PoolError> {
        match self.snapshot_named(name, deadline).await? {
            Some(bound) if bound == volume => self.delete(&key(name), deadline).await,
            Some(_) | None => Ok(()),
        }
    }

    /// The volume that the snapshot name is bound to.
    pub async fn snapshot_named(&self, name: &str, deadline: Instant) -> Result<Option<VolumeId>, PoolError> {
        let binding: Option<Binding> = self.read(&key(name), deadline).await?;
        Ok(binding.map(|binding| binding.volume))
    }

    /// When the snapshot name was bound, in milliseconds by the store's own clock, if it is.
    pub async fn snapshot_name_put_at(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<u64>, PoolError> {
        let key = key(name);
        let listed = self.list(&key, None, 1, deadline).await?;
        Ok(listed.into_iter().find(|listed| listed.key == key).map(|listed| listed.modified_ms))
    }

    /// Up to `limit` snapshot names, in an order that does not change, from where [`Page::next`] says.
    pub async fn list_snapshot_names(
        &self,
        from: Option<&str>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page<NamedSnapshot>, PoolError> {
        let after = from.map(layout::snapshot_binding);
        let listed = self.list(layout::SNAPSHOTS, after.as_deref(), limit, deadline).await?;
        let last = listed.last().filter(|_| listed.len() == limit);
        let next = last.and_then(|last| layout::snapshot_hash_in(&last.key)).map(str::to_owned);
        // Collected, for a future that holds the closure is not Send for all lifetimes.
        let reads: Vec<_> = listed.iter().map(|found| self.read(&found.key, deadline)).collect();
        let bindings: Vec<Option<Binding>> =
            stream::iter(reads).buffered(PARALLEL_READS).try_collect().await?;
        // One that was freed meanwhile is gone.
        let named = bindings.into_iter().flatten();
        let items =
            named.map(|binding| NamedSnapshot { name: binding.name, volume: binding.volume }).collect();
        Ok(Page { items, next })
    }
}

fn key(name: &str) -> String {
    layout::snapshot_binding(&layout::name_hash(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use futures::future::join_all;

    use super::*;
    use crate::pool::testing;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[tokio::test(start_paused = true)]
    async fn one_name_is_never_the_snapshot_of_two_volumes() {
        for seed in 0..32 {
            let pool = testing::flaky_pool(seed).await;
            let bound =
                join_all((1..=8).map(|n| pool.bind_snapshot_name("s", VolumeId([n; 16]), soon()))).await;
            let bound: BTreeSet<_> = bound.into_iter().map(Result::unwrap).collect();
            assert_eq!(bound.len(), 1, "seed {seed}");
        }
    }

    #[tokio::test]
    async fn freeing_needs_the_right_volume() {
        let pool = testing::pool().await;
        let (first, second) = (VolumeId([1; 16]), VolumeId([2; 16]));
        pool.bind_snapshot_name("s", first, soon()).await.unwrap();
        pool.unbind_snapshot_name("s", second, soon()).await.unwrap();
        assert_eq!(pool.snapshot_named("s", soon()).await.unwrap(), Some(first));
        pool.unbind_snapshot_name("s", first, soon()).await.unwrap();
        pool.unbind_snapshot_name("s", first, soon()).await.unwrap();
        assert_eq!(pool.bind_snapshot_name("s", second, soon()).await.unwrap(), second);
    }

    #[tokio::test]
    async fn a_listing_in_parts_is_the_listing() {
        let pool = testing::pool().await;
        for n in 1..=7 {
            pool.bind_snapshot_name(&format!("s{n}"), VolumeId([n; 16]), soon()).await.unwrap();
        }
        let whole = pool.list_snapshot_names(None, 100, soon()).await.unwrap();
        assert_eq!((whole.items.len(), &whole.next), (7, &None));
        let (mut parts, mut from) = (Vec::new(), None);
        loop {
            let page = pool.list_snapshot_names(from.as_deref(), 3, soon()).await.unwrap();
            parts.extend(page.items);
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(parts, whole.items);
    }
}
