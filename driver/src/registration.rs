//! The node plugin makes itself known to the kubelet: plugin registration, version 1.
//!
//! # Expected flow
//! The CSI socket is served first. Then the registration socket appears in the kubelet's directory of plugins; the
//! kubelet finds it there, asks [`get_info`](Registration::get_info), connects to the CSI socket and says how it went.
//! After a restart the socket is made anew under the same name, which the kubelet takes as a new registration.
//!
//! # Caveats
//! The kubelet names, as a call's `:authority`, the path of the socket that it has dialled, with each slash
//! percent-encoded. HTTP allows that in the part before an `@` alone, and our HTTP/2 library refuses the call
//! otherwise. Therefore both sockets that the kubelet dials have an `@` in their file names.

use std::path::{Path, PathBuf};

use holdfast_csi_proto::registration::registration_server::{Registration, RegistrationServer};
use holdfast_csi_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use tonic::{Request, Response, Status};

use crate::identity::DRIVER_NAME;

/// The registration socket. One fixed name, so that no restart leaves a second one, with an `@` (see above).
pub fn socket(kubelet_dir: &Path) -> PathBuf {
    kubelet_dir.join("plugins_registry").join(format!("{DRIVER_NAME}@reg.sock"))
}

/// The service.
#[derive(Debug)]
pub struct RegistrationService {
    endpoint: String,
}

impl RegistrationService {
    /// The service of the plugin that the kubelet reaches at `csi_socket`.
    pub fn server(csi_socket: &Path) -> RegistrationServer<Self> {
        RegistrationServer::new(Self { endpoint: csi_socket.display().to_string() })
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER_NAME.into(),
            endpoint: self.endpoint.clone(),
            // The kubelet compares this with the versions of its own interface, of which there is one.
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!("registered with the kubelet");
        } else {
            // The kubelet tries again by itself.
            tracing::error!(error, "the kubelet did not register the plugin");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
