//! How many bytes the objects of a pool take: a listing of all of them, made only as often as it is cheap.

use std::time::Duration;

use holdfast_engine::pool::Pool;
use holdfast_engine::store::StoreError;
use tokio::time::Instant;

/// Where nearly all objects of a pool are.
const VOLUMES: &str = "volumes/";
/// Objects asked for in one listing.
const PAGE: usize = 1000;
/// The longest that measuring may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Measuring takes at most one part of the time in so many, and is made no more often than this.
const SHARE: u32 = 100;
const REST: Duration = Duration::from_secs(60);

/// A measurement, and when the next is due.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// The bytes; `None` when the pool has too many objects to measure.
    pub bytes: Option<u64>,
    due: Instant,
}

impl Size {
    /// Whether it is time to measure again.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }
}

/// Measures.
pub async fn measure(pool: &Pool) -> Result<Size, StoreError> {
    let started = Instant::now();
    let bytes = match tokio::time::timeout(LIMIT, sum(pool)).await {
        Ok(bytes) => Some(bytes?),
        Err(_) => None,
    };
    Ok(Size { bytes, due: Instant::now() + (started.elapsed() * SHARE).max(REST) })
}

async fn sum(pool: &Pool) -> Result<u64, StoreError> {
    let store = pool.store();
    let mut bytes = 0;
    let mut after: Option<String> = None;
    loop {
        let page = store.list(VOLUMES, after.as_deref(), PAGE).await?;
        bytes += page.iter().map(|object| object.size_bytes).sum::<u64>();
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            _ => return Ok(bytes),
        }
    }
}
