//! Verification: reading everything that a snapshot names, and checking it.

use std::sync::Arc;

use tokio::sync::watch;

use super::{ArchiveError, Progress};
use crate::host::Host;
use crate::ids::Handle;
use crate::pool::Pool;
use crate::salvage::Scope;

/// A range that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// What is wrong.
    pub reason: String,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes of blocks read and found right.
    pub good_bytes: u64,
    /// Ranges that cannot be read, in order.
    pub damaged: Vec<Damage>,
}

/// Reads every object that a snapshot needs and checks it: a scrub of this one place. Damage is told and does not end
/// the verification; a store that does not answer does.
pub async fn verify(
    host: &Host,
    pool: &Arc<Pool>,
    handle: Handle,
    progress: &watch::Sender<Progress>,
) -> Result<Verified, ArchiveError> {
    let snapshot = handle.snapshot.ok_or(ArchiveError::NoSnapshot { handle })?;
    let tell = |seen: crate::salvage::Scrubbing| {
        progress.send_modify(|progress| {
            progress.transferred_bytes = seen.read_bytes;
            progress.total_bytes = seen.total_bytes;
        });
    };
    let scrubbed = host.scrub(pool, handle.volume, Scope::Snapshot(snapshot), &tell).await?;
    let whole = |reason| Damage { offset: 0, len: scrubbed.size_bytes, reason };
    let mut damaged: Vec<Damage> = scrubbed.unopenable.into_iter().map(whole).collect();
    for found in scrubbed.damage {
        let ranges = found.affects.into_iter();
        damaged.extend(ranges.map(|at| Damage {
            offset: at.offset,
            len: at.len,
            reason: found.reason.clone(),
        }));
    }
    damaged.sort();
    let bad_bytes: u64 = damaged.iter().map(|damage| damage.len).sum();
    Ok(Verified { good_bytes: scrubbed.mapped_bytes.saturating_sub(bad_bytes), damaged })
}
