//! What the callers of the CSI services are told: each error becomes one gRPC code and keeps its message.
//!
//! The codes decide what Kubernetes' sidecars do. Final ones (`INVALID_ARGUMENT`, `OUT_OF_RANGE`, `NOT_FOUND`,
//! `ALREADY_EXISTS`) say that nothing was done and that repeating is useless; all others are repeated.

use tonic::{Code, Status};

use crate::mount::MountError;
use crate::node::records::RecordError;
use crate::offload::OffloadError;

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
