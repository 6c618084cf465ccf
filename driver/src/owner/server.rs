//! The node's side: the owner service on the pod network.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use holdfast_csi_proto::node::owner_server::{Owner, OwnerServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::tls::{TlsContents, TlsError, TlsFiles};
use crate::metrics::Metrics;

/// How often the certificates are looked at.
const RELOAD: Duration = Duration::from_secs(60);
/// How long one call may take; the sidecars' own limit is 60 s.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Calls that one connection may have open.
const CALLS_MAX: usize = 64;

/// The owner service cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OwnerServerError {
    /// The address cannot be listened on.
    #[error("cannot serve the controller on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server broke off.
    #[error("serving the controller failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves `owner` on `listener` until `end`, with the certificates in `files`. While they are missing or broken it waits
/// for better ones: volumes are served without.
pub async fn serve<O: Owner>(
    listener: std::net::TcpListener,
    files: TlsFiles,
    metrics: Metrics,
    owner: std::sync::Arc<O>,
    end: impl Future<Output = ()>,
) -> Result<(), OwnerServerError> {
    let address = listener.local_addr().map_err(|source| OwnerServerError::Listen {
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        source,
    })?;
    let failed = |source| OwnerServerError::Listen { address, source };
    listener.set_nonblocking(true).map_err(failed)?;
    let mut end = std::pin::pin!(end);
    let mut used: Option<TlsContents> = None;
    loop {
        let changed = changed(&files, used.clone());
        let contents = tokio::select! {
            biased;
            () = &mut end => return Ok(()),
            contents = changed => contents,
        };
        used = Some(contents.clone());
        let server = match Server::builder().tls_config(contents.server()) {
            Ok(server) => server,
            Err(source) => {
                let error = TlsError::Invalid { dir: files.dir().into(), source };
                tracing::error!(%error, "the controller cannot reach this node's volumes");
                continue;
            }
        };
        // A server with new certificates takes the listener over; calls on older connections run to their end.
        let copy = listener.try_clone().and_then(TcpListener::from_std).map_err(failed)?;
        let replaced = changed_quietly(&files, contents);
        let serving = server
            .timeout(CALL_LIMIT)
            .concurrency_limit_per_connection(CALLS_MAX)
            .layer(metrics.clone())
            .add_service(OwnerServer::from_arc(std::sync::Arc::clone(&owner)))
            .serve_with_incoming_shutdown(TcpListenerStream::new(copy), replaced);
        tokio::select! {
            biased;
            () = &mut end => return Ok(()),
            served = serving => served?,
        }
    }
}

async fn changed_quietly(files: &TlsFiles, used: TlsContents) {
    changed(files, Some(used)).await;
}

/// Waits until the files can be read and hold something else than `used`.
async fn changed(files: &TlsFiles, used: Option<TlsContents>) -> TlsContents {
    let mut complained = false;
    loop {
        match files.read().await {
            Ok(contents) if used.as_ref() != Some(&contents) => return contents,
            Ok(_) => {}
            Err(error) if !complained => {
                tracing::error!(%error, "the controller cannot reach this node's volumes with new certificates");
                complained = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RELOAD).await;
    }
}
