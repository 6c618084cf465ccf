//! Writes that are answered and not yet in the log, as a reader sees them.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::ids::{BLOCK_BYTES, CHUNK_BLOCKS_MAX};

/// A run of blocks as an overlay shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirty {
    /// The first block.
    pub lba: u64,
    /// How many.
    pub blocks: u64,
    /// Their bytes; `None` if they were discarded.
    pub data: Option<Bytes>,
    /// The number in the dirty buffer of the mutation that they come from.
    pub order: u64,
}

impl Dirty {
    fn end(&self) -> u64 {
        self.lba + self.blocks
    }

    /// How many chunks its data become at most.
    pub fn chunks(&self) -> u64 {
        let chunk = u64::from(CHUNK_BLOCKS_MAX);
        if self.data.is_some() { self.end().div_ceil(chunk) - self.lba / chunk } else { 0 }
    }

    /// The part inside `from..to`, which must overlap.
    fn slice(&self, from: u64, to: u64) -> Self {
        let (lba, end) = (self.lba.max(from), self.end().min(to));
        let bytes = |block: u64| ((block - self.lba) * BLOCK_BYTES) as usize;
        let data = self.data.as_ref().map(|data| data.slice(bytes(lba)..bytes(end)));
        Self { lba, blocks: end - lba, data, order: self.order }
    }
}

/// Mutations laid over each other: for each block the newest.
#[derive(Debug, Default)]
pub struct Overlay {
    runs: BTreeMap<u64, Dirty>,
    data_bytes: u64,
    chunks: u64,
    inserted_bytes: u64,
}

impl Overlay {
    /// Lays a run over what is there.
    pub fn insert(&mut self, run: Dirty) {
        let (from, to) = (run.lba, run.end());
        let first = match self.runs.range(..from).next_back() {
            Some((lba, before)) if before.end() > from => *lba,
            Some(_) | None => from,
        };
        let hidden: Vec<u64> = self.runs.range(first..to).map(|(lba, _)| *lba).collect();
        for lba in hidden {
            if let Some(old) = self.runs.remove(&lba) {
                self.data_bytes -= data_bytes(&old);
                self.chunks -= old.chunks();
                if old.lba < from {
                    self.place(old.slice(old.lba, from));
                }
                if old.end() > to {
                    self.place(old.slice(to, old.end()));
                }
            }
        }
        self.inserted_bytes += data_bytes(&run);
        self.place(run);
    }

    fn place(&mut self, run: Dirty) {
        self.data_bytes += data_bytes(&run);
        self.chunks += run.chunks();
        self.runs.insert(run.lba, run);
    }

    /// The runs inside `from..to`, cut to it, in order.
    pub fn lookup(&self, from: u64, to: u64) -> impl Iterator<Item = Dirty> + '_ {
        let before = self.runs.range(..from).next_back().filter(|(_, run)| run.end() > from);
        before.into_iter().chain(self.runs.range(from..to)).map(move |(_, run)| run.slice(from, to))
    }

    /// All runs, in block order.
    pub fn iter(&self) -> impl Iterator<Item = &Dirty> {
        self.runs.values()
    }

    /// Bytes of data held.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// How many chunks its data become at most: those of neighbours may join.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Bytes of data ever inserted, also of what was overwritten since.
    pub fn inserted_bytes(&self) -> u64 {
        self.inserted_bytes
    }

    /// How many runs it holds.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

fn data_bytes(run: &Dirty) -> u64 {
    run.data.as_ref().map_or(0, |data| data.len() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 40;

    /// A run whose every block is filled with `order`; order 0 mod 5 discards.
    fn run(lba: u64, blocks: u64, order: u64) -> Dirty {
        let data = (!order.is_multiple_of(5))
            .then(|| Bytes::from(vec![order as u8; (blocks * BLOCK_BYTES) as usize]));
        Dirty { lba, blocks, data, order }
    }

    proptest! {
        #[test]
        fn every_block_shows_its_newest_mutation(
            mutations in proptest::collection::vec((0..BLOCKS, 1..12u64), 0..40),
            from in 0..BLOCKS, len in 1..BLOCKS,
        ) {
            let mut overlay = Overlay::default();
            let mut model = vec![None; 64];
            for (order, (lba, blocks)) in (1..).zip(mutations) {
                overlay.insert(run(lba, blocks, order));
                model[lba as usize..(lba + blocks) as usize].fill(Some(order));
            }
            let mut seen = vec![None; 64];
            for found in overlay.lookup(from, from + len) {
                prop_assert!(found.lba >= from && found.end() <= from + len);
                if let Some(data) = &found.data {
                    prop_assert_eq!(data.len() as u64, found.blocks * BLOCK_BYTES);
                    prop_assert!(data.iter().all(|byte| u64::from(*byte) == found.order));
                }
                for block in found.lba..found.end() {
                    prop_assert!(seen[block as usize].replace(found.order).is_none(), "block shown twice");
                }
            }
            for block in from..(from + len).min(64) {
                prop_assert_eq!(seen[block as usize], model[block as usize]);
            }
            let bytes = model.iter().flatten().filter(|order| !order.is_multiple_of(5)).count() as u64 * BLOCK_BYTES;
            prop_assert_eq!(overlay.data_bytes(), bytes);
            prop_assert_eq!(overlay.chunks(), overlay.iter().map(Dirty::chunks).sum::<u64>());
        }
    }
}
