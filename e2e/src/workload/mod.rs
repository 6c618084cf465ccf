//! What runs on volumes in the demo and in the scenarios.

mod fio;
mod postgres;
mod protection;

pub use fio::Fio;
pub use postgres::{Bench, Postgres};
pub use protection::{Hydration, Point, Protection};

use crate::{Result, kind::Cluster};

/// Makes a namespace; one that exists is fine.
pub fn ensure_namespace(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"))
}
