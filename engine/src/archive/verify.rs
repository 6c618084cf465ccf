//! Verification: reading everything that a snapshot names, and checking it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{ArchiveError, Progress};
use crate::host::Host;
use crate::ids::{BLOCK_BYTES, Handle};
use crate::map::{Extent, Walk};
use crate::pool::Pool;
use crate::volume::{Blocks, FetchError};

/// How long finding the snapshot may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A range that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Reads every block of a snapshot and checks it. A damaged block is told and does not end the verification; a store
/// that does not answer does.
pub async fn verify(
    host: &Host,
    pool: &Pool,
    handle: Handle,
    progress: &watch::Sender<Progress>,
) -> Result<Verified, ArchiveError> {
    let snapshot = handle.snapshot.ok_or(ArchiveError::NoSnapshot { handle })?;
    let reader = host.snapshot_reader(pool, handle.volume, snapshot, Instant::now() + PATIENCE).await?;
    let Blocks::Moment(view) = reader.blocks() else { return Err(ArchiveError::NoSnapshot { handle }) };
    let mut verified = Verified::default();
    let mut walk = Walk::new(view);
    while let Some(extents) = walk.next().await? {
        for extent in extents.iter().filter(|extent| extent.location.is_some()) {
            let len = u64::from(extent.blocks) * BLOCK_BYTES;
            let mut data = vec![0; len as usize];
            match reader.read_extents(std::slice::from_ref(extent), extent.lba, &mut data).await {
                Ok(()) => verified.good_bytes += len,
                Err(error @ FetchError::Store(_)) => return Err(error.into()),
                Err(error) => verified.damaged.push(damage(extent, len, &error)),
            }
        }
        progress.send_modify(|progress| progress.transferred_bytes = verified.good_bytes);
    }
    Ok(verified)
}

fn damage(extent: &Extent, len: u64, error: &FetchError) -> Damage {
    Damage { offset: extent.lba * BLOCK_BYTES, len, reason: error.to_string() }
}
