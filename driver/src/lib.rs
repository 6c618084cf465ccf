//! The Holdfast CSI driver: what runs on the nodes and in the controller.

pub mod frontend;
pub mod keeper;
pub mod loopdev;
pub mod mount;
pub mod offload;
