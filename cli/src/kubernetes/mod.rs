//! What a person asks of a cluster, as `kubectl holdfast`. Everything here needs only the caller's own rights.

pub mod browse;
pub mod restore;
pub mod status;
mod terminal;

use std::io;

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
    /// A point of a raw block volume has no files.
    #[error("archived point {point} is of a raw block volume, which has no files: restore it instead")]
    NoFiles {
        /// The point.
        point: String,
    },
    /// A local snapshot cannot be used yet.
    #[error("VolumeSnapshot {snapshot} is not ready: it does not say its size yet")]
    NotReady {
        /// The snapshot.
        snapshot: String,
    },
    /// The image of Holdfast cannot be found out.
    #[error(
        "cannot read which image Holdfast runs in namespace {namespace}: give --image or --holdfast-namespace"
    )]
    NoImage {
        /// Where it was looked for.
        namespace: String,
    },
    /// The pod did not get its volume.
    #[error("pod {pod} was not running after {waited}: kubectl get events says why; --timeout waits longer")]
    NotMounted {
        /// The pod.
        pod: String,
        /// How long it was waited for.
        waited: String,
    },
    /// Watching an object failed.
    #[error("cannot watch {what}: {reason}")]
    Watch {
        /// The object.
        what: String,
        /// What failed.
        reason: String,
    },
    /// The streams to or from a pod broke.
    #[error("the connection to the pod broke: {source}")]
    Stream {
        /// What the system said.
        source: io::Error,
    },
    /// A command in a pod failed.
    #[error("{command}: {reason}")]
    Command {
        /// The command.
        command: String,
        /// What the node said.
        reason: String,
    },
    /// The user had enough.
    #[error("interrupted")]
    Interrupted,
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
