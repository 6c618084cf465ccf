//! What the operator measures, in the OpenMetrics text format.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PolicyLabels {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub policy: String,
}

/// A target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TargetLabels {
    /// Its name.
    pub target: String,
}

/// The end of an archive run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RunLabels {
    /// The target.
    pub target: String,
    /// `complete` or `failed`.
    pub result: &'static str,
}

/// A controller and how its reconciles end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// The kind it reconciles.
    pub controller: &'static str,
    /// `ok`, `conflict` or `error`.
    pub result: &'static str,
}

/// A gauge of whole numbers for each label set.
type Gauges<L> = Family<L, Gauge<u64, AtomicU64>>;

/// All metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// 1 while this replica leads.
    pub leader: Gauge<u64, AtomicU64>,
    /// Reconciles by how they ended.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// Bound claims a policy selects.
    pub policy_volumes: Gauges<PolicyLabels>,
    /// Claims of a policy that break an objective.
    pub policy_breached: Gauges<PolicyLabels>,
    /// The largest local lag of a policy's claims, in seconds.
    pub local_lag: Gauges<PolicyLabels>,
    /// The largest archive lag of a policy's claims, in seconds.
    pub archive_lag: Gauges<PolicyLabels>,
    /// 1 while a target's self-test passes.
    pub target_ready: Gauges<TargetLabels>,
    /// Points in a target.
    pub target_points: Gauges<TargetLabels>,
    /// Bytes that a target's objects take.
    pub target_stored: Gauges<TargetLabels>,
    /// Archive runs by how they ended.
    pub archive_runs: Family<RunLabels, Counter>,
    /// Bytes that complete runs sent.
    pub archived: Family<TargetLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("holdfast");
        let metrics = Self {
            registry: Arc::default(),
            leader: Gauge::default(),
            reconciles: Family::default(),
            policy_volumes: Family::default(),
            policy_breached: Family::default(),
            local_lag: Family::default(),
            archive_lag: Family::default(),
            target_ready: Family::default(),
            target_points: Family::default(),
            target_stored: Family::default(),
            archive_runs: Family::default(),
            archived: Family::default(),
        };
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        registry.register("reconciles", "Reconciles by how they ended", metrics.reconciles.clone());
        registry.register("policy_volumes", "Bound claims a policy selects", metrics.policy_volumes.clone());
        registry.register(
            "policy_breached_volumes",
            "Claims of a policy that break an objective",
            metrics.policy_breached.clone(),
        );
        registry.register_with_unit(
            "policy_local_lag",
            "Largest age of a newest local snapshot among a policy's claims",
            Unit::Seconds,
            metrics.local_lag.clone(),
        );
        registry.register_with_unit(
            "policy_archive_lag",
            "Largest age of a newest archived point among a policy's claims",
            Unit::Seconds,
            metrics.archive_lag.clone(),
        );
        registry.register(
            "target_ready",
            "1 while a target's self-test passes",
            metrics.target_ready.clone(),
        );
        registry.register("target_points", "Points in a target", metrics.target_points.clone());
        registry.register_with_unit(
            "target_stored",
            "Size of a target's objects",
            Unit::Bytes,
            metrics.target_stored.clone(),
        );
        registry.register("archive_runs", "Archive runs by how they ended", metrics.archive_runs.clone());
        registry.register_with_unit(
            "archived",
            "What complete archive runs sent",
            Unit::Bytes,
            metrics.archived.clone(),
        );
        Self { registry: Arc::new(registry), ..metrics }
    }
}

impl Metrics {
    /// All metrics as text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _: std::fmt::Result = encode(&mut text, &self.registry);
        text
    }

    /// Forgets a policy that is gone.
    pub fn forget_policy(&self, policy: &PolicyLabels) {
        for gauges in [&self.policy_volumes, &self.policy_breached, &self.local_lag, &self.archive_lag] {
            gauges.remove(policy);
        }
    }

    /// Forgets a target that is gone.
    pub fn forget_target(&self, target: &TargetLabels) {
        for gauges in [&self.target_ready, &self.target_points, &self.target_stored] {
            gauges.remove(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_carry_the_prefix_and_forget_what_is_gone() {
        let metrics = Metrics::default();
        let policy = PolicyLabels { namespace: "shop".to_owned(), policy: "gold".to_owned() };
        metrics.policy_breached.get_or_create(&policy).set(2);
        let text = metrics.encode();
        assert!(
            text.contains("holdfast_policy_breached_volumes{namespace=\"shop\",policy=\"gold\"} 2"),
            "{text}"
        );
        metrics.forget_policy(&policy);
        assert!(!metrics.encode().contains("gold"));
    }
}
