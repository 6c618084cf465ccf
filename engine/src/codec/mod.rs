//! The bytes of every object, as `docs/format.md` describes them: pure functions between values and bytes.
//!
//! An encoded object is an [`Envelope`] of 72 bytes, a sealed *body*, and, in segments and in records that carry data,
//! sealed *chunks*; in packs, sealed pages. Sealing encrypts and authenticates under a key of the object's own, derived
//! from the volume's data key; in a pool without encryption it adds a checksum.
//!
//! # Guarantees
//! - What a decoder returns is what the encoder was given: a flipped bit, a truncated or exchanged object, a chunk read
//!   at another place or under another key is an error that names the object.
//! - A decoder never panics, whatever the bytes, and allocates no more than a small multiple of its input (or of
//!   [`PAGE_BODY_BYTES_MAX`], for a compressed page).
//! - Bytes of a newer version, and tags this version does not know, are an error that says so.
//! - Encoding is deterministic: the same value under the same id gives the same bytes.
//!
//! # Assumptions
//! An id is used for one object only: with encryption, two different objects under one id would share a key and nonces.
//! So whoever changes a record, a page or anything else before it is put gives it a new random id.

mod chunk;
mod control;
mod envelope;
mod error;
mod journal;
mod key;
mod names;
mod pack;
mod page;
mod record;
mod root;
mod seal;
mod segment;
mod wire;

pub use chunk::{ChunkEntry, Chunks, decode_chunk, extents_of, segment_bytes_at_most};
pub use envelope::{ENVELOPE_BYTES, Envelope, Identity, ObjectKind};
pub use error::{CodecError, ObjectName};
pub use journal::{Frame, decode_frame, encode_frame, entry_bytes, frame_bytes};
pub use key::{DataKey, KEY_BYTES, KeyError, MasterKey, UserKey, WrappedKey};
pub use pack::{decode_pack, decode_packed_page, fits_pack};
pub use page::{
    EncodedPage, EncodedPages, decode_index, decode_page, encode_index, encode_pages, page_capacity,
};
pub use record::{DecodedRecord, EncodedRecord, decode_record, encode_record};
pub use root::{decode_root, decode_snapshot_map, encode_root, encode_snapshot_map};
use seal::Sealer;
pub use segment::{
    EncodedSegment, SegmentTable, decode_segment_table, encode_segment, encode_segment_within,
};

/// Bytes of the largest segment.
pub const SEGMENT_BYTES_MAX: usize = 16 << 20;

/// Chunks of the largest segment: bounds its table, however well its data compresses.
pub const SEGMENT_CHUNKS_MAX: usize = 8192;

/// Bytes of the chunks that a record may carry.
pub const RECORD_DATA_BYTES_MAX: usize = 1 << 20;

/// Bytes of a record's body: room for [`RECORD_EXTENTS_MAX`] extents or [`RECORD_MOVES_MAX`] moves, whatever segments
/// they name.
pub const RECORD_BODY_BYTES_MAX: usize = 2 << 20;

/// Extents that always fit a record. More go into pages ([`crate::log::Op::WritePages`]).
pub const RECORD_EXTENTS_MAX: usize = 32_768;

/// Moves that always fit a record ([`crate::log::Op::Relocate`]).
pub const RECORD_MOVES_MAX: usize = 16_384;

/// Bytes of a map page's body before compression. How many extents that is depends on how many segments they name:
/// [`page_capacity`] tells.
pub const PAGE_BODY_BYTES_MAX: usize = 64 << 10;

/// Pages of the largest pack.
pub const PACK_PAGES_MAX: usize = 64;

/// Bytes of the largest pack.
pub const PACK_BYTES_MAX: usize = 2 << 20;

/// Pages that one index page lists.
pub const INDEX_PAGES_MAX: usize = 1024;

/// Bytes of the body of a root or a snapshot map.
pub const ROOT_BODY_BYTES_MAX: usize = 64 << 20;

/// Bytes of a name (of a snapshot, a node) or an endpoint.
pub const NAME_BYTES_MAX: usize = 1024;

/// Bytes of what is noted with a snapshot.
pub const META_BYTES_MAX: usize = 16 << 10;

/// How a chunk's blocks are compressed before they are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Codec {
    /// Not at all: compression would not have made them smaller.
    Raw = 0,
    /// An LZ4 block.
    Lz4 = 1,
    /// A zstd frame.
    Zstd = 2,
}
