//! What the controller tells the node about a volume that it has published there: CSI's `publish_context`.

use std::collections::HashMap;

use holdfast_engine::ids::GrantId;
use holdfast_engine::log::GrantMode;
use tonic::Status;

const GRANT: &str = "grant";
const MODE: &str = "mode";
const READ_WRITE: &str = "read-write";
const READ_ONLY: &str = "read-only";

/// How a node may use a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It alone, reading and writing.
    ReadWrite,
    /// Reading only, perhaps with others.
    ReadOnly,
}

impl From<Access> for GrantMode {
    fn from(access: Access) -> Self {
        match access {
            Access::ReadWrite => Self::ReadWrite,
            Access::ReadOnly => Self::ReadOnly,
        }
    }
}

/// A publication of a volume to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publication {
    /// The grant.
    pub grant: GrantId,
    /// What it allows.
    pub access: Access,
}

impl Publication {
    /// As the controller answers it.
    pub fn to_context(self) -> HashMap<String, String> {
        let mode = match self.access {
            Access::ReadWrite => READ_WRITE,
            Access::ReadOnly => READ_ONLY,
        };
        HashMap::from([(GRANT.into(), self.grant.to_string()), (MODE.into(), mode.into())])
    }

    /// As the node reads it. `FAILED_PRECONDITION` if the volume was not attached by the controller.
    pub fn parse(context: &HashMap<String, String>) -> Result<Self, Status> {
        let entry = |name: &str| {
            context.get(name).ok_or_else(|| {
                Status::failed_precondition(format!(
                    "the volume was not attached to this node: publish_context has no {name:?}; the CSIDriver object \
                     must have attachRequired"
                ))
            })
        };
        let malformed =
            |name: &str, text: &str| Status::invalid_argument(format!("publish_context has {name}={text:?}"));
        let (grant, mode) = (entry(GRANT)?, entry(MODE)?);
        Ok(Self {
            grant: grant.parse().map_err(|_| malformed(GRANT, grant))?,
            access: match mode.as_str() {
                READ_WRITE => Access::ReadWrite,
                READ_ONLY => Access::ReadOnly,
                _ => return Err(malformed(MODE, mode)),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_reads_what_the_controller_answers() {
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let publication = Publication { grant: holdfast_engine::ids::ObjectId([7; 16]), access };
            assert_eq!(Publication::parse(&publication.to_context()).expect("valid"), publication);
        }
    }

    #[test]
    fn a_volume_that_was_not_attached_is_refused() {
        let status = Publication::parse(&HashMap::new()).expect_err("no grant");
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    }
}
