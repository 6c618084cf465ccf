//! What is noted with an archived point, so that any cluster can tell what it is.

use serde::{Deserialize, Serialize};

/// Where a point comes from, in the words of the cluster that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PointSource {
    /// The cluster: the UID of its kube-system namespace.
    #[serde(rename = "clusterUID")]
    pub cluster_uid: String,
    /// The namespace of the claim.
    pub namespace: String,
    /// The claim.
    pub claim_name: String,
    /// `Filesystem` or `Block`.
    pub volume_mode: String,
    /// The file system, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_type: Option<String>,
}

/// The note of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PointMeta {
    /// Where it comes from.
    pub source: PointSource,
    /// The handle of the snapshot that it is a copy of.
    pub source_handle: String,
    /// The time of its contents, RFC 3339.
    pub point_in_time: String,
    /// When it may be removed, RFC 3339; never by itself if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Bytes of blocks that differed from the point before.
    pub changed_bytes: u64,
}

impl PointMeta {
    /// As noted with the snapshot.
    pub fn to_note(&self) -> String {
        serde_json::to_string(self).expect("a structure of strings and numbers has a JSON form")
    }

    /// Reads a note; `None` if the snapshot is no archived point.
    pub fn from_note(note: &str) -> Option<Self> {
        serde_json::from_str(note).ok()
    }
}
