//! What the operator asks of the engine: to look into pools. It never writes data there; Jobs do.

use async_trait::async_trait;
use holdfast_api::ArchiveSource;
use holdfast_api::jiff::Timestamp;
use thiserror::Error;

use crate::pool_file::PoolFile;

/// Looks into pools. Implementations bound the time of each call, and may keep pools open between calls.
#[async_trait]
pub trait ArchiveStore: Send + Sync {
    /// Loads the pool, making it if there is none, and runs the self-test when it is loaded for the first time.
    async fn probe(&self, pool: &PoolFile) -> Result<PoolSummary, StoreError>;

    /// The point of that name, if the pool has it.
    async fn point(&self, pool: &PoolFile, name: &str) -> Result<Option<ArchivedPoint>, StoreError>;

    /// All points in the pool that can be restored, of every cluster.
    async fn points(&self, pool: &PoolFile) -> Result<Vec<ArchivedPoint>, StoreError>;

    /// How far the volume with that CSI handle has been copied back from an archive. `pools` are the pools that hold
    /// live volumes; the handle's pool id says which; `target` is the pool of the archive. What there was to copy in all never changes: `total_bytes`
    /// is that, once it is known; 0 before. `None` means that the volume reads from no archive, or no longer: an archive
    /// may be let go on the strength of it, so whatever cannot be found out is an error.
    async fn hydration(
        &self,
        pools: &[PoolFile],
        target: &PoolFile,
        volume_handle: &str,
        total_bytes: u64,
    ) -> Result<Option<Hydration>, StoreError>;
}

/// What a loaded pool says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSummary {
    /// The pool's random identity, the same for everybody who loads it.
    pub pool_id: String,
    /// Bytes its objects take, where the store can tell without reading everything.
    pub stored_bytes: Option<u64>,
}

/// A point that a target holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedPoint {
    /// The name it was archived under: that of the ArchivedSnapshot.
    pub name: String,
    /// Its CSI snapshot handle.
    pub handle: String,
    /// The time of its contents.
    pub point_in_time: Timestamp,
    /// The volume it is of.
    pub source: ArchiveSource,
    /// The least size of a volume restored from it.
    pub restore_size_bytes: u64,
    /// Bytes that differed from the point before and were sent for it, where that was recorded.
    pub changed_bytes: Option<u64>,
    /// The promise written into it; `None` when it has no end.
    pub expires_at: Option<Timestamp>,
    /// Whether it is the newest of its archive, which the next run builds on and which never expires by itself.
    pub newest: bool,
}

/// How far a restored volume has been copied back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hydration {
    /// Bytes copied back, or overwritten or discarded since.
    pub hydrated_bytes: u64,
    /// Bytes that lay in the archive when the volume was made.
    pub total_bytes: u64,
}

/// Why a pool cannot be used. Each has its own reason in the Ready condition.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// No answer in time.
    #[error("the store did not answer in time; check its endpoint and the network policy")]
    Timeout,
    /// No connection, or the store's own failure.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// The credentials are refused.
    #[error("the store denies access: {0}; check the credentials and their permissions")]
    AccessDenied(String),
    /// The bucket or directory does not exist.
    #[error("the bucket or directory is not there: {0}; create it first")]
    NotFound(String),
    /// The store lets two creators of one object win.
    #[error("the store is unsafe and would corrupt volumes: {0}; use a store with working conditional puts")]
    Unsafe(String),
    /// No space is left.
    #[error("no space is left in the store: {0}")]
    Full(String),
    /// The store does not do what it is asked.
    #[error("the store refuses a request: {0}")]
    Refused(String),
    /// The key does not open the pool.
    #[error("the encryption key does not open this pool: {0}")]
    WrongKey(String),
    /// What is there is no pool, or damaged.
    #[error("the pool is damaged or of another format: {0}")]
    Damaged(String),
    /// The configuration cannot be used.
    #[error("the configuration is not valid: {0}")]
    Invalid(String),
}

impl StoreError {
    /// The condition reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "Timeout",
            Self::Unreachable(_) => "Unreachable",
            Self::AccessDenied(_) => "AccessDenied",
            Self::NotFound(_) => "BucketNotFound",
            Self::Unsafe(_) => "UnsafeStore",
            Self::Full(_) => "StoreFull",
            Self::Refused(_) => "RequestRefused",
            Self::WrongKey(_) => "WrongKey",
            Self::Damaged(_) => "Damaged",
            Self::Invalid(_) => "InvalidConfiguration",
        }
    }
}
