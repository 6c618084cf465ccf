//! The Holdfast CSI driver: what runs on the nodes and in the controller.
//!
//! ```text
//!   kubelet, sidecars                     controller
//!        | CSI                                | mutual TLS
//!   [rpc] [identity] [controller] [node]  [owner]     gRPC; requests become the terms of the engine
//!        |                                    |
//!   [mount]  [loopdev]  [frontend]  [keeper]          mounts, block devices, FUSE, what survives a restart
//!        |
//!   holdfast-engine
//! ```

pub mod args;
pub mod cache_metrics;
pub mod capability;
pub mod controller;
pub mod frontend;
pub mod handles;
pub mod health;
pub mod identity;
pub mod incidents;
pub mod keeper;
pub mod loopdev;
pub mod metrics;
pub mod mount;
pub mod node;
pub mod offload;
pub mod owner;
pub mod params;
pub mod pool_metrics;
pub mod pools;
pub mod publication;
pub mod registration;
pub mod rpc;
pub mod run;
pub mod size;
pub mod sockets;
pub mod status;
