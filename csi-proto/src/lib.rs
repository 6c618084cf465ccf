//! The gRPC interfaces of the driver, generated from the definitions in `proto/`.

/// The Container Storage Interface 1.12: what Kubernetes' sidecars and the kubelet ask of the driver.
#[allow(missing_docs, clippy::all, rustdoc::all, reason = "generated from the specification's own file")]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The kubelet's plugin registration, version 1.
#[allow(missing_docs, clippy::all, rustdoc::all, reason = "generated from the kubelet's own file")]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// Calls from the controller to the node that has a volume open.
#[allow(missing_docs, clippy::all, reason = "generated; proto/holdfast/node.proto documents it")]
pub mod node {
    tonic::include_proto!("holdfast.node.v1");
}
