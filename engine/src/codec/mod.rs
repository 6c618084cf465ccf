//! The bytes of every object, as `docs/format.md` describes them.

/// How a chunk's blocks are compressed before they are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not at all: compression would not have made them smaller.
    Raw = 0,
    /// An LZ4 block.
    Lz4 = 1,
    /// A zstd frame.
    Zstd = 2,
}
