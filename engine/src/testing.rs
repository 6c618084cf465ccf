//! What tests of several modules share.

use crate::ids::BLOCK_BYTES;

/// Bytes that do not compress, and differ for each block and version. Version 0 is zeros.
pub(crate) fn content(lba: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK_BYTES as usize];
    }
    // Xorshift: quick also where nothing is optimized.
    let mut state = (lba << 32 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..BLOCK_BYTES / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}
