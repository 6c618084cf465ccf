//! Registered nodes: `nodes/NODE`. A controller publishes only to nodes that have registered.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::names::check_name;
use super::{LIST_PAGE, Pool, PoolError, layout};
use crate::ids::ObjectId;

/// The body of a registration.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registration {
    node: String,
    registered_ms: u64,
    nonce: ObjectId,
}

fn check_node(name: &str) -> Result<(), PoolError> {
    check_name(name)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.chars().all(fits) && name.chars().any(|c| c != '.') {
        return Ok(());
    }
    let reason = "a node's name has letters, digits, dots, hyphens and underscores only";
    Err(PoolError::BadName { name: name.chars().take(64).collect(), reason })
}

impl Pool {
    /// Registers a node; one that is registered stays so.
    pub async fn register_node(&self, name: &str, deadline: Instant) -> Result<(), PoolError> {
        check_node(name)?;
        let registration = Registration {
            node: name.to_owned(),
            registered_ms: self.env.clock.now_ms(),
            nonce: ObjectId::random(&*self.env.entropy),
        };
        self.create(&layout::node(name), &registration, deadline).await.map(|_| ())
    }

    /// Whether a node is registered.
    pub async fn has_node(&self, name: &str, deadline: Instant) -> Result<bool, PoolError> {
        check_node(name)?;
        Ok(self.read::<Registration>(&layout::node(name), deadline).await?.is_some())
    }

    /// The names of the registered nodes, sorted.
    pub async fn nodes(&self, deadline: Instant) -> Result<Vec<String>, PoolError> {
        let mut names = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let listed = self.list(layout::NODES, after.as_deref(), LIST_PAGE, deadline).await?;
            names.extend(
                listed.iter().filter_map(|found| found.key.strip_prefix(layout::NODES)).map(str::to_owned),
            );
            if listed.len() < LIST_PAGE {
                return Ok(names);
            }
            after = listed.into_iter().next_back().map(|found| found.key);
        }
    }

    /// Removes a node's registration.
    pub async fn remove_node(&self, name: &str, deadline: Instant) -> Result<(), PoolError> {
        check_node(name)?;
        self.delete(&layout::node(name), deadline).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pool::testing;

    #[tokio::test]
    async fn a_node_is_known_from_its_registration_to_its_removal() {
        let pool = testing::pool().await;
        let soon = Instant::now() + Duration::from_secs(60);
        assert!(!pool.has_node("worker-1.example", soon).await.unwrap());
        for name in ["worker-1.example", "worker-0", "worker-0"] {
            pool.register_node(name, soon).await.unwrap();
        }
        assert_eq!(pool.nodes(soon).await.unwrap(), ["worker-0", "worker-1.example"]);
        pool.remove_node("worker-0", soon).await.unwrap();
        assert!(!pool.has_node("worker-0", soon).await.unwrap());
        for name in ["", "..", "a/b", "a b"] {
            let refused = pool.register_node(name, soon).await;
            assert!(matches!(refused, Err(PoolError::BadName { .. })), "{name:?}");
        }
    }
}
