//! Marks: what blocks hold, so that it can be told which write a block comes from.

use bytes::Bytes;
use holdfast_engine::ids::BLOCK_BYTES;

/// The volume's size in blocks.
pub const BLOCKS: u64 = 96;

/// The marks of all blocks.
pub type Blocks = Vec<u64>;

/// The first blocks that differ.
pub fn differences(expected: &[u64], found: &[u64]) -> String {
    let differing = expected.iter().zip(found).enumerate().filter(|(_, (expected, found))| expected != found);
    let some: Vec<_> = differing
        .take(8)
        .map(|(block, (expected, found))| format!("block {block}: expected {expected}, found {found}"))
        .collect();
    some.join("; ")
}

/// The bytes of `blocks` blocks from `from` on that carry `mark`.
pub fn bytes_of(mark: u64, range: std::ops::Range<u64>) -> Bytes {
    let words = |block: u64| (mark << 16 | block).to_le_bytes().repeat(BLOCK_BYTES as usize / 8);
    range.flat_map(words).collect()
}

/// The marks in `bytes`, which begin at block `from`; an error if a block is none that was ever written there.
pub fn marks_in(bytes: &[u8], from: u64) -> Result<Blocks, String> {
    let blocks = bytes.chunks_exact(BLOCK_BYTES as usize);
    (from..)
        .zip(blocks)
        .map(|(block, bytes)| {
            let mut first = [0; 8];
            first.copy_from_slice(&bytes[..8]);
            let word = u64::from_le_bytes(first);
            if bytes.chunks_exact(8).any(|word| word != first) {
                return Err(format!("block {block} is torn"));
            }
            match (word >> 16, word & 0xffff) {
                (0, 0) => Ok(0),
                (mark, at) if at == block => Ok(mark),
                (mark, at) => Err(format!("block {block} holds block {at} of write {mark}")),
            }
        })
        .collect()
}
