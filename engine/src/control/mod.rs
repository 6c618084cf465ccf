//! What the controller does to volumes, whether they are open somewhere or not.

mod create;
mod detached;
mod error;
mod grants;

pub use create::{CreateVolume, SourceSnapshot};
pub use detached::Maintenance;
pub use error::ControlError;
pub use grants::{PublishError, describe, publish, release, resize_detached, revoke, unpublish};
