//! A node's memory that outlives its processes: where dirty buffers lie.

use std::sync::Arc;

use holdfast_engine::buffer::{MemoryRegion, Region};

use crate::chance::Chance;
use crate::process::Process;

/// Bytes of a node's dirty buffer: full now and then.
pub const MEMORY_BYTES: usize = 1 << 20;

/// A node's memory when nothing was ever written there.
pub fn fresh() -> Arc<MemoryRegion> {
    Arc::new(MemoryRegion::new(MEMORY_BYTES))
}

/// A node's memory, as one process reaches it: what it writes after its death, and part of what it writes in the
/// moment of it, never gets there.
#[derive(Debug)]
pub struct Mapped {
    pub memory: Arc<MemoryRegion>,
    pub process: Arc<Process>,
    pub chance: Chance,
}

impl Region for Mapped {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn read_at(&self, offset: usize, bytes: &mut [u8]) {
        self.memory.read_at(offset, bytes);
    }

    fn write_at(&self, offset: usize, bytes: &[u8]) {
        if self.process.is_dead() {
            return;
        }
        if self.process.dies_at_this_copy() {
            let torn_at = self.chance.among(0..bytes.len() as u64 + 1) as usize;
            return self.memory.write_at(offset, &bytes[..torn_at]);
        }
        self.memory.write_at(offset, bytes);
    }

    fn release(&self, offset: usize, len: usize) {
        if !self.process.is_dead() {
            self.memory.release(offset, len);
        }
    }
}
