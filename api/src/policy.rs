//! SnapshotPolicy: which volumes of a namespace are protected, when, for how long, and how well.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{HumanDuration, schema};

/// Most volumes that a status lists; those in breach come first.
pub const MAX_LISTED_VOLUMES: usize = 256;

/// Takes snapshots of the selected claims on schedules, thins them out, and archives them to a target.
///
/// Recovery points are VolumeSnapshots of their own: deleting a policy deletes none of them.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "holdfast.storage",
    version = "v1alpha1",
    kind = "SnapshotPolicy",
    plural = "snapshotpolicies",
    shortname = "spol",
    category = "holdfast",
    namespaced,
    status = "SnapshotPolicyStatus",
    derive = "PartialEq",
    doc = "Protects the selected volumes of a namespace: snapshots on schedules, retention, archives, objectives.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name becomes a label: at most 63 characters"),
    printcolumn(name = "Volumes", type_ = "integer", json_path = ".status.matchedVolumes"),
    printcolumn(name = "Breached", type_ = "integer", json_path = ".status.breachedVolumes"),
    printcolumn(
        name = "Compliant",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Compliant\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Compliant\")].reason"
    ),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextRunTime"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.archive.targetName", priority = "1"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspend", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.archive) || self.archive.schedules.all(n, self.schedules.exists(s, s.name == n))")
        .message("archive.schedules may only name schedules of this policy"),
    validation = Rule::new("!has(self.objectives) || !has(self.objectives.archiveRPO) || has(self.archive)")
        .message("objectives.archiveRPO needs an archive section to be met by")
)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotPolicySpec {
    /// The claims of this namespace to protect, by their labels. An empty selector selects all.
    #[schemars(schema_with = "schema::label_selector")]
    pub selector: LabelSelector,
    /// The VolumeSnapshotClass of the snapshots; its driver must be the claims' driver.
    #[schemars(length(min = 1, max = 253))]
    pub volume_snapshot_class_name: String,
    /// Whether to hold all schedules. Retention and status go on.
    #[serde(default)]
    pub suspend: bool,
    /// When to take snapshots.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub schedules: Vec<Schedule>,
    /// Which local snapshots to keep. Periods are counted in the time zone of the first schedule.
    pub retention: Retention,
    /// Which snapshots to copy to an archive target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveRule>,
    /// What is promised; the Compliant condition compares it with what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<Objectives>,
}

/// A cron expression in a time zone.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// What archive.schedules and the snapshots' labels call it.
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Five fields (minute, hour, day of month, month, day of week), or @hourly, @daily, @weekly, @monthly, @yearly.
    #[schemars(length(min = 1, max = 128))]
    pub cron: String,
    /// A zone of the IANA database, in which the expression is read.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// Spreads the volumes over this time after each scheduled one; each volume keeps its own place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<HumanDuration>,
    /// How late a missed run may still start. Only the latest missed run is made up; without a deadline, always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_deadline: Option<HumanDuration>,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// How many periods keep a point. The first point of a period stands for it, and the newest point is always kept.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[x_kube(
    validation = Rule::new("self.hourly + self.daily + self.weekly + self.monthly + self.yearly > 0")
        .message("at least one of hourly, daily, weekly, monthly, yearly must be greater than 0")
)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Hours that keep their first point.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub hourly: u32,
    /// Days that keep their first point.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub daily: u32,
    /// Weeks, from Monday, that keep their first point.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub weekly: u32,
    /// Months that keep their first point.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub monthly: u32,
    /// Years that keep their first point.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub yearly: u32,
}

/// Copies the snapshots of some schedules to an archive target.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveRule {
    /// The ArchiveTarget; its namespaceSelector must select this namespace.
    #[schemars(length(min = 1, max = 32))]
    pub target_name: String,
    /// The schedules whose snapshots are archived.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub schedules: Vec<String>,
    /// How long archived points are promised; without it, until somebody deletes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// The most work that may be lost, as the age of the newest point.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Objectives {
    /// The largest age of the newest local snapshot.
    #[serde(default, rename = "localRPO", skip_serializing_if = "Option::is_none")]
    pub local_rpo: Option<HumanDuration>,
    /// The largest age of the newest archived point.
    #[serde(default, rename = "archiveRPO", skip_serializing_if = "Option::is_none")]
    pub archive_rpo: Option<HumanDuration>,
}

/// Whether the volumes are safe.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotPolicyStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_natural")]
    pub observed_generation: Option<i64>,
    /// How many bound claims the selector matches.
    #[serde(default)]
    #[schemars(schema_with = "schema::natural")]
    pub matched_volumes: u32,
    /// How many of them break an objective now.
    #[serde(default)]
    #[schemars(schema_with = "schema::natural")]
    pub breached_volumes: u32,
    /// When the next snapshot is due, of any volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub next_run_time: Option<Time>,
    /// Accepted: the spec can be carried out. Compliant: the objectives are met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The volumes, those in breach first; at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub volumes: Vec<VolumeProtection>,
}

/// How well one volume is protected.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct VolumeProtection {
    /// The claim.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// The newest snapshot that is ready to use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_local: Option<RecoveryPoint>,
    /// The newest archived point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archived: Option<RecoveryPoint>,
    /// How far the newest snapshot lies behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_lag: Option<HumanDuration>,
    /// How far the newest archived point lies behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_lag: Option<HumanDuration>,
    /// What is wrong, if something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// A point to go back to.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPoint {
    /// The VolumeSnapshot or ArchivedSnapshot.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The point in time of its contents.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
}
