//! The CSI services on a Unix socket.

use std::future::Future;
use std::time::Duration;

use holdfast_csi_proto::csi::identity_server::IdentityServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::identity::IdentityService;
use crate::metrics::Metrics;

/// How long a call may take at most: the check of a large file system when a volume is staged. Callers set shorter
/// limits of their own.
const CALL_LIMIT: Duration = Duration::from_secs(1200);
/// Calls that one connection may have open.
const CALLS_MAX: usize = 256;

/// The identity service, to which others are added.
pub fn identity() -> Routes {
    Routes::new(IdentityServer::new(IdentityService))
}

/// Serves `services` on `listener` until `end`, and lets running calls end.
pub async fn serve(
    listener: UnixListener,
    services: Routes,
    metrics: Metrics,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .timeout(CALL_LIMIT)
        .concurrency_limit_per_connection(CALLS_MAX)
        .layer(metrics)
        .add_routes(services)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end)
        .await
}

#[cfg(test)]
mod tests {
    use holdfast_csi_proto::csi::identity_client::IdentityClient;
    use holdfast_csi_proto::csi::node_client::NodeClient;
    use holdfast_csi_proto::csi::{GetPluginInfoRequest, NodeGetInfoRequest};
    use tonic::Code;
    use tonic::transport::Endpoint;

    use super::*;
    use crate::sockets;

    #[tokio::test]
    async fn calls_arrive_over_the_socket_and_are_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("csi.sock");
        let metrics = Metrics::default();
        let listener = sockets::bind(&path).expect("bound");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, identity(), metrics.clone(), async {
            ended.await.unwrap_or_default();
        }));

        let url = format!("unix://{}", path.display());
        let channel = Endpoint::from_shared(url).expect("valid").connect().await.expect("reached");
        let info = IdentityClient::new(channel.clone())
            .get_plugin_info(GetPluginInfoRequest {})
            .await
            .expect("answers");
        assert_eq!(info.get_ref().name, "csi.holdfast.storage");
        let status =
            NodeClient::new(channel).node_get_info(NodeGetInfoRequest {}).await.expect_err("not served");
        assert_eq!(status.code(), Code::Unimplemented);

        let text = metrics.encode().expect("text");
        for line in [
            r#"holdfast_rpcs_total{method="csi.v1.Identity/GetPluginInfo",code="Ok"} 1"#,
            r#"holdfast_rpcs_total{method="other",code="Unimplemented"} 1"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
        end.send(()).expect("still serving");
        serving.await.expect("ends").expect("without an error");
    }
}
