//! The controller's side: a call to the node that has a volume open.

use std::time::Duration;

use holdfast_csi_proto::node::owner_client::OwnerClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::tls::TlsFiles;

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a call may take, less than the 60 s of the sidecars, so that they get an answer.
const CALL_LIMIT: Duration = Duration::from_secs(50);

/// Reaches the owners of volumes.
#[derive(Debug, Clone)]
pub struct Owners {
    files: Option<TlsFiles>,
}

impl Owners {
    /// With the client certificate in `files`; without one no owner can be asked.
    pub fn new(files: Option<TlsFiles>) -> Self {
        Self { files }
    }

    /// A connection to the owner at `endpoint` (`host:port`, from its Open record). The certificates are read anew for
    /// each: calls are rare, and certificates change. `UNAVAILABLE` if the owner cannot be reached.
    pub async fn connect(&self, endpoint: &str) -> Result<OwnerClient<Channel>, Status> {
        let unavailable = |reason: String| {
            Status::unavailable(format!(
                "the volume is in use by a node that does not answer at {endpoint:?}: {reason}; once the node is gone \
                 for good, detach the volume"
            ))
        };
        let Some(files) = self.files.as_ref().filter(|_| !endpoint.is_empty()) else {
            return Err(unavailable("calls to nodes are not configured (--tls-dir, --node-addr)".into()));
        };
        let contents = files.read().await.map_err(|error| unavailable(error.to_string()))?;
        let channel = Endpoint::from_shared(format!("https://{endpoint}"))
            .and_then(|endpoint| endpoint.tls_config(contents.client()))
            .map_err(|error| unavailable(full(&error)))?
            .connect_timeout(CONNECT_LIMIT)
            .timeout(CALL_LIMIT)
            .connect()
            .await
            .map_err(|error| unavailable(full(&error)))?;
        Ok(OwnerClient::new(channel))
    }
}

/// A transport error with its causes; by itself it says only "transport error".
fn full(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
