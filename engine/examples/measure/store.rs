//! What a store does by itself, through the client that the engine uses.

use std::sync::Arc;
use std::time::Instant;

use futures::{StreamExt, stream};
use holdfast_engine::env::Env;
use holdfast_engine::ids::ObjectId;
use holdfast_engine::store::{PoolConfig, Store};
use serde_json::{Value, json};

use crate::scene::noise;

/// Bytes of a full segment.
const SEGMENT_BYTES: usize = 8 << 20;

fn connect(pool_file: &str) -> (Arc<dyn Store>, String) {
    let text = std::fs::read_to_string(pool_file).unwrap();
    let store = PoolConfig::parse(&text).unwrap().connect(&[]).unwrap();
    (store, format!("measure/{}", ObjectId::random(&*Env::system().entropy)))
}

/// How long a put of a block takes, one after the other.
pub async fn puts(pool_file: &str, count: u64) -> Value {
    let (store, place) = connect(pool_file);
    let body = noise(1, 4096);
    let mut micros = Vec::new();
    for number in 0..count {
        let begun = Instant::now();
        store.put_if_absent(&format!("{place}/{number}"), body.clone()).await.unwrap();
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    micros.sort_by(f64::total_cmp);
    json!({"put_p50_us": micros[micros.len() / 2]})
}

/// Bytes a second of puts and gets of whole segments, `parallel` at a time.
pub async fn bulk(pool_file: &str, objects: u64, parallel: u64) -> Value {
    let (store, place) = connect(pool_file);
    let bodies: Vec<_> = (0..4).map(|seed| noise(seed, SEGMENT_BYTES)).collect();
    let key = |number: u64| format!("{place}/{number}");
    let rate = |begun: Instant| (objects * SEGMENT_BYTES as u64) as f64 / begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let puts = stream::iter(0..objects).map(|number| {
        let (store, key, body) = (Arc::clone(&store), key(number), bodies[number as usize % 4].clone());
        tokio::spawn(async move { store.put_if_absent(&key, body).await.unwrap() })
    });
    puts.buffer_unordered(parallel as usize).for_each(|put| async { put.unwrap() }).await;
    let put = rate(begun);

    drop_page_cache();
    let begun = Instant::now();
    let gets = stream::iter(0..objects).map(|number| {
        let (store, key) = (Arc::clone(&store), key(number));
        tokio::spawn(async move { store.get(&key).await.unwrap().len() })
    });
    gets.buffer_unordered(parallel as usize)
        .for_each(|get| async { assert_eq!(get.unwrap(), SEGMENT_BYTES) })
        .await;
    let get = rate(begun);
    for number in 0..objects {
        store.delete(&key(number)).await.unwrap();
    }
    json!({"put_bytes_per_s": put, "get_bytes_per_s": get})
}

/// What was written must come from the disk again, where the system lets us ask for that.
fn drop_page_cache() {
    rustix::fs::sync();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "1") {
        eprintln!("the page cache stays warm: {error}");
    }
}
