//! ArchiveTarget: a place in an object store where archived snapshots live.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteQuantity, HumanDuration, schema};

/// Jobs at work for a target at once, when its limits do not say.
pub const DEFAULT_PARALLEL_JOBS: u32 = 2;

/// A pool of archives. Cluster-scoped: an administrator says which namespaces may use it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "holdfast.storage",
    version = "v1alpha1",
    kind = "ArchiveTarget",
    plural = "archivetargets",
    shortname = "atgt",
    category = "holdfast",
    status = "ArchiveTargetStatus",
    derive = "PartialEq",
    doc = "A place in an object store for archived snapshots, and who may use it.",
    validation = Rule::new("self.metadata.name.size() <= 32 && !self.metadata.name.contains('.')")
        .message("the name begins those of its points: at most 32 characters without a dot"),
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.url"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(
        name = "Distributed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Distributed\")].status"
    ),
    printcolumn(name = "Points", type_ = "integer", json_path = ".status.points"),
    printcolumn(name = "Stored", type_ = "integer", json_path = ".status.storedBytes", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new(
        "self.url.startsWith('file://') || (has(self.writerSecretName) && has(self.readerSecretName))"
    )
    .message("an object store needs writerSecretName and readerSecretName"),
    validation = Rule::new("has(self.encryption) == has(oldSelf.encryption)")
        .message("whether a target is encrypted cannot be changed")
)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveTargetSpec {
    /// Where: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///directory.
    #[schemars(
        length(min = 8, max = 1024),
        regex(pattern = "^((s3|gs|az)://[A-Za-z0-9][^?#@ ]*|file:///[^?#@ ]+)$")
    )]
    #[x_kube(validation = Rule::new("self == oldSelf").message("url is immutable: make another target"))]
    pub url: String,
    /// The Secret in Holdfast's namespace with the credentials that may write; only the controller and Jobs get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub writer_secret_name: Option<String>,
    /// The Secret in Holdfast's namespace with the credentials that may only read; nodes get these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub reader_secret_name: Option<String>,
    /// Encrypts what is written. Without it, objects carry checksums only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The namespaces whose policies may archive here and restore from here. An empty selector selects all.
    #[schemars(schema_with = "schema::label_selector")]
    pub namespace_selector: LabelSelector,
    /// Where points may be restored to, among the selected namespaces.
    #[serde(default)]
    pub restore_scope: RestoreScope,
    /// How much archiving may take at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How long points are kept at least, whatever their policies say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<TargetRetention>,
    /// When to read all points back and compare checksums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// Which namespaces may restore a point.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestoreScope {
    /// The namespace of the point's source alone: tenants that share a target do not see each other's data.
    #[default]
    SourceNamespace,
    /// Every namespace that namespaceSelector selects.
    SelectedNamespaces,
}

/// The key of a target.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// The Secret in Holdfast's namespace whose entry `key` holds 32 random bytes, base64-encoded.
    #[schemars(length(min = 1, max = 253))]
    pub key_secret_name: String,
}

/// What archiving to a target may take.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Bytes each Job sends in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteQuantity>,
    /// Jobs at work at once; 2 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub parallel_jobs: Option<i32>,
}

/// Retention that no policy can undercut.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TargetRetention {
    /// The least age of a point before it may expire.
    pub minimum: HumanDuration,
}

/// When to verify a target.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Five fields: minute, hour, day of month, month, day of week.
    #[schemars(length(min = 1, max = 128))]
    pub cron: String,
    /// A zone of the IANA database, in which the expression is read.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl ArchiveTargetSpec {
    /// Jobs that may be at work at once.
    pub fn parallel_jobs(&self) -> usize {
        let asked = self.limits.and_then(|limits| limits.parallel_jobs);
        asked.and_then(|jobs| usize::try_from(jobs).ok()).unwrap_or(DEFAULT_PARALLEL_JOBS as usize)
    }

    /// The least age of a point before it may expire.
    pub fn minimum_retention(&self) -> HumanDuration {
        self.retention.map(|retention| retention.minimum).unwrap_or_default()
    }
}

/// Whether a target can be relied on.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveTargetStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_natural")]
    pub observed_generation: Option<i64>,
    /// The identity of the pool, the same in every cluster.
    #[serde(default, rename = "poolID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pool_id: Option<String>,
    /// How many points the target holds, of all clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_natural")]
    pub points: Option<u64>,
    /// How many bytes its objects take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_natural")]
    pub stored_bytes: Option<u64>,
    /// The scheduled time of the last verification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub last_verification_time: Option<Time>,
    /// The scheduled time of the last verification that found all points whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub last_verified_time: Option<Time>,
    /// Ready: the self-test passed. Distributed: all drivers have loaded it. Verified: the last verification.
    /// Deleting: what deletion waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
