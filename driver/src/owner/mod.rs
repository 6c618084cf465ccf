//! Calls from the controller to the node that has a volume open: only the owner of a session may append to its log.
//!
//! # Guarantees
//! - Both sides prove who they are: the node's certificate names [`SERVER_NAME`], and only the controller has one for
//!   clients, from the same authority.
//! - Certificates are read again when they change; the authority's file may hold several certificates, so that a new
//!   one can be distributed before it is used.
//! - An owner that cannot be reached is `UNAVAILABLE`; nothing is fenced because of it.

pub mod client;
pub mod server;
pub mod service;
mod tls;

#[cfg(test)]
mod tests;

pub use tls::{TlsError, TlsFiles};

/// The name in every node's certificate.
pub const SERVER_NAME: &str = "holdfast-node";
