//! What the callers of the CSI services are told: each error becomes one gRPC code and keeps its message.
//!
//! The codes decide what Kubernetes' sidecars do. Final ones (`INVALID_ARGUMENT`, `OUT_OF_RANGE`, `NOT_FOUND`,
//! `ALREADY_EXISTS`) say that nothing was done and that repeating is useless; all others are repeated.

use holdfast_engine::buffer::BufferError;
use holdfast_engine::codec::CodecError;
use holdfast_engine::control::{ControlError, PublishError};
use holdfast_engine::host::HostError;
use holdfast_engine::journal::{JournalError, JournalsError, SettleError};
use holdfast_engine::log::{Inert, LogError};
use holdfast_engine::map::MapError;
use holdfast_engine::pool::PoolError;
use holdfast_engine::snapshot::SnapshotError;
use holdfast_engine::store::{StoreError, UnfitStore};
use holdfast_engine::volume::{FetchError, OpenError, Over, VolumeError};
use tonic::{Code, Status};

use crate::frontend::StackError;
use crate::mount::{FreezeError, MountError};
use crate::node::records::RecordError;
use crate::offload::OffloadError;

/// Errors of pools.
pub fn pool(error: PoolError) -> Status {
    Status::new(pool_code(&error), error.to_string())
}

/// Errors of what the controller does to volumes.
pub fn control(error: ControlError) -> Status {
    let code = match &error {
        ControlError::NoSuchVolume { .. } | ControlError::NoSuchSnapshot { .. } => Code::NotFound,
        ControlError::InUse { .. } | ControlError::PoolMissing { .. } => Code::FailedPrecondition,
        ControlError::AskOwner { .. } | ControlError::Busy { .. } => Code::Aborted,
        ControlError::NameTaken { .. } => Code::AlreadyExists,
        ControlError::TooSmall { .. } => Code::OutOfRange,
        ControlError::Pool(error) => pool_code(error),
        ControlError::Log(error) => log_code(error),
        ControlError::Open(error) => open_code(error),
        ControlError::Volume(error) => volume_code(error),
        ControlError::Snapshot(error) => snapshot_code(error),
    };
    Status::new(code, error.to_string())
}

/// Errors of opening something on this host.
pub fn host(error: HostError) -> Status {
    let code = match &error {
        HostError::Pool(error) => pool_code(error),
        HostError::Open(error) => open_code(error),
        HostError::Snapshot(error) => snapshot_code(error),
    };
    Status::new(code, error.to_string())
}

fn pool_code(error: &PoolError) -> Code {
    match error {
        PoolError::Store { reason, .. } => store_code(reason),
        PoolError::Unfit { reason: UnfitStore::Untested(reason), .. } => store_code(reason),
        PoolError::Unreadable { .. } | PoolError::Absent { .. } => Code::Unavailable,
        PoolError::Config { .. }
        | PoolError::Unfit { reason: UnfitStore::Breaks { .. }, .. }
        | PoolError::Headless { .. }
        | PoolError::Newer { .. }
        | PoolError::KeyMissing { .. }
        | PoolError::NotEncrypted { .. }
        | PoolError::Key { .. } => Code::FailedPrecondition,
        PoolError::Malformed { .. } => Code::DataLoss,
        PoolError::BadName { .. } => Code::InvalidArgument,
        PoolError::NoSuchVolume { .. } => Code::NotFound,
    }
}

/// Errors of logs.
pub fn log(error: LogError) -> Status {
    Status::new(log_code(&error), error.to_string())
}

/// Errors of attaching.
pub fn publish(error: PublishError) -> Status {
    let code = match &error {
        PublishError::HeldBy { .. } => Code::FailedPrecondition,
        PublishError::NoSuchVolume => Code::NotFound,
        PublishError::Log(error) => log_code(error),
    };
    Status::new(code, error.to_string())
}

/// Errors of opening a volume.
pub fn open(error: OpenError) -> Status {
    Status::new(open_code(&error), error.to_string())
}

fn open_code(error: &OpenError) -> Code {
    match error {
        OpenError::NotGranted { .. } => Code::FailedPrecondition,
        OpenError::NoSuchVolume { .. } => Code::NotFound,
        OpenError::Log(error) => log_code(error),
        OpenError::Buffer(error) => buffer_code(error),
        // The file of its pool may still be on its way.
        OpenError::UnknownAncestor(_) => Code::Unavailable,
    }
}

fn snapshot_code(error: &SnapshotError) -> Code {
    match error {
        SnapshotError::Incomplete { .. } => Code::Unavailable,
        SnapshotError::Log(error) => log_code(error),
    }
}

/// Errors of an open volume.
pub fn volume(error: VolumeError) -> Status {
    Status::new(volume_code(&error), error.to_string())
}

/// Errors of the front end.
pub fn stack(error: StackError) -> Status {
    let code = match &error {
        StackError::Exists { .. } => Code::Aborted,
        StackError::Keeper(_) | StackError::StillConnected { .. } => Code::Unavailable,
        StackError::Offload(error) => offload_code(error),
        StackError::BadKey { .. }
        | StackError::System { .. }
        | StackError::Connection(_)
        | StackError::Region(_)
        | StackError::BadRecord { .. } => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// Errors of freezing.
pub fn freeze(error: FreezeError) -> Status {
    let code = match &error {
        FreezeError::NotMounted { .. } | FreezeError::FrozenAlready { .. } => Code::FailedPrecondition,
        FreezeError::Expired { .. } => Code::Aborted,
        FreezeError::Keeper(_) => Code::Unavailable,
        FreezeError::Look { .. } => Code::Internal,
        FreezeError::Offload(error) => offload_code(error),
    };
    Status::new(code, error.to_string())
}

/// The same refusal with a code after which the caller tries again: for what may have happened nevertheless.
pub fn retryable(status: Status) -> Status {
    let code = match status.code() {
        Code::Aborted
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Unavailable => status.code(),
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Code::Unavailable,
    };
    Status::new(code, status.message())
}

fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::Unavailable { .. } => Code::Unavailable,
        StoreError::Full { .. } => Code::ResourceExhausted,
        StoreError::Denied { .. } => Code::PermissionDenied,
        StoreError::AlreadyExists { .. } => Code::Aborted,
        StoreError::NotFound { .. } => Code::DataLoss,
        StoreError::Refused { .. } => Code::Internal,
    }
}

fn log_code(error: &LogError) -> Code {
    match error {
        LogError::Store(error) => store_code(error),
        LogError::Codec(error) => codec_code(error),
        LogError::Map(error) => map_code(error),
        LogError::Illegal { reason, .. } => inert_code(reason),
        LogError::Overtaken { .. } | LogError::Raced { .. } => Code::Aborted,
        LogError::Deadline { .. } => Code::DeadlineExceeded,
    }
}

fn inert_code(reason: &Inert) -> Code {
    match reason {
        Inert::NotNext | Inert::SessionOver | Inert::Generation { .. } | Inert::SnapshotExists { .. } => {
            Code::Aborted
        }
        Inert::SessionOpen => Code::Unavailable,
        Inert::NotGranted | Inert::Granted { .. } | Inert::RunEnded { .. } => Code::FailedPrecondition,
        Inert::Exists => Code::AlreadyExists,
        Inert::Dead | Inert::NoSuchSnapshot { .. } => Code::NotFound,
        Inert::Shrinks { .. } => Code::OutOfRange,
        Inert::Malformed { .. } => Code::Internal,
    }
}

fn codec_code(error: &CodecError) -> Code {
    match error {
        CodecError::NewerVersion { .. } | CodecError::Encrypted { .. } => Code::FailedPrecondition,
        CodecError::TooLarge { .. } => Code::Internal,
        CodecError::Truncated { .. }
        | CodecError::BadMagic { .. }
        | CodecError::WrongObject { .. }
        | CodecError::Damaged { .. }
        | CodecError::Unauthentic { .. }
        | CodecError::NotEncrypted { .. }
        | CodecError::Malformed { .. } => Code::DataLoss,
    }
}

fn map_code(error: &MapError) -> Code {
    match error {
        MapError::Store(error) => store_code(error),
        MapError::Codec(error) => codec_code(error),
        MapError::UnknownAncestor(_) => Code::FailedPrecondition,
        MapError::Damaged { .. } => Code::DataLoss,
        MapError::Refused { .. } => Code::Internal,
    }
}

fn fetch_code(error: &FetchError) -> Code {
    match error {
        FetchError::Store(error) => store_code(error),
        FetchError::Codec(error) => codec_code(error),
        FetchError::UnknownAncestor(_) => Code::FailedPrecondition,
        FetchError::Gone { .. } | FetchError::Short { .. } => Code::DataLoss,
    }
}

/// Errors of journals.
pub fn journal(error: JournalsError) -> Status {
    let code = match &error {
        JournalsError::Path { .. } => Code::Unavailable,
        JournalsError::Journal { source, .. } => match source {
            JournalError::Disk { .. } => Code::Unavailable,
            JournalError::Damaged { .. } => Code::DataLoss,
            JournalError::Newer { .. } => Code::FailedPrecondition,
            JournalError::Frame(error) => codec_code(error),
            JournalError::OtherGrant { .. } | JournalError::TooSmall { .. } => Code::Internal,
        },
    };
    Status::new(code, error.to_string())
}

/// Errors of settling journals.
pub fn settle(error: SettleError<Status>) -> Status {
    match error {
        SettleError::Log(error) => log(error),
        SettleError::Journals(error) => journal(error),
        SettleError::Open(status) => status,
        SettleError::Volume(error) => volume(error),
        SettleError::Late { .. } => Status::unavailable(error.to_string()),
    }
}

/// Errors of dirty buffers.
pub fn buffer(error: BufferError) -> Status {
    Status::new(buffer_code(&error), error.to_string())
}

fn buffer_code(error: &BufferError) -> Code {
    match error {
        BufferError::Full => Code::Unavailable,
        BufferError::Damaged { .. } | BufferError::Missing { .. } => Code::DataLoss,
        BufferError::Outgrown { .. } => Code::FailedPrecondition,
        BufferError::TooLarge { .. } | BufferError::TooSmall { .. } | BufferError::OtherGrant { .. } => {
            Code::Internal
        }
    }
}

fn volume_code(error: &VolumeError) -> Code {
    match error {
        VolumeError::Over { reason: Over::Broken { .. }, .. } => Code::DataLoss,
        VolumeError::Over { reason: Over::Superseded { .. } | Over::Fenced | Over::Closed, .. } => {
            Code::FailedPrecondition
        }
        VolumeError::OutOfRange { .. } => Code::OutOfRange,
        VolumeError::NotCommitted { reason, .. } | VolumeError::Log { reason, .. } => log_code(reason),
        VolumeError::Illegal { reason, .. } => inert_code(reason),
        VolumeError::Read { reason, .. } => fetch_code(reason),
        VolumeError::Map { reason, .. } => map_code(reason),
        VolumeError::Codec { reason, .. } => codec_code(reason),
        VolumeError::Store { reason, .. } => store_code(reason),
        VolumeError::Buffer { reason, .. } => buffer_code(reason),
        VolumeError::NoAnswer { .. } => Code::Unavailable,
    }
}

/// Errors of mounts and file systems.
pub fn mount(error: MountError) -> Status {
    let code = match &error {
        MountError::Unformatted { .. }
        | MountError::OtherFileSystem { .. }
        | MountError::Ambiguous { .. }
        | MountError::Damaged { .. }
        | MountError::Conflict { .. }
        | MountError::Busy { .. }
        | MountError::NotMounted { .. }
        | MountError::GrowNotPermitted { .. } => Code::FailedPrecondition,
        MountError::ToolTimedOut { .. } => Code::Unavailable,
        MountError::NotADevice { .. }
        | MountError::Tool { .. }
        | MountError::ToolMissing { .. }
        | MountError::Path { .. }
        | MountError::Table(_) => Code::Internal,
        MountError::Offload(error) => offload_code(error),
    };
    Status::new(code, error.to_string())
}

/// Errors of the records of mounts.
pub fn record(error: RecordError) -> Status {
    Status::internal(error.to_string())
}

fn offload_code(error: &OffloadError) -> Code {
    match error {
        OffloadError::TimedOut { .. } => Code::Unavailable,
        OffloadError::Failed { .. } | OffloadError::Child { .. } => Code::Internal,
    }
}
