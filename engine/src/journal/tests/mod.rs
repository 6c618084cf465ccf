//! Journals on disks that lose power, tear, fill up, fail and hang.

mod bounds;
mod crashes;
pub(crate) mod disk;
mod files;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::buffer::{DirtyBuffer, MemoryBuffer};
use crate::ids::ObjectId;
use disk::FakeDisk;

pub(crate) const DISK_BYTES: u64 = 128 << 10;
const VOLUME: VolumeId = VolumeId([7; 16]);
const GRANT: GrantId = ObjectId([1; 16]);

fn owner(key: Option<DataKey>) -> Owner {
    Owner { volume: VOLUME, grant: GRANT, key, env: Env::system() }
}

fn memory() -> Arc<dyn DirtyBuffer> {
    Arc::new(MemoryBuffer::new(64 << 10))
}

/// A write of `blocks` blocks that differs from all others of a test with another `fill`.
fn write(fill: u64, blocks: u64) -> Mutation {
    let data: Vec<u8> =
        (0..blocks * BLOCK_BYTES / 8).flat_map(|at| (fill << 20 | at).to_le_bytes()).collect();
    Mutation::Write { offset: fill * BLOCK_BYTES, data: Bytes::from(data) }
}

async fn open(disk: &FakeDisk) -> Journal {
    Journal::open(Arc::new(disk.clone()), owner(None), Patience::default()).await.expect("an intact journal")
}

/// A buffer that is bound, over `inner` and a journal on `disk`.
async fn bound(disk: &FakeDisk, inner: Arc<dyn DirtyBuffer>, complete: u64) -> JournaledBuffer {
    let buffer = JournaledBuffer::new(inner, Some(open(disk).await));
    buffer.bind(GRANT, complete).expect("the buffers fit together");
    buffer
}
