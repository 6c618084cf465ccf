//! `kubectl holdfast status`: how well each claim is protected, and how far its restore is, from the statuses that the
//! operator keeps.

use std::collections::BTreeMap;

use holdfast_api::archived::Restore;
use holdfast_api::policy::{RecoveryPoint, VolumeProtection};
use holdfast_api::{ArchivedSnapshot, SnapshotPolicy};
use indicatif::BinaryBytes;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;

use super::{ClusterError, connect, doing};
use crate::error::CliError;
use crate::output::{self, Format, Row};

/// Which claims.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The namespace; the context's own if none is named
    #[arg(short, long)]
    namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A claim and a policy that protects it; without one if it is a restore that is still copied back.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Protected {
    namespace: String,
    claim_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    local: PointShown,
    archived: PointShown,
    /// Bytes that the last archive moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_bytes: Option<u64>,
    /// What is copied back from an archive, while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    restore: Option<RestoreShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// What is wrong, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// The last good point of a kind.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct PointShown {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<String>,
}

impl PointShown {
    fn cell(&self) -> String {
        let lag = self.lag.as_ref().map(|lag| format!(" ({lag} ago)")).unwrap_or_default();
        self.time.as_ref().map_or_else(|| "none".into(), |time| format!("{time}{lag}"))
    }
}

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RestoreShown {
    hydrated_bytes: u64,
    /// 0 until it is known.
    total_bytes: u64,
}

impl RestoreShown {
    fn cell(self) -> String {
        let Self { hydrated_bytes, total_bytes } = self;
        if total_bytes == 0 {
            return "begins".into();
        }
        let percent = u128::from(hydrated_bytes) * 100 / u128::from(total_bytes);
        format!("{percent}% of {}", BinaryBytes(total_bytes))
    }
}

/// Claims, by namespace and name, that still read from an archive.
type Restores<'a> = BTreeMap<(&'a str, &'a str), RestoreShown>;

impl Row for Protected {
    const HEADS: &'static [&'static str] = &[
        "NAMESPACE",
        "CLAIM",
        "POLICY",
        "LAST LOCAL",
        "LAST ARCHIVED",
        "MOVED",
        "RESTORED",
        "NEXT",
        "STATUS",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.namespace.clone(),
            self.claim_name.clone(),
            self.policy.clone().unwrap_or_default(),
            self.local.cell(),
            self.archived.cell(),
            self.moved_bytes.map(|bytes| BinaryBytes(bytes).to_string()).unwrap_or_default(),
            self.restore.map(RestoreShown::cell).unwrap_or_default(),
            self.next.clone().unwrap_or_default(),
            self.message.clone().unwrap_or_else(|| "ok".into()),
        ]
    }
}

/// Prints the protection of the claims.
pub async fn run(args: Args) -> Result<(), CliError> {
    let client = connect().await?;
    let rows = protection(client, &args).await?;
    output::list(args.output, &rows)
}

async fn protection(client: Client, args: &Args) -> Result<Vec<Protected>, ClusterError> {
    let own = client.default_namespace().to_owned();
    let namespace = (!args.all_namespaces).then(|| args.namespace.as_deref().unwrap_or(&own));
    let policies: Api<SnapshotPolicy> = match namespace {
        None => Api::all(client.clone()),
        Some(namespace) => Api::namespaced(client.clone(), namespace),
    };
    let everything = ListParams::default();
    let policies = policies.list(&everything).await.map_err(doing("list snapshot policies"))?;
    // A tenant may see the policies of its namespace and not the cluster's points: then bytes and restores
    // are missing.
    let points = match Api::<ArchivedSnapshot>::all(client).list(&everything).await {
        Ok(points) => points.items,
        Err(kube::Error::Api(status)) if status.code == 403 => Vec::new(),
        Err(error) => return Err(doing("list archived snapshots")(error)),
    };
    Ok(rows(&policies.items, &points, namespace))
}

/// A row for each claim and policy, and for each restore under way of a claim that has no policy; of `namespace`, or of
/// all.
fn rows(policies: &[SnapshotPolicy], points: &[ArchivedSnapshot], namespace: Option<&str>) -> Vec<Protected> {
    let statuses = || points.iter().filter_map(|point| Some((point, point.status.as_ref()?)));
    let moved: BTreeMap<String, u64> = statuses()
        .filter_map(|(point, status)| Some((point.name_any(), status.progress.as_ref()?.transferred_bytes)))
        .collect();
    let restores: Restores = statuses()
        .flat_map(|(_, status)| &status.restores)
        .filter(|restore| restore.needs_archive() && namespace.is_none_or(|name| name == restore.namespace))
        .map(|Restore { namespace, claim_name, hydrated_bytes, total_bytes }| {
            let shown = RestoreShown { hydrated_bytes: *hydrated_bytes, total_bytes: *total_bytes };
            ((namespace.as_str(), claim_name.as_str()), shown)
        })
        .collect();
    let mut rows: Vec<Protected> = policies
        .iter()
        .filter_map(|policy| Some((policy, policy.status.as_ref()?)))
        .flat_map(|(policy, status)| {
            let next = status.next_run_time.as_ref().map(|time| time.0.to_string());
            status.volumes.iter().map(move |volume| (policy, volume, next.clone()))
        })
        .map(|(policy, volume, next)| row(policy, volume, next, &moved, &restores))
        .collect();
    let unprotected = restores.iter().filter(|((namespace, claim), _)| {
        !rows.iter().any(|row| row.namespace == *namespace && row.claim_name == *claim)
    });
    rows.extend(unprotected.map(restored).collect::<Vec<_>>());
    rows.sort_by(|a, b| {
        (&a.namespace, &a.claim_name, &a.policy).cmp(&(&b.namespace, &b.claim_name, &b.policy))
    });
    rows
}

fn row(
    policy: &SnapshotPolicy,
    volume: &VolumeProtection,
    next: Option<String>,
    moved: &BTreeMap<String, u64>,
    restores: &Restores,
) -> Protected {
    let shown = |point: &Option<RecoveryPoint>, lag: Option<String>| PointShown {
        name: point.as_ref().map(|point| point.name.clone()),
        time: point.as_ref().map(|point| point.time.0.to_string()),
        lag,
    };
    let archived = shown(&volume.last_archived, volume.archive_lag.map(|lag| lag.to_string()));
    let namespace = policy.namespace().unwrap_or_default();
    Protected {
        restore: restores.get(&(namespace.as_str(), volume.claim_name.as_str())).copied(),
        namespace,
        claim_name: volume.claim_name.clone(),
        policy: Some(policy.name_any()),
        local: shown(&volume.last_local, volume.local_lag.map(|lag| lag.to_string())),
        moved_bytes: archived.name.as_ref().and_then(|name| moved.get(name)).copied(),
        archived,
        next,
        message: volume.message.clone(),
    }
}

/// A restore whose claim no policy protects.
fn restored((&(namespace, claim_name), &restore): (&(&str, &str), &RestoreShown)) -> Protected {
    Protected {
        namespace: namespace.into(),
        claim_name: claim_name.into(),
        policy: None,
        local: PointShown::default(),
        archived: PointShown::default(),
        moved_bytes: None,
        restore: Some(restore),
        next: None,
        message: Some("no policy".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_shown_with_its_points_and_what_is_wrong() {
        let policy: SnapshotPolicy = serde_json::from_value(json!({
            "apiVersion": "holdfast.storage/v1alpha1", "kind": "SnapshotPolicy",
            "metadata": {"name": "gold", "namespace": "shop"},
            "spec": {
                "selector": {}, "volumeSnapshotClassName": "holdfast",
                "schedules": [{"name": "hourly", "cron": "0 * * * *"}], "retention": {"hourly": 1},
            },
            "status": {
                "nextRunTime": "2026-11-23T11:02:00Z",
                "volumes": [{
                    "claimName": "data-pg-2",
                    "lastLocal": {"name": "gold-1", "time": "2026-11-23T10:00:00Z"},
                    "lastArchived": {"name": "offsite-1", "time": "2026-11-23T05:00:00Z"},
                    "archiveLag": "5h", "message": "archived 5h ago, promised 4h",
                }],
            },
        }))
        .unwrap();
        let point: ArchivedSnapshot = serde_json::from_value(json!({
            "apiVersion": "holdfast.storage/v1alpha1", "kind": "ArchivedSnapshot",
            "metadata": {"name": "offsite-1"},
            "spec": {
                "targetName": "offsite", "pointInTime": "2026-11-23T05:00:00Z",
                "source": {
                    "clusterUID": "0b6e", "namespace": "shop", "claimName": "data-pg-2", "volumeMode": "Filesystem",
                },
            },
            "status": {
                "phase": "Complete", "progress": {"changedBytes": 9, "transferredBytes": 4096},
                "restores": [
                    {"namespace": "shop", "claimName": "data-pg-2", "hydratedBytes": 1 << 30, "totalBytes": 3_u64 << 30},
                    {"namespace": "shop", "claimName": "done", "hydratedBytes": 7, "totalBytes": 7},
                    {"namespace": "lab", "claimName": "copy", "hydratedBytes": 0, "totalBytes": 0},
                ],
            },
        }))
        .unwrap();
        let (policies, points) = ([policy], [point]);
        let all = rows(&policies, &points, None);
        let rows = rows(&policies, &points, Some("shop"));
        assert_eq!(rows.len(), 1, "{rows:?}");
        let restored: Vec<&Protected> = all.iter().filter(|row| row.policy.is_none()).collect();
        let [restored] = restored[..] else { panic!("{all:?}") };
        assert_eq!(restored.cells(), ["lab", "copy", "", "none", "none", "", "begins", "", "no policy"]);
        assert_eq!(
            rows[0].cells(),
            [
                "shop",
                "data-pg-2",
                "gold",
                "2026-11-23T10:00:00Z",
                "2026-11-23T05:00:00Z (5h ago)",
                "4.00 KiB",
                "33% of 3.00 GiB",
                "2026-11-23T11:02:00Z",
                "archived 5h ago, promised 4h",
            ]
        );
    }
}
