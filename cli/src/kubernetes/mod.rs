//! What a person asks of a cluster, as `kubectl holdfast`. Everything here needs only the caller's own rights.

pub mod restore;
pub mod status;

use kube::Client;

/// Why a cluster did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no way to a cluster.
    #[error("no cluster can be reached: {0}")]
    NoCluster(kube::Error),
    /// The cluster refused or failed.
    #[error("cannot {what}: {reason}")]
    Api {
        /// What was to be done.
        what: String,
        /// What the API server said.
        reason: kube::Error,
    },
    /// No archived point fits.
    #[error(
        "no complete archived point of claim {claim} in namespace {namespace}{at}; kubectl get archivedsnapshots shows all"
    )]
    NoPoint {
        /// The claim.
        claim: String,
        /// Its namespace.
        namespace: String,
        /// The condition on the time, if any.
        at: String,
    },
    /// A point that was named cannot be restored.
    #[error("archived point {point} cannot be restored: it is {phase}")]
    NotComplete {
        /// The point.
        point: String,
        /// Where it is in its life.
        phase: &'static str,
    },
    /// A claim has the name already.
    #[error("namespace {namespace} has a claim {claim} already: choose another name with --as, or delete it")]
    ClaimExists {
        /// The claim.
        claim: String,
        /// The namespace.
        namespace: String,
    },
    /// The point does not say how large it is, so a size is needed.
    #[error("archived point {point} does not say its size yet: give --size")]
    NoSize {
        /// The point.
        point: String,
    },
}

/// The cluster of the current context, and the context's namespace.
async fn connect() -> Result<Client, ClusterError> {
    Client::try_default().await.map_err(ClusterError::NoCluster)
}

/// Says what was to be done when it failed.
fn doing(what: impl Into<String>) -> impl FnOnce(kube::Error) -> ClusterError {
    let what = what.into();
    move |reason| ClusterError::Api { what, reason }
}
