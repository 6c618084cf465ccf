//! ArchivedSnapshot: a recovery point in an archive target.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteQuantity, schema};

/// Most restores that a status lists.
pub const MAX_LISTED_RESTORES: usize = 64;

/// A point in an archive, written by the operator: for each snapshot that a policy wants archived, and for each point
/// that another cluster wrote. Deleting the object does not delete the point; it is found again.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "holdfast.storage",
    version = "v1alpha1",
    kind = "ArchivedSnapshot",
    plural = "archivedsnapshots",
    shortname = "asnap",
    category = "holdfast",
    status = "ArchivedSnapshotStatus",
    derive = "PartialEq",
    doc = "A recovery point in an archive target.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name becomes a label: at most 63 characters"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.source.namespace"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".spec.source.claimName"),
    printcolumn(name = "Time", type_ = "string", json_path = ".spec.pointInTime"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.restoreSize"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetName"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(oldSelf.snapshotHandle) || (has(self.snapshotHandle) && self.snapshotHandle == oldSelf.snapshotHandle)")
        .message("snapshotHandle is set once, when the point exists"),
    validation = Rule::new("has(self.snapshotHandle) || has(self.origin)")
        .message("a point either exists (snapshotHandle) or is to be made (origin)")
)]
#[serde(rename_all = "camelCase")]
pub struct ArchivedSnapshotSpec {
    /// The ArchiveTarget that holds the point.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("targetName is immutable"))]
    pub target_name: String,
    /// The CSI handle of the point, once it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub snapshot_handle: Option<String>,
    /// The time of the contents.
    #[schemars(schema_with = "schema::time")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("pointInTime is immutable"))]
    pub point_in_time: Time,
    /// The volume that was archived.
    #[x_kube(validation = Rule::new("self == oldSelf").message("source is immutable"))]
    pub source: ArchiveSource,
    /// The local snapshot that is copied; absent on points that another cluster wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Until when the point is promised; absent means until somebody deletes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub expires_at: Option<Time>,
}

/// Which volume a point is of. Stored with the point, so that every cluster can read it.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveSource {
    /// The UID of the cluster: that of its kube-system namespace.
    #[serde(rename = "clusterUID")]
    #[schemars(length(max = 64))]
    pub cluster_uid: String,
    /// The claim's namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// The claim.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// Filesystem or Block.
    #[serde(default)]
    pub volume_mode: VolumeMode,
    /// The file system, when the mode is Filesystem and it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub fs_type: Option<String>,
}

impl ArchiveSource {
    /// Whether both are of one volume, whatever its mode was recorded as.
    pub fn same_volume(&self, other: &Self) -> bool {
        self.cluster_uid == other.cluster_uid
            && self.namespace == other.namespace
            && self.claim_name == other.claim_name
    }
}

/// How a volume is used, as Kubernetes names it.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum VolumeMode {
    /// Mounted with a file system.
    #[default]
    Filesystem,
    /// A raw block device.
    Block,
}

impl VolumeMode {
    /// The mode of that name; Kubernetes takes a volume for a file system unless it says Block.
    pub fn named(name: &str) -> Self {
        if name == Self::Block.as_str() { Self::Block } else { Self::Filesystem }
    }

    /// The name Kubernetes uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filesystem => "Filesystem",
            Self::Block => "Block",
        }
    }
}

/// The local snapshot a point is made from.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The VolumeSnapshot, in the source's namespace.
    #[schemars(length(min = 1, max = 253))]
    pub volume_snapshot_name: String,
    /// Its UID.
    #[serde(rename = "uid")]
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Its CSI handle.
    #[schemars(length(min = 1, max = 128))]
    pub snapshot_handle: String,
}

/// Where a point is in its life.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Waits for its Job to start.
    #[default]
    Pending,
    /// A Job copies it.
    Archiving,
    /// The target has it.
    Complete,
    /// The last try failed; it is tried again while it is its volume's newest.
    Failed,
    /// The target had it and has it no more.
    Missing,
}

impl Phase {
    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Archiving => "Archiving",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
            Self::Missing => "Missing",
        }
    }
}

/// How far a point is, and who restores from it.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ArchivedSnapshotStatus {
    /// Where the point is in its life.
    #[serde(default)]
    pub phase: Phase,
    /// The least size of a volume restored from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<ByteQuantity>,
    /// What the copy has moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Until when the point is promised, as the target has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub expires_at: Option<Time>,
    /// How many Jobs have been started for it.
    #[serde(default)]
    #[schemars(schema_with = "schema::natural")]
    pub attempts: u32,
    /// When the last Job failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub last_failure_time: Option<Time>,
    /// The claims restored from it; at most 64, those still copying back first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub restores: Vec<Restore>,
    /// Archived: the copy. Verified: the last verification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What an archive run moves.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Bytes that differ from the point archived before.
    #[schemars(schema_with = "schema::natural")]
    pub changed_bytes: u64,
    /// Bytes of them read and sent.
    #[schemars(schema_with = "schema::natural")]
    pub transferred_bytes: u64,
}

/// A claim restored from a point.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Restore {
    /// The claim's namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// The claim.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// Bytes copied back; the rest is read from the archive when needed.
    #[schemars(schema_with = "schema::natural")]
    pub hydrated_bytes: u64,
    /// Bytes to copy back in all.
    #[schemars(schema_with = "schema::natural")]
    pub total_bytes: u64,
}

impl Restore {
    /// Whether the volume still reads from the archive.
    pub const fn needs_archive(&self) -> bool {
        self.hydrated_bytes < self.total_bytes || self.total_bytes == 0
    }
}
