//! What is written where, and what the volume and its snapshots must hold.

use std::collections::VecDeque;

use bytes::Bytes;
use holdfast_engine::ids::{BLOCK_BYTES, SnapshotId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::testing::content;

/// Which blocks are overwritten.
#[derive(Debug, Clone, Copy)]
pub enum Pattern {
    /// Any as likely as any other.
    Uniform,
    /// Nine of ten writes go to a tenth of the blocks; within that tenth it is the same again, and so on. The blocks of
    /// the tenth lie anywhere.
    Skewed,
}

/// The versions of blocks, and which of them the snapshots have. Version 0 was never written.
pub struct Model {
    pattern: Pattern,
    random: ChaCha8Rng,
    /// Which block stands at which place of the pattern.
    places: Vec<u64>,
    pub head: Vec<u64>,
    pub snapshots: VecDeque<(SnapshotId, Vec<u64>)>,
}

impl Model {
    pub fn new(pattern: Pattern, blocks: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let mut places: Vec<u64> = (0..blocks).collect();
        for at in (1..places.len()).rev() {
            places.swap(at, random.random_range(0..=at));
        }
        Self { pattern, random, places, head: vec![0; blocks as usize], snapshots: VecDeque::new() }
    }

    /// The next block to overwrite.
    pub fn choose(&mut self) -> u64 {
        let blocks = self.places.len() as f64;
        let chance: f64 = self.random.random();
        let place = match self.pattern {
            Pattern::Uniform => blocks * chance,
            Pattern::Skewed => blocks * chance.powf(0.1f64.ln() / 0.9f64.ln()),
        };
        self.places[(place as usize).min(self.places.len() - 1)]
    }

    /// Overwrites a block; its new bytes.
    pub fn write(&mut self, lba: u64) -> Bytes {
        let version = &mut self.head[lba as usize];
        *version += 1;
        content(lba, *version).into()
    }

    /// How many bytes of blocks the head and the snapshots need, each version once.
    pub fn needed_bytes(&self) -> u64 {
        let moments = || self.snapshots.iter().map(|(_, then)| then).chain([&self.head]);
        let mut needed = 0;
        for lba in 0..self.head.len() {
            // Versions only grow, and version 0 needs nothing.
            let mut last = 0;
            for moment in moments() {
                needed += u64::from(moment[lba] != last);
                last = moment[lba];
            }
        }
        needed * BLOCK_BYTES
    }
}

/// Panics unless `read` is what these versions hold.
pub fn check(read: &[u8], versions: &[u64]) {
    for (lba, version) in versions.iter().enumerate() {
        let at = lba * BLOCK_BYTES as usize;
        let same = read[at..at + BLOCK_BYTES as usize] == content(lba as u64, *version)[..];
        assert!(same, "block {lba} is not what version {version} wrote");
    }
}
