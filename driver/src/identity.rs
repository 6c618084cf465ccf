//! The CSI identity service.

use holdfast_csi_proto::csi::identity_server::Identity;
use holdfast_csi_proto::csi::plugin_capability::service::Type as ServiceType;
use holdfast_csi_proto::csi::plugin_capability::volume_expansion::Type as ExpansionType;
use holdfast_csi_proto::csi::plugin_capability::{Service, Type, VolumeExpansion};
use holdfast_csi_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status};

/// The driver's name, which StorageClasses, CSIDriver and the kubelet know it by.
pub const DRIVER_NAME: &str = "csi.holdfast.storage";

/// The service. It is ready as soon as it answers: what depends on a store answers for itself, so that a pool that
/// is down does not take the others with it.
#[derive(Debug, Clone, Copy, Default)]
pub struct IdentityService;

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let controller = Type::Service(Service { r#type: ServiceType::ControllerService.into() });
        let online = Type::VolumeExpansion(VolumeExpansion { r#type: ExpansionType::Online.into() });
        let capabilities =
            [controller, online].map(|capability| PluginCapability { r#type: Some(capability) }).into();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
