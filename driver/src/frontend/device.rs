//! What the file serves: a block device, as far as the front end sees one.

use async_trait::async_trait;
use bytes::Bytes;

/// A device of bytes. The engine's volume is one, through an adapter.
///
/// # Guarantees asked of an implementation
/// - When `write` or `discard` returns, its effect is seen by every later `read`, and survives the death of
///   this process (for the engine: it lies in the dirty buffer, whose memory outlives the process).
/// - When `flush` returns, everything answered before it was called survives the loss of the node.
/// - Repeating a write or a discard that was not answered is harmless.
/// - Every call ends in bounded time; a device that has been fenced ends all calls with [`DeviceError::Fenced`].
/// - Ranges need no alignment. The front end never passes one that ends behind `size_bytes`.
/// - Dropping a future that has not ended leaves the device usable (the operation may or may not take effect).
#[async_trait]
pub trait BlockDevice: Send + Sync + 'static {
    /// Current size in bytes. It never shrinks.
    fn size_bytes(&self) -> u64;

    /// Reads exactly `len` bytes at `offset`, one piece after the other, a block each or what is left of one at least.
    /// What was never written or was discarded reads as zeros.
    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Bytes>, DeviceError>;

    /// Writes `data` at `offset`.
    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Forgets a range, exact to the byte: it reads as zeros afterwards.
    async fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError>;

    /// Makes everything answered so far durable.
    async fn flush(&self) -> Result<(), DeviceError>;
}

/// Why an operation failed. Each becomes one errno for the file system above.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The volume now belongs to another node or session; nothing more is acknowledged here.
    #[error("the volume is fenced: it belongs to another session now")]
    Fenced,
    /// A local disk or the store has no room. The operation may succeed once room has been made.
    #[error("no space is left for the volume's data: {0}")]
    NoSpace(String),
    /// The data could not be had or stored: the store's answer, a checksum, a key.
    #[error("volume I/O failed: {0}")]
    Io(String),
}

impl DeviceError {
    /// The errno that the file system sees.
    pub fn errno(&self) -> i32 {
        match self {
            DeviceError::Fenced | DeviceError::Io(_) => libc::EIO,
            DeviceError::NoSpace(_) => libc::ENOSPC,
        }
    }
}
