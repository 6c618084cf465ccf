//! Volume names: `names/HASH/N`, which bind a name to a volume or unbind it.
//!
//! # Guarantees
//! - The bindings of a name are numbered without gaps, create-only and kept, so binding and unbinding are
//!   compare-and-swaps: of all who bind a free name one wins, and a put that lands late loses.
//! - Unbinding names the volume, so it cannot free a name that has been given to another volume since.
//! - [`Pool::list_volumes`] has one order for good; a volume that is bound throughout a listing is in it once.

use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::create::Created;
use super::{LIST_PAGE, PARALLEL_READS, Page, Pool, PoolError, layout};
use crate::codec::NAME_BYTES_MAX;
use crate::ids::{ObjectId, VolumeId};

/// A volume and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedVolume {
    /// Its name.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
}

/// The body of a binding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Binding {
    name: String,
    /// `None`: the name is free again.
    volume: Option<VolumeId>,
    nonce: ObjectId,
}

/// The newest binding of a name.
#[derive(Debug)]
struct Newest {
    number: u64,
    volume: Option<VolumeId>,
}

/// Checks what is to be the name of a volume, a snapshot or a node.
pub(super) fn check_name(name: &str) -> Result<(), PoolError> {
    let bad = |reason| Err(PoolError::BadName { name: name.chars().take(64).collect(), reason });
    match name {
        "" => bad("it is empty"),
        name if name.len() > NAME_BYTES_MAX => bad("it is longer than 1024 bytes"),
        name if name.chars().any(char::is_control) => bad("it contains control characters"),
        _ => Ok(()),
    }
}

impl Pool {
    /// Binds `name` to `volume` if it is free. Returns the volume that it is bound to now, by this call or before.
    pub async fn bind_volume_name(
        &self,
        name: &str,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<VolumeId, PoolError> {
        check_name(name)?;
        loop {
            let newest = self.newest_binding(name, deadline).await?;
            if let Some(Newest { volume: Some(bound), .. }) = newest {
                return Ok(bound);
            }
            if self.put_binding(name, newest.as_ref(), Some(volume), deadline).await? {
                return Ok(volume);
            }
        }
    }

    /// Frees `name` if it is bound to `volume`.
    pub async fn unbind_volume_name(
        &self,
        name: &str,
        volume: VolumeId,
        deadline: Instant,
    ) -> Result<(), PoolError> {
        loop {
            let newest = self.newest_binding(name, deadline).await?;
            if newest.as_ref().and_then(|newest| newest.volume) != Some(volume)
                || self.put_binding(name, newest.as_ref(), None, deadline).await?
            {
                return Ok(());
            }
        }
    }

    /// The volume that `name` is bound to.
    pub async fn volume_named(&self, name: &str, deadline: Instant) -> Result<Option<VolumeId>, PoolError> {
        Ok(self.newest_binding(name, deadline).await?.and_then(|newest| newest.volume))
    }

    /// Up to `limit` volumes that have names, in an order that does not change, from where [`Page::next`] says.
    pub async fn list_volumes(
        &self,
        from: Option<&str>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page<NamedVolume>, PoolError> {
        let mut items = Vec::new();
        let mut after = from.map(layout::after_bindings);
        // The last binding seen of a name whose later bindings may stand in the next part of the listing.
        let mut open: Option<(String, u64)> = None;
        loop {
            let listed = self.list(layout::NAMES, after.as_deref(), LIST_PAGE, deadline).await?;
            let complete = listed.len() < LIST_PAGE;
            let mut newest = Vec::new();
            for (hash, number) in listed.iter().filter_map(|found| layout::binding_in(&found.key)) {
                match &mut open {
                    Some((of, last)) if of == hash => *last = number,
                    _ => newest.extend(open.replace((hash.to_owned(), number))),
                }
            }
            if complete {
                newest.extend(open.take());
            }
            let mut bindings = stream::iter(newest)
                .map(async |(hash, number)| {
                    let key = layout::binding(&hash, number);
                    self.read::<Binding>(&key, deadline).await.map(|binding| (hash, binding))
                })
                .buffered(PARALLEL_READS);
            while let Some((hash, binding)) = bindings.try_next().await? {
                let Some(Binding { name, volume: Some(volume), .. }) = binding else { continue };
                items.push(NamedVolume { name, volume });
                if items.len() >= limit {
                    return Ok(Page { items, next: Some(hash) });
                }
            }
            if complete {
                return Ok(Page { items, next: None });
            }
            after = listed.into_iter().next_back().map(|found| found.key);
        }
    }

    async fn newest_binding(&self, name: &str, deadline: Instant) -> Result<Option<Newest>, PoolError> {
        let prefix = layout::bindings(&layout::name_hash(name));
        let mut last: Option<String> = None;
        loop {
            let listed = self.list(&prefix, last.as_deref(), LIST_PAGE, deadline).await?;
            let complete = listed.len() < LIST_PAGE;
            last = listed.into_iter().next_back().map(|found| found.key).or(last);
            if complete {
                break;
            }
        }
        let Some(key) = last else { return Ok(None) };
        let malformed = |reason: &str| PoolError::Malformed {
            pool: self.name.clone(),
            key: key.clone(),
            reason: reason.to_owned(),
        };
        let (_, number) =
            layout::binding_in(&key).ok_or_else(|| malformed("its key does not end in a number"))?;
        let binding: Binding = self.read(&key, deadline).await?.ok_or_else(|| malformed("it was deleted"))?;
        if binding.name != name {
            return Err(malformed("it binds another name"));
        }
        Ok(Some(Newest { number, volume: binding.volume }))
    }

    /// Puts the binding after `newest`; false if another has put one there.
    async fn put_binding(
        &self,
        name: &str,
        newest: Option<&Newest>,
        volume: Option<VolumeId>,
        deadline: Instant,
    ) -> Result<bool, PoolError> {
        let number = newest.map_or(1, |newest| newest.number + 1);
        let key = layout::binding(&layout::name_hash(name), number);
        let nonce = ObjectId::random(&*self.env.entropy);
        let binding = Binding { name: name.to_owned(), volume, nonce };
        Ok(self.create(&key, &binding, deadline).await? == Created::Ours)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use futures::future::join_all;
    use proptest::prelude::*;

    use super::*;
    use crate::pool::testing;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[tokio::test]
    async fn of_all_who_bind_a_name_one_wins_and_all_learn_who() {
        let pool = testing::pool().await;
        let winners =
            join_all((1..=16).map(|n| pool.bind_volume_name("data", VolumeId([n; 16]), soon()))).await;
        let winners: BTreeSet<_> = winners.into_iter().map(Result::unwrap).collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(pool.volume_named("data", soon()).await.unwrap(), winners.first().copied());
    }

    #[tokio::test]
    async fn unbinding_frees_a_name_only_for_the_volume_that_has_it() {
        let pool = testing::pool().await;
        let (first, second) = (VolumeId([1; 16]), VolumeId([2; 16]));
        pool.bind_volume_name("data", first, soon()).await.unwrap();
        pool.unbind_volume_name("data", second, soon()).await.unwrap();
        assert_eq!(pool.volume_named("data", soon()).await.unwrap(), Some(first));
        pool.unbind_volume_name("data", first, soon()).await.unwrap();
        assert_eq!(pool.volume_named("data", soon()).await.unwrap(), None);
        assert_eq!(pool.bind_volume_name("data", second, soon()).await.unwrap(), second);
        pool.unbind_volume_name("data", first, soon()).await.unwrap();
        assert_eq!(pool.volume_named("data", soon()).await.unwrap(), Some(second));
    }

    #[tokio::test]
    async fn names_that_cannot_be_names_are_refused() {
        let pool = testing::pool().await;
        for name in ["", "a\nb", &"x".repeat(NAME_BYTES_MAX + 1)] {
            let refused = pool.bind_volume_name(name, VolumeId([1; 16]), soon()).await;
            assert!(matches!(refused, Err(PoolError::BadName { .. })), "{name:?}");
        }
        assert!(pool.list_volumes(None, 10, soon()).await.unwrap().items.is_empty());
    }

    async fn listed(pool: &Pool, limit: usize) -> Vec<NamedVolume> {
        let (mut all, mut from) = (Vec::new(), None);
        loop {
            let page = pool.list_volumes(from.as_deref(), limit, soon()).await.unwrap();
            assert!(page.items.len() <= limit);
            all.extend(page.items);
            from = page.next;
            if from.is_none() {
                return all;
            }
        }
    }

    #[tokio::test]
    async fn a_listing_crosses_the_pages_of_the_store() {
        let pool = testing::pool().await;
        // More bindings than one listing of the store returns, of few names: some name lies across the border.
        let names = ["a", "b", "c"];
        for round in 0..(LIST_PAGE as u64 / 4) {
            for name in names {
                let volume = VolumeId([name.as_bytes()[0]; 16]);
                let newest = Newest { number: 2 * round, volume: None };
                assert!(pool.put_binding(name, Some(&newest), None, soon()).await.unwrap());
                let newest = Newest { number: 2 * round + 1, volume: None };
                assert!(pool.put_binding(name, Some(&newest), Some(volume), soon()).await.unwrap());
            }
        }
        let found = listed(&pool, 2).await;
        let found: BTreeSet<_> = found.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(found, BTreeSet::from(names));
    }

    /// What one of several racing clients does to a name.
    #[derive(Debug, Clone)]
    enum Step {
        Bind(usize, u8),
        Unbind(usize, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let who = (0..3usize, 1..6u8);
        prop_oneof![
            who.clone().prop_map(|(name, volume)| Step::Bind(name, volume)),
            who.prop_map(|(name, volume)| Step::Unbind(name, volume))
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Clients race over a store that loses replies; afterwards the bindings of every name are a sequence in
        /// which each bind meets a free name and each unbind the volume it names, and all ways to look agree.
        #[test]
        fn bindings_stay_a_sequence_under_races(
            clients in prop::collection::vec(prop::collection::vec(step(), 1..8), 1..5),
            seed in any::<u64>(),
            limit in 1..4usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                const NAMES: [&str; 3] = ["a", "b", "c"];
                let pool = testing::flaky_pool(seed).await;
                join_all(clients.iter().map(async |steps| {
                    for step in steps {
                        match *step {
                            Step::Bind(name, volume) => {
                                pool.bind_volume_name(NAMES[name], VolumeId([volume; 16]), soon()).await.unwrap();
                            }
                            Step::Unbind(name, volume) => {
                                pool.unbind_volume_name(NAMES[name], VolumeId([volume; 16]), soon()).await.unwrap();
                            }
                        }
                    }
                }))
                .await;
                let mut expected = BTreeMap::new();
                for name in NAMES {
                    let mut bound = None;
                    for number in 1.. {
                        let key = layout::binding(&layout::name_hash(name), number);
                        let Some(binding) = pool.read::<Binding>(&key, soon()).await.unwrap() else { break };
                        assert_ne!(bound.is_some(), binding.volume.is_some(), "{name} {number}");
                        bound = binding.volume;
                    }
                    assert_eq!(pool.volume_named(name, soon()).await.unwrap(), bound);
                    expected.extend(bound.map(|volume| (name.to_owned(), volume)));
                }
                let found = listed(&pool, limit).await;
                assert_eq!(found.len(), expected.len());
                assert_eq!(found.into_iter().map(|v| (v.name, v.volume)).collect::<BTreeMap<_, _>>(), expected);
            });
        }
    }
}
