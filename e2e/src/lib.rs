//! The surroundings that Holdfast is tested in, all of them real: a Kubernetes cluster (kind), object
//! stores, container images, the CSI conformance suite.
//!
//! | module | what it gives |
//! |---|---|
//! | [`kind`] | a cluster of one control plane and two workers, its faults, `kubectl` and `helm` |
//! | [`deployment`], [`workload`] | Holdfast on a cluster; PostgreSQL and fio on its volumes |
//! | [`plugin`] | `kubectl holdfast` |
//! | [`scenarios`] | what users do there, and what happens to them |
//! | [`images`] | the node image, the `holdfast` image, PostgreSQL, the standard CSI sidecars |
//! | [`stores`] | a directory, moto, Azurite, a stand-in for Google's, Ceph with RGW, and stores that break put-if-absent |
//! | [`site`], [`csi`] | the driver's processes without Kubernetes, and what sidecars and kubelet ask of them |
//! | [`sanity`] | csi-sanity against a driver binary |
//! | [`fio`], [`pgbench`] | loads on a device or a directory of this machine |
//! | [`programs`], [`debian`], [`packages`] | what the above is built from where no registry answers |
//! | [`process`], [`interrupt`], [`cache`], [`report`] | bounded commands, Ctrl-C, results kept between runs |
//!
//! # Guarantees
//! - Every command and every wait has a time limit, and ends at once when the user interrupts.
//! - What a value started ends when the value is dropped, after success, failure and Ctrl-C alike. Processes
//!   are ended by the process descriptor that was opened when they were started, containers by their name.
//! - Nothing outside the cache directory (`~/.cache/holdfast`, or below `XDG_CACHE_HOME`), the container
//!   engine's own storage and a temporary directory is written, but for Debian packages that a piece needs
//!   (installed when run as root, named in an error otherwise).

pub mod cache;
mod certificates;
pub mod csi;
pub mod debian;
pub mod deployment;
pub mod engine;
pub mod error;
pub mod fio;
pub mod images;
pub mod interrupt;
pub mod kind;
pub mod packages;
pub mod pgbench;
pub mod plugin;
pub mod process;
pub mod programs;
pub mod report;
pub mod sanity;
pub mod scenarios;
pub mod site;
pub mod stores;
pub mod workload;

use std::path::PathBuf;

pub use error::{Error, Named, Result};

/// The root of the checkout that this library was built from.
pub fn repository() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}
