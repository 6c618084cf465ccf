//! The part of the FUSE wire format (linux/fuse.h, protocol 7) that one file needs.
//!
//! Requests are decoded by a pure function, so that they can be fuzzed; nothing here allocates more than a
//! reply of fixed size. All integers are in the machine's byte order, as the kernel writes them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Size of `fuse_in_header`, which every request begins with.
pub const IN_HEADER_BYTES: usize = 40;
/// Size of `fuse_out_header`, which every reply begins with.
pub const OUT_HEADER_BYTES: usize = 16;
/// Size of `fuse_write_in`, which precedes the data of a write.
pub const WRITE_IN_BYTES: usize = 40;
/// The root directory's node.
pub const ROOT_NODE: u64 = 1;
/// The node of the file `disk`.
pub const DISK_NODE: u64 = 2;
/// The name of the file that is the volume.
pub const DISK_NAME: &str = "disk";
/// The protocol's major version; the kernel speaks every minor from the first one on.
const MAJOR: u32 = 7;
/// The newest minor whose meaning this file follows (7.40 brought `FUSE_NOTIFY_RESEND`).
const MINOR: u32 = 40;
/// Oldest minor accepted: 7.31 (Linux 5.4), the oldest kernel that a supported Kubernetes runs on.
const OLDEST_MINOR: u32 = 31;

/// How long the kernel may cache names and attributes. For good: identifying a loop device asks for the inode
/// of the file below, which must not wait for a volume that nobody serves at the moment; and growing the file
/// asks for its size explicitly.
const CACHED_SECS: u64 = u32::MAX as u64;

/// Set in the `unique` of a request that the kernel sends again after a resend notification.
pub const UNIQUE_RESEND: u64 = 1 << 63;
/// Set in the `unique` of a reply that answers the interrupt of a request instead of the request.
pub const UNIQUE_INTERRUPT: u64 = 1;

/// The code (`error` of a reply whose unique is 0) that asks for all unanswered requests again.
pub const NOTIFY_RESEND: i32 = 7;

const INIT_ASYNC_READ: u64 = 1 << 0;
const INIT_BIG_WRITES: u64 = 1 << 5;
const INIT_ASYNC_DIO: u64 = 1 << 15;
const INIT_MAX_PAGES: u64 = 1 << 22;
const INIT_EXT: u64 = 1 << 30;
const INIT_HAS_RESEND: u64 = 1 << 39;

const OPEN_DIRECT_IO: u32 = 1 << 0;
const OPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// In `SetAttr::valid`: the size is to change.
pub const SETATTR_SIZE: u32 = 1 << 3;

/// `FALLOC_FL_KEEP_SIZE`.
pub const FALLOC_KEEP_SIZE: u32 = 0x01;
/// `FALLOC_FL_PUNCH_HOLE`.
pub const FALLOC_PUNCH_HOLE: u32 = 0x02;
/// `FALLOC_FL_ZERO_RANGE`.
pub const FALLOC_ZERO_RANGE: u32 = 0x10;

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole request in bytes.
    pub len: u32,
    /// What is asked.
    pub opcode: u32,
    /// What the reply must quote.
    pub unique: u64,
    /// The node that the request is about.
    pub node: u64,
}

impl Header {
    /// Whether the kernel sent this request before.
    pub fn is_resent(&self) -> bool {
        self.unique & UNIQUE_RESEND != 0
    }
}

/// A decoded request; the data of a write is borrowed from the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The first request of a connection.
    Init(InitIn),
    /// Look a name up.
    Lookup(&'a [u8]),
    /// Attributes of a node.
    GetAttr,
    /// Change attributes of a node.
    SetAttr {
        /// Which attributes.
        valid: u32,
    },
    /// Open the file.
    Open,
    /// Open the directory.
    OpenDir,
    /// Read from the file.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes wanted.
        len: u32,
    },
    /// Write to the file.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: &'a [u8],
    },
    /// List the directory from an entry number on.
    ReadDir {
        /// Number of entries already seen.
        offset: u64,
    },
    /// A file descriptor is closed.
    Flush,
    /// Make durable.
    Fsync,
    /// Allocate, punch or zero a range.
    Fallocate {
        /// First byte.
        offset: u64,
        /// Bytes in the range.
        len: u64,
        /// `FALLOC_FL_*`.
        mode: u32,
    },
    /// Numbers about the file system.
    StatFs,
    /// The file or directory is closed for good.
    Release,
    /// The file system is being unmounted.
    Destroy,
    /// A request without a reply (forget, interrupt).
    Silent,
    /// Anything else; answered with `ENOSYS`.
    Other,
}

/// What the kernel offers in INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitIn {
    /// Protocol major.
    pub major: u32,
    /// Protocol minor.
    pub minor: u32,
    max_readahead: u32,
    flags: u64,
}

/// What was agreed in INIT, as far as a successor must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The kernel sends unanswered requests again when asked to (Linux 6.9 and later).
    pub resend: bool,
}

/// Why a buffer is not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the buffer holds {len} bytes, which is no complete FUSE request (opcode {opcode})")]
pub struct Malformed {
    /// Bytes in the buffer.
    pub len: usize,
    /// The request's opcode, 0 when not even the header is there.
    pub opcode: u32,
}

/// Decodes one request.
///
/// # Errors
/// [`Malformed`] if the buffer is shorter than the request says or than its kind needs.
pub fn decode(buf: &[u8]) -> Result<(Header, Request<'_>), Malformed> {
    let header = decode_header(buf).ok_or(Malformed { len: buf.len(), opcode: 0 })?;
    let malformed = Malformed { len: buf.len(), opcode: header.opcode };
    let body = buf.get(IN_HEADER_BYTES..header.len as usize).ok_or(malformed)?;
    Ok((header, decode_body(header.opcode, body).ok_or(malformed)?))
}

fn decode_header(mut buf: &[u8]) -> Option<Header> {
    if buf.len() < IN_HEADER_BYTES {
        return None;
    }
    Some(Header {
        len: buf.get_u32_ne(),
        opcode: buf.get_u32_ne(),
        unique: buf.get_u64_ne(),
        node: buf.get_u64_ne(),
    })
}

fn decode_body(opcode: u32, mut body: &[u8]) -> Option<Request<'_>> {
    let request = match opcode {
        1 => Request::Lookup(body.split(|&byte| byte == 0).next()?),
        2 | 36 | 42 => Request::Silent,
        3 => Request::GetAttr,
        4 => Request::SetAttr { valid: body.try_get_u32_ne().ok()? },
        14 => Request::Open,
        27 => Request::OpenDir,
        15 | 28 => {
            let _handle = body.try_get_u64_ne().ok()?;
            let offset = body.try_get_u64_ne().ok()?;
            let len = body.try_get_u32_ne().ok()?;
            if opcode == 15 { Request::Read { offset, len } } else { Request::ReadDir { offset } }
        }
        16 => {
            let data = body.get(WRITE_IN_BYTES..)?;
            let _handle = body.get_u64_ne();
            let offset = body.get_u64_ne();
            Request::Write { offset, data: data.get(..body.get_u32_ne() as usize)? }
        }
        17 => Request::StatFs,
        18 | 29 => Request::Release,
        20 | 30 => Request::Fsync,
        25 => Request::Flush,
        26 => Request::Init(decode_init(body)?),
        38 => Request::Destroy,
        43 => {
            let _handle = body.try_get_u64_ne().ok()?;
            Request::Fallocate {
                offset: body.try_get_u64_ne().ok()?,
                len: body.try_get_u64_ne().ok()?,
                mode: body.try_get_u32_ne().ok()?,
            }
        }
        _ => Request::Other,
    };
    Some(request)
}

fn decode_init(mut body: &[u8]) -> Option<InitIn> {
    let major = body.try_get_u32_ne().ok()?;
    let minor = body.try_get_u32_ne().ok()?;
    let max_readahead = body.try_get_u32_ne().ok()?;
    let mut flags = u64::from(body.try_get_u32_ne().ok()?);
    if flags & INIT_EXT != 0 {
        flags |= u64::from(body.try_get_u32_ne().ok()?) << 32;
    }
    Some(InitIn { major, minor, max_readahead, flags })
}

/// Why the kernel's offer cannot be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel speaks FUSE {major}.{minor}; Holdfast needs 7.{OLDEST_MINOR} or later (Linux 5.4)")]
pub struct UnsupportedProtocol {
    major: u32,
    minor: u32,
}

/// The reply to INIT, and what it agrees on.
///
/// # Errors
/// [`UnsupportedProtocol`] if the kernel is too old.
pub fn accept_init(
    init: &InitIn,
    max_write_bytes: u32,
    max_background: u16,
) -> Result<(Agreed, Bytes), UnsupportedProtocol> {
    if init.major != MAJOR || init.minor < OLDEST_MINOR {
        return Err(UnsupportedProtocol { major: init.major, minor: init.minor });
    }
    let wanted =
        INIT_ASYNC_READ | INIT_BIG_WRITES | INIT_ASYNC_DIO | INIT_MAX_PAGES | INIT_EXT | INIT_HAS_RESEND;
    let flags = init.flags & wanted;
    let max_pages = (max_write_bytes / 4096) as u16;
    let mut out = BytesMut::with_capacity(64);
    out.put_u32_ne(MAJOR);
    out.put_u32_ne(init.minor.min(MINOR));
    out.put_u32_ne(init.max_readahead);
    out.put_u32_ne(flags as u32);
    out.put_u16_ne(max_background);
    out.put_u16_ne(max_background / 4 * 3);
    out.put_u32_ne(max_write_bytes);
    out.put_u32_ne(1);
    out.put_u16_ne(max_pages);
    out.put_u16_ne(0);
    out.put_u32_ne((flags >> 32) as u32);
    out.put_bytes(0, 28);
    Ok((Agreed { resend: flags & INIT_HAS_RESEND != 0 }, out.freeze()))
}

/// The header of a reply with `body_bytes` after it; `errno` is 0 or positive.
pub fn out_header(unique: u64, errno: i32, body_bytes: usize) -> [u8; OUT_HEADER_BYTES] {
    let mut header = [0; OUT_HEADER_BYTES];
    let mut out = &mut header[..];
    out.put_u32_ne((OUT_HEADER_BYTES + body_bytes) as u32);
    out.put_i32_ne(-errno);
    out.put_u64_ne(unique);
    header
}

/// The message that asks the kernel for all unanswered requests again.
pub fn resend_notification() -> [u8; OUT_HEADER_BYTES] {
    // A notification is a reply to nobody whose error is positive.
    out_header(0, -NOTIFY_RESEND, 0)
}

/// The attributes of `node`, for a file of `size` bytes.
fn put_attr(out: &mut BytesMut, node: u64, size: u64) {
    let (size, mode, links) =
        if node == ROOT_NODE { (0, libc::S_IFDIR | 0o700, 2) } else { (size, libc::S_IFREG | 0o600, 1) };
    out.put_u64_ne(node);
    out.put_u64_ne(size);
    out.put_u64_ne(size.div_ceil(512));
    out.put_bytes(0, 3 * 8 + 3 * 4);
    out.put_u32_ne(mode);
    out.put_u32_ne(links);
    out.put_bytes(0, 3 * 4);
    out.put_u32_ne(4096);
    out.put_u32_ne(0);
}

/// The reply to GETATTR and SETATTR.
pub fn attr_out(node: u64, size: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(104);
    out.put_u64_ne(CACHED_SECS);
    out.put_bytes(0, 8);
    put_attr(&mut out, node, size);
    out.freeze()
}

/// The reply to LOOKUP of `disk`.
pub fn entry_out(size: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    out.put_u64_ne(DISK_NODE);
    out.put_u64_ne(1);
    out.put_u64_ne(CACHED_SECS);
    out.put_u64_ne(CACHED_SECS);
    out.put_bytes(0, 8);
    put_attr(&mut out, DISK_NODE, size);
    out.freeze()
}

/// The reply to OPEN: no page cache (the loop device has its own above), writes in parallel.
pub fn open_out() -> Bytes {
    open_out_with(OPEN_DIRECT_IO | OPEN_PARALLEL_DIRECT_WRITES)
}

/// The reply to OPENDIR.
pub fn opendir_out() -> Bytes {
    open_out_with(0)
}

fn open_out_with(flags: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    out.put_u64_ne(0);
    out.put_u32_ne(flags);
    out.put_u32_ne(0);
    out.freeze()
}

/// The reply to WRITE.
pub fn write_out(bytes: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    out.put_u32_ne(bytes);
    out.put_u32_ne(0);
    out.freeze()
}

/// The reply to STATFS. The block size becomes the loop device's discard granularity.
pub fn statfs_out(size: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(80);
    out.put_u64_ne(size / 4096);
    out.put_u64_ne(0);
    out.put_u64_ne(0);
    out.put_u64_ne(1);
    out.put_u64_ne(0);
    out.put_u32_ne(4096);
    out.put_u32_ne(255);
    out.put_u32_ne(4096);
    out.put_bytes(0, 4 + 24);
    out.freeze()
}

/// The reply to READDIR: the one entry, unless it has been seen.
pub fn readdir_out(offset: u64) -> Bytes {
    if offset > 0 {
        return Bytes::new();
    }
    let mut out = BytesMut::with_capacity(32);
    out.put_u64_ne(DISK_NODE);
    out.put_u64_ne(1);
    out.put_u32_ne(DISK_NAME.len() as u32);
    out.put_u32_ne(u32::from(libc::DT_REG));
    out.put_slice(DISK_NAME.as_bytes());
    out.put_bytes(0, DISK_NAME.len().next_multiple_of(8) - DISK_NAME.len());
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut buf = Vec::new();
        buf.put_u32_ne((IN_HEADER_BYTES + body.len()) as u32);
        buf.put_u32_ne(opcode);
        buf.put_u64_ne(6 | UNIQUE_RESEND);
        buf.put_u64_ne(DISK_NODE);
        buf.put_bytes(0, 16);
        buf.put_slice(body);
        buf
    }

    fn write_body(offset: u64, size: u32, data: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u64_ne(9);
        body.put_u64_ne(offset);
        body.put_u32_ne(size);
        body.put_bytes(0, 20);
        body.put_slice(data);
        body
    }

    #[test]
    fn a_write_borrows_its_data() {
        let buf = request(16, &write_body(8192, 3, b"abc"));
        let (header, request) = decode(&buf).unwrap();
        assert!(header.is_resent());
        assert_eq!(request, Request::Write { offset: 8192, data: b"abc" });
    }

    #[test]
    fn a_write_that_claims_more_than_it_carries_is_malformed() {
        let buf = request(16, &write_body(0, 4, b"abc"));
        assert_eq!(decode(&buf), Err(Malformed { len: buf.len(), opcode: 16 }));
    }

    #[test]
    fn no_prefix_of_a_request_decodes_or_panics() {
        for opcode in 0..64 {
            let buf = request(opcode, &write_body(0, 3, b"abc"));
            for len in 0..buf.len() {
                assert!(decode(&buf[..len]).is_err(), "opcode {opcode}, {len} bytes");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic_or_reach_beyond_them(
            opcode in 0..64u32,
            len in 0..200u32,
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..160),
        ) {
            let mut buf = request(opcode, &body);
            buf[..4].copy_from_slice(&len.to_ne_bytes());
            if let Ok((header, Request::Write { data, .. })) = decode(&buf) {
                proptest::prop_assert!(IN_HEADER_BYTES + WRITE_IN_BYTES + data.len() <= header.len as usize);
            }
        }
    }

    #[test]
    fn a_header_that_claims_less_than_itself_is_malformed() {
        let mut buf = request(3, &[]);
        buf[..4].copy_from_slice(&8u32.to_ne_bytes());
        assert!(decode(&buf).is_err());
    }

    #[test]
    fn an_old_kernel_is_refused_and_a_new_one_offers_resend() {
        let old = InitIn { major: 7, minor: 26, max_readahead: 0, flags: 0 };
        assert!(accept_init(&old, 1 << 20, 64).is_err());
        let new = InitIn { major: 7, minor: 45, max_readahead: 0, flags: u64::MAX };
        let (agreed, reply) = accept_init(&new, 1 << 20, 64).unwrap();
        assert!(agreed.resend);
        assert_eq!(reply.len(), 64);
    }

    #[test]
    fn replies_have_the_sizes_that_the_kernel_checks() {
        assert_eq!(attr_out(DISK_NODE, 1).len(), 104);
        assert_eq!(entry_out(1).len(), 128);
        assert_eq!(open_out().len(), 16);
        assert_eq!(write_out(1).len(), 8);
        assert_eq!(statfs_out(1).len(), 80);
        assert_eq!(readdir_out(0).len() % 8, 0);
    }
}
