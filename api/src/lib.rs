//! Holdfast's Kubernetes API, group `holdfast.storage/v1alpha1`, and the pure rules on it.
//!
//! Three resources: [`SnapshotPolicy`] says what is protected and how well, [`ArchiveTarget`] where archives live, and
//! [`ArchivedSnapshot`] is a recovery point in one. The rules ([`schedule`], [`retention`], [`objective`],
//! [`names`]) are functions of their arguments: no client, no clock, no randomness, so the operator and the
//! command line come to the same answers.

pub mod archived;
pub mod names;
pub mod objective;
pub mod policy;
pub mod retention;
pub mod schedule;
mod schema;
pub mod target;
pub mod units;

pub use archived::{ArchiveSource, ArchivedSnapshot, ArchivedSnapshotSpec, ArchivedSnapshotStatus};
pub use k8s_openapi::jiff;
pub use policy::{SnapshotPolicy, SnapshotPolicySpec, SnapshotPolicyStatus};
pub use target::{ArchiveTarget, ArchiveTargetSpec, ArchiveTargetStatus};
pub use units::{ByteQuantity, HumanDuration, UnitError};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The API group of all resources.
pub const GROUP: &str = "holdfast.storage";
/// The name of the CSI driver.
pub const DRIVER: &str = "csi.holdfast.storage";

/// Labels on what the operator makes.
pub mod labels {
    /// Kubernetes' own label for who looks after an object.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The value of [`MANAGED_BY`] on what the operator makes.
    pub const OPERATOR: &str = "holdfast-operator";
    /// The SnapshotPolicy that a recovery point belongs to.
    pub const POLICY: &str = "holdfast.storage/policy";
    /// The namespace of that policy, on cluster-scoped objects.
    pub const NAMESPACE: &str = "holdfast.storage/namespace";
    /// The schedule that made a snapshot.
    pub const SCHEDULE: &str = "holdfast.storage/schedule";
    /// The claim that a recovery point is of.
    pub const CLAIM: &str = "holdfast.storage/claim";
    /// The ArchiveTarget that an object belongs to.
    pub const TARGET: &str = "holdfast.storage/target";
    /// The ArchivedSnapshot that a Job or a restore belongs to.
    pub const ARCHIVED_SNAPSHOT: &str = "holdfast.storage/archived-snapshot";
    /// What a Job does: archive, expire or verify.
    pub const ACTION: &str = "holdfast.storage/action";
}

/// Annotations the operator writes or obeys.
pub mod annotations {
    /// On a VolumeSnapshot: the scheduled time it was taken for, RFC 3339.
    pub const SCHEDULED_AT: &str = "holdfast.storage/scheduled-at";
    /// On a VolumeSnapshot: the claim's volume mode.
    pub const VOLUME_MODE: &str = "holdfast.storage/volume-mode";
    /// On a VolumeSnapshot: the claim's file system.
    pub const FS_TYPE: &str = "holdfast.storage/fs-type";
    /// On a VolumeSnapshot that asks for a restore it may not have: why.
    pub const RESTORE_DENIED: &str = "holdfast.storage/restore-denied";
    /// On drivers' pods: changed so that the kubelet refreshes the projected targets at once.
    pub const TARGETS_GENERATION: &str = "holdfast.storage/targets-generation";
    /// On an ArchiveTarget: `"true"` lets it go although volumes may still need it.
    pub const FORCE_DELETE: &str = "holdfast.storage/force-delete";
}

/// Keeps an ArchiveTarget while restored volumes still read from it.
pub const TARGET_FINALIZER: &str = "holdfast.storage/archive-target";

/// The definitions of all resources, as the chart installs them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![SnapshotPolicy::crd(), ArchiveTarget::crd(), ArchivedSnapshot::crd()]
}
