//! How many objects writing takes.

use std::ops::Range;
use std::sync::Mutex;

use super::*;
use crate::pool::layout;
use crate::store::{Listed, StoreError};
use crate::testing::content;

/// Notes what is put. Segments are forgotten: they are not read here.
#[derive(Debug)]
struct Counting {
    inner: Memory,
    segments: String,
    puts: Mutex<Vec<String>>,
}

#[async_trait]
impl Store for Counting {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.puts.lock().unwrap().push(key.to_owned());
        if key.starts_with(&self.segments) {
            return Ok(());
        }
        self.inner.put_if_absent(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
}

/// Random writes are an extent each, so that checkpoints of them have the most pages there can be.
#[tokio::test]
async fn random_writes_take_few_puts() {
    const SIZE: u64 = 4 << 30;
    const WRITES: u64 = 1 << 19;
    let mut scene = Scene::of_size(SIZE).await;
    let volume = scene.log.volume;
    let (segments, puts) = (layout::segments(volume), Mutex::default());
    let store = Arc::new(Counting { inner: scene.store.clone(), segments, puts });
    scene.log.store = Arc::clone(&store) as Arc<dyn Store>;
    let grant = scene.grant("a").await;
    let options = OpenOptions { limits: Limits::default(), ..scene.options(grant, buffer()) };
    let open = Volume::open(scene.log.clone(), options, deadline()).await.unwrap();
    store.puts.lock().unwrap().clear();
    for number in 0..WRITES {
        let block = number * 2_654_435_761 % (SIZE / BLOCK_BYTES);
        open.write(block * BLOCK_BYTES, content(number, 1).into()).await.unwrap();
    }
    open.flush().await.unwrap();
    open.abandon();
    let puts = store.puts.lock().unwrap();
    let below = |prefix: String| puts.iter().filter(|key| key.starts_with(&prefix)).count() as u64;
    let (pages, roots) = (below(layout::maps(volume)), below(layout::roots(volume)));
    assert!(roots > 1, "several checkpoints were written");
    let eights = WRITES * BLOCK_BYTES / (8 * MIB);
    assert!((pages + roots) * 20 <= eights, "{pages} of pages and {roots} roots for {eights} times 8 MiB");
    let all = puts.len() as u64;
    assert!(all * 10 <= eights * 11, "{all} puts for {eights} times 8 MiB");
}
