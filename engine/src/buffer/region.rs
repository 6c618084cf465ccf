//! Memory that a dirty buffer lies in.

use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A range of bytes that outlives the process which writes it: shared memory whose descriptor somebody else holds too.
///
/// # Guarantees that the buffer builds on
/// What was written before the process died is what its successor reads. The write that was under way may be torn: any
/// of its bytes may be old or new.
pub trait Region: Send + Sync + Debug {
    /// Size in bytes. Never changes.
    fn len(&self) -> usize;

    /// Whether the region has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies from the region at `offset` into `bytes`. The range lies inside the region.
    fn read_at(&self, offset: usize, bytes: &mut [u8]);

    /// Copies `bytes` into the region at `offset`. The range lies inside the region.
    fn write_at(&self, offset: usize, bytes: &[u8]);

    /// Gives memory of a range that lies inside the region back to the system, as far as that can be. The range holds
    /// zeros or what it held.
    fn release(&self, offset: usize, len: usize);
}

/// A region in the memory of this process: to test and simulate what happens to one that outlives it.
#[derive(Debug)]
pub struct MemoryRegion {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryRegion {
    /// A region of `len` bytes, all zero.
    pub fn new(len: usize) -> Self {
        Self { bytes: Mutex::new(vec![0; len]) }
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Region for MemoryRegion {
    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn read_at(&self, offset: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.bytes()[offset..offset + bytes.len()]);
    }

    fn write_at(&self, offset: usize, bytes: &[u8]) {
        self.bytes()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn release(&self, offset: usize, len: usize) {
        self.bytes()[offset..offset + len].fill(0);
    }
}
