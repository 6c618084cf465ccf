//! What volumes build on, asked of every store: one in memory, a directory, and the ones that the environment names.
//!
//! `HOLDFAST_TEST_STORES` and `HOLDFAST_TEST_UNSOUND_STORES` are directories of pool files: of stores that must pass
//! all this, and of stores that must be refused. Every run works below a prefix of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_engine::codec::UserKey;
use holdfast_engine::env::Env;
use holdfast_engine::ids::{ObjectId, VolumeId};
use holdfast_engine::pool::{Access, Pool, PoolError, RequestKind};
use holdfast_engine::store::{Directory, Memory, PoolConfig, Store, StoreError, UnfitStore, self_test};
use tokio::time::Instant;

/// A store under test.
struct Subject {
    name: String,
    store: Arc<dyn Store>,
    /// Removed when the test is over.
    _directory: Option<tempfile::TempDir>,
}

/// The pool files in the directory that the variable `name` names, each with a prefix of its own.
fn configured(name: &str) -> Vec<(String, PoolConfig)> {
    let Some(directory) = std::env::var_os(name).map(PathBuf::from) else { return Vec::new() };
    let entries = std::fs::read_dir(&directory).expect("the directory of pool files can be read");
    let configured: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("the directory of pool files can be read").path();
            let text = std::fs::read_to_string(&path).expect("a pool file can be read");
            let mut config = PoolConfig::parse(&text).expect("a pool file is valid");
            config.url = format!("{}/{}", config.url, ObjectId::random(&*Env::system().entropy));
            (path.file_stem().expect("a pool file has a name").to_string_lossy().into_owned(), config)
        })
        .collect();
    assert!(!configured.is_empty(), "{} holds no pool file", directory.display());
    configured
}

fn subjects() -> Vec<Subject> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut subjects = vec![
        Subject { name: "memory".into(), store: Arc::new(Memory::default()), _directory: None },
        Subject {
            name: "directory".into(),
            store: Arc::new(Directory::new(directory.path().to_owned())),
            _directory: Some(directory),
        },
    ];
    subjects.extend(configured("HOLDFAST_TEST_STORES").into_iter().map(|(name, config)| Subject {
        name,
        store: config.connect(&[]).expect("a configured store can be connected to"),
        _directory: None,
    }));
    subjects
}

fn body(fill: u8, len: usize) -> Bytes {
    Bytes::from(vec![fill; len])
}

/// The keys below `prefix`, asked for `limit` at a time.
async fn keys(store: &dyn Store, prefix: &str, limit: usize) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    loop {
        let page = store.list(prefix, keys.last().map(String::as_str), limit).await.unwrap();
        let complete = page.len() < limit;
        assert!(page.len() <= limit);
        keys.extend(page.into_iter().map(|found| found.key));
        if complete {
            return keys;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stores_let_one_of_many_creators_win() {
    for Subject { name, store, .. } in subjects() {
        for round in 0..4 {
            let key = format!("volumes/v/log/{round:020}");
            let racers = (0..32u8).map(|racer| {
                let (store, key) = (Arc::clone(&store), key.clone());
                tokio::spawn(async move { store.put_if_absent(&key, body(racer, 5000)).await })
            });
            let outcomes: Vec<_> = join_all(racers).await.into_iter().map(Result::unwrap).collect();
            let winners: Vec<u8> = (0..32).filter(|racer| outcomes[usize::from(*racer)].is_ok()).collect();
            assert_eq!(winners.len(), 1, "{name}: {outcomes:?}");
            assert_eq!(store.get(&key).await.unwrap(), body(winners[0], 5000), "{name}");
            for outcome in outcomes.into_iter().filter_map(Result::err) {
                assert!(
                    matches!(&outcome, StoreError::AlreadyExists { key: of } if *of == key),
                    "{name}: {outcome}"
                );
            }
        }
    }
}

#[tokio::test]
async fn stores_list_in_key_order_and_in_parts() {
    // The dot and the digit lie on either side of the slash in key order.
    let mut expected: Vec<String> = (0..23).map(|n| format!("a/b/{n:020}")).collect();
    expected.extend(["a/b.c", "a/b/d/e", "a/b0", "a/c", "b"].map(str::to_owned));
    for Subject { name, store, .. } in subjects() {
        for key in expected.iter().rev() {
            store.put_if_absent(key, body(1, 7)).await.unwrap();
        }
        expected.sort();
        let below: Vec<&String> = expected.iter().filter(|key| key.starts_with("a/b/")).collect();
        for limit in [1, 5, 12, 1000] {
            assert_eq!(keys(&*store, "", limit).await, expected, "{name} by {limit}");
            assert!(keys(&*store, "a/b/", limit).await.iter().eq(below.iter().copied()), "{name} by {limit}");
        }
        assert_eq!(keys(&*store, "a/b/000000000000000000", 5).await.len(), 23, "{name}");
        assert!(keys(&*store, "a/b/0000000000000000001", 5).await.iter().eq(&expected[11..21]), "{name}");
        assert!(keys(&*store, "nothing/", 5).await.is_empty(), "{name}");
        let first = store.list("a/b/", None, 1).await.unwrap().remove(0);
        assert_eq!(first.size_bytes, 7, "{name}");
        let after_all = store.list("a/b/", Some("a/b0"), 5).await.unwrap();
        assert!(after_all.is_empty(), "{name}: {after_all:?}");
        let from_before = store.list("a/b/", Some("a/a"), 1).await.unwrap();
        assert_eq!(from_before[0].key, *below[0], "{name}");
    }
}

#[tokio::test]
async fn stores_give_ranges_of_objects_as_large_as_segments() {
    for Subject { name, store, .. } in subjects() {
        let whole: Bytes = (0..8usize << 20).map(|n| (n / 4096) as u8 ^ n as u8).collect::<Vec<_>>().into();
        store.put_if_absent("seg/a", whole.clone()).await.unwrap();
        assert!(store.get("seg/a").await.unwrap() == whole, "{name}");
        for range in [0..1, 72..4096, (8 << 20) - 17..8 << 20, 1 << 20..3 << 20] {
            let bytes = store.get_range("seg/a", range.clone()).await.unwrap();
            assert!(bytes == whole.slice(range.start as usize..range.end as usize), "{name} {range:?}");
        }
        let beyond = store.get_range("seg/a", (8 << 20) - 1..(8 << 20) + 1).await;
        assert!(beyond.is_err(), "{name}: a range that ends beyond the object was answered");
        let missing = store.get_range("seg/b", 0..1).await;
        assert!(matches!(missing, Err(StoreError::NotFound { .. })), "{name}: {missing:?}");
    }
}

#[tokio::test]
async fn stores_delete_what_is_there_and_what_is_not() {
    for Subject { name, store, .. } in subjects() {
        store.put_if_absent("seg/a", body(1, 1)).await.unwrap();
        for _ in 0..2 {
            store.delete("seg/a").await.unwrap();
        }
        let gone = store.get("seg/a").await;
        assert!(matches!(&gone, Err(StoreError::NotFound { key }) if key == "seg/a"), "{name}: {gone:?}");
        assert!(keys(&*store, "seg/", 10).await.is_empty(), "{name}");
        store.put_if_absent("seg/a", body(2, 1)).await.unwrap();
        assert_eq!(store.get("seg/a").await.unwrap(), body(2, 1), "{name}");
    }
}

#[tokio::test]
async fn stores_that_are_sound_pass_the_self_test_and_keep_nothing_of_it() {
    for Subject { name, store, .. } in subjects() {
        self_test(&*store, &Env::system()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(keys(&*store, "", 10).await.is_empty(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stores_hold_pools_whose_names_stay_single_under_races() {
    for Subject { name, store, .. } in subjects() {
        let env = Env::system();
        let key = UserKey::random(&*env.entropy);
        let hosts = join_all((0..4).map(|host| {
            let (store, key, env) = (Arc::clone(&store), &key, env.clone());
            async move {
                Pool::over(&format!("host{host}"), "test", store, Some(key), Access::ReadWrite, env)
                    .await
                    .unwrap()
            }
        }))
        .await;
        assert!(hosts.iter().all(|pool| pool.id() == hosts[0].id()), "{name}");
        let deadline = Instant::now() + Duration::from_secs(60);
        for round in 0..3u8 {
            let bound = join_all(hosts.iter().zip(1..).map(async |(pool, host)| {
                let volume = VolumeId([16 * round + host; 16]);
                pool.bind_volume_name("data", volume, deadline).await.unwrap()
            }))
            .await;
            assert!(bound.iter().all(|volume| *volume == bound[0]), "{name}: {bound:?}");
            let listed = hosts[0].list_volumes(None, 10, deadline).await.unwrap();
            assert_eq!((listed.items.len(), listed.items[0].volume), (1, bound[0]), "{name}");
            join_all(hosts.iter().map(|pool| pool.unbind_volume_name("data", bound[0], deadline))).await;
            assert_eq!(hosts[1].volume_named("data", deadline).await.unwrap(), None, "{name}");
        }
        let counts = hosts[0].requests(RequestKind::Put);
        assert!(counts.requests > 0 && counts.failures == 0, "{name}: {counts:?}");
    }
}

#[tokio::test]
async fn stores_that_are_unsound_are_refused_by_name() {
    for (name, config) in configured("HOLDFAST_TEST_UNSOUND_STORES") {
        let refused = Pool::open(&name, &config, &[], Access::ReadWrite, Env::system()).await;
        match refused {
            Err(PoolError::Unfit { pool, url, reason: UnfitStore::Breaks { promise } }) => {
                assert_eq!((pool, url), (name.clone(), config.url), "{promise}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}
