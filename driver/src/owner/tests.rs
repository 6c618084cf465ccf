//! The two sides over loopback, with certificates made here.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use holdfast_csi_proto::node::owner_server::Owner;
use holdfast_csi_proto::node::{
    ApplyParametersRequest, ApplyParametersResponse, CutRequest, CutResponse, DeleteSnapshotRequest,
    DeleteSnapshotResponse, FreezeRequest, FreezeResponse, ResizeRequest, ResizeResponse, ThawRequest,
    ThawResponse,
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status};

use super::client::Owners;
use super::{SERVER_NAME, TlsFiles, server};
use crate::metrics::Metrics;

/// An owner that grows everything.
struct Growing;

#[tonic::async_trait]
impl Owner for Growing {
    async fn cut(&self, _: Request<CutRequest>) -> Result<Response<CutResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Result<Response<ResizeResponse>, Status> {
        Ok(Response::new(ResizeResponse { size_bytes: request.get_ref().size_bytes }))
    }

    async fn apply_parameters(
        &self,
        _: Request<ApplyParametersRequest>,
    ) -> Result<Response<ApplyParametersResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn freeze(&self, _: Request<FreezeRequest>) -> Result<Response<FreezeResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn thaw(&self, _: Request<ThawRequest>) -> Result<Response<ThawResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, dir: &Path, name: &str, usage: ExtendedKeyUsagePurpose) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("valid");
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        for (file, contents) in [
            ("ca.crt", &self.certificate),
            ("tls.crt", &certificate.pem()),
            ("tls.key", &key.serialize_pem()),
        ] {
            std::fs::write(dir.join(file), contents).expect("written");
        }
    }
}

/// A node that serves until it is dropped.
struct Node {
    endpoint: String,
    files: TempDir,
    _end: oneshot::Sender<()>,
}

impl Node {
    fn start(authority: &Authority) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        authority.issue(files.path(), SERVER_NAME, ExtendedKeyUsagePurpose::ServerAuth);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = listener.local_addr().expect("has one").to_string();
        let (end, ended) = oneshot::channel::<()>();
        let tls = TlsFiles::new(files.path());
        tokio::spawn(async move {
            let ended = async { ended.await.unwrap_or_default() };
            server::serve(listener, tls, Metrics::default(), Arc::new(Growing), ended).await
        });
        Self { endpoint, files, _end: end }
    }
}

async fn resize(files: &Path, endpoint: &str) -> Result<u64, Status> {
    let request = ResizeRequest { owned: None, size_bytes: 7 };
    let mut owner = Owners::new(Some(TlsFiles::new(files))).connect(endpoint).await?;
    Ok(owner.resize(request).await?.get_ref().size_bytes)
}

#[tokio::test]
async fn the_controller_reaches_an_owner_and_nobody_else_does() {
    let authority = Authority::new();
    let node = Node::start(&authority);
    let controller = tempfile::tempdir().expect("a directory");
    authority.issue(controller.path(), "holdfast-controller", ExtendedKeyUsagePurpose::ClientAuth);
    assert_eq!(resize(controller.path(), &node.endpoint).await.expect("answered"), 7);

    // Another node: its certificate is none for clients.
    resize(node.files.path(), &node.endpoint).await.expect_err("a node is no controller");

    // The right kind of certificate from a stranger.
    let stranger = tempfile::tempdir().expect("a directory");
    Authority::new().issue(stranger.path(), "holdfast-controller", ExtendedKeyUsagePurpose::ClientAuth);
    std::fs::copy(controller.path().join("ca.crt"), stranger.path().join("ca.crt")).expect("copied");
    resize(stranger.path(), &node.endpoint).await.expect_err("another authority's certificate");
}

#[tokio::test]
async fn an_owner_that_is_away_is_unavailable() {
    let controller = tempfile::tempdir().expect("a directory");
    Authority::new().issue(controller.path(), "holdfast-controller", ExtendedKeyUsagePurpose::ClientAuth);
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port");
    let status = resize(controller.path(), &closed.to_string()).await.expect_err("nobody listens");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&closed.to_string()), "{}", status.message());
    let status = Owners::new(None).connect("10.0.0.1:9810").await.expect_err("no certificates");
    assert_eq!(status.code(), Code::Unavailable);
}
