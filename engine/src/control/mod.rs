//! What the controller does to volumes, whether they are open somewhere or not.

mod grants;

pub use grants::{PublishError, describe, publish, release, resize_detached, revoke, unpublish};
