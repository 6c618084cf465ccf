//! `kubectl holdfast restore`: a claim from an archived point, in one command instead of a VolumeSnapshot and a claim.

use holdfast_api::archived::{ArchivedSnapshotStatus, Phase};
use holdfast_api::jiff::Timestamp;
use holdfast_api::{ArchivedSnapshot, ByteQuantity, names};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde_json::json;

use super::{ClusterError, connect, doing};
use crate::error::CliError;
use crate::output::{self, Format};

/// What to restore, and as what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The claim as it was called when it was archived
    claim: String,
    /// The namespace to restore into; the context's own if none is named
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    source: Source,
    /// The name of the new claim; the old one if none is given
    #[arg(long = "as", value_name = "CLAIM")]
    new_name: Option<String>,
    /// The new claim's StorageClass
    #[arg(long, default_value = "holdfast")]
    storage_class: String,
    /// The new claim's size; the point's if none is given
    #[arg(long)]
    size: Option<ByteQuantity>,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Which archived point of a claim.
#[derive(Debug, clap::Args)]
pub struct Source {
    /// The namespace that the claim was archived from, if it was another one
    #[arg(long)]
    from_namespace: Option<String>,
    /// An archived point by its name; the newest complete one of the claim if none is named
    #[arg(long)]
    point: Option<String>,
    /// The newest point that is not younger than this, RFC 3339
    #[arg(long, value_name = "TIME", conflicts_with = "point")]
    at: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Restored {
    namespace: String,
    claim_name: String,
    point: String,
    point_in_time: String,
}

/// Asks for the volume. It mounts as soon as a pod uses the claim; its data follow.
pub async fn run(args: Args) -> Result<(), CliError> {
    let client = connect().await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let restored = restore(client, &args, namespace).await?;
    let sentence = format!(
        "claim {} in namespace {} is restored from {} ({}); kubectl get archivedsnapshot {} -o yaml shows its progress",
        restored.claim_name, restored.namespace, restored.point, restored.point_in_time, restored.point
    );
    output::done(args.output, &restored, &sentence)
}

async fn restore(client: Client, args: &Args, namespace: String) -> Result<Restored, ClusterError> {
    let point = find(client.clone(), &args.source, Some(&args.claim), &namespace).await?;
    let claim_name = args.new_name.clone().unwrap_or_else(|| args.claim.clone());
    let size =
        args.size.or(restore_size(&point)).ok_or_else(|| ClusterError::NoSize { point: point.name_any() })?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    let existing =
        claims.get_opt(&claim_name).await.map_err(doing(format!("look for claim {claim_name}")))?;
    if existing.is_some() {
        return Err(ClusterError::ClaimExists { claim: claim_name, namespace });
    }
    let snapshot_name = ask_for(client, &point, &namespace).await?;
    let claim = claim(&point, &namespace, &claim_name, &snapshot_name, &args.storage_class, size);
    claims
        .create(&PostParams::default(), &claim)
        .await
        .map_err(doing(format!("create claim {claim_name}")))?;
    let point_in_time = point.spec.point_in_time.0.to_string();
    Ok(Restored { namespace, claim_name, point: point.name_any(), point_in_time })
}

/// The point that is meant, which is complete. `claim` may be left out if the point is named.
pub(super) async fn find(
    client: Client,
    source: &Source,
    claim: Option<&str>,
    namespace: &str,
) -> Result<ArchivedSnapshot, ClusterError> {
    let points: Api<ArchivedSnapshot> = Api::all(client);
    if let Some(name) = &source.point {
        return named(points.get(name).await.map_err(doing(format!("read archived point {name}")))?);
    }
    let all = points.list(&ListParams::default()).await.map_err(doing("list archived points"))?;
    let from = source.from_namespace.as_deref().unwrap_or(namespace);
    newest(all.items, from, claim.unwrap_or_default(), source.at)
}

/// Makes the VolumeSnapshot by which the namespace asks for the point, and returns its name.
pub(super) async fn ask_for(
    client: Client,
    point: &ArchivedSnapshot,
    namespace: &str,
) -> Result<String, ClusterError> {
    let resource = snapshot_resource();
    let snapshots: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
    let snapshot = snapshot(&resource, point, namespace);
    let name = snapshot.name_any();
    match snapshots.create(&PostParams::default(), &snapshot).await {
        Ok(_) => Ok(name),
        // An earlier restore from the same point has made it; it says the same.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(name),
        Err(error) => Err(doing(format!("create VolumeSnapshot {name}"))(error)),
    }
}

fn phase(point: &ArchivedSnapshot) -> Phase {
    point.status.as_ref().map(|status| status.phase).unwrap_or_default()
}

/// The least size of a volume made from the point.
pub(super) fn restore_size(point: &ArchivedSnapshot) -> Option<ByteQuantity> {
    point.status.as_ref().and_then(|ArchivedSnapshotStatus { restore_size, .. }| *restore_size)
}

/// A point that was asked for by name.
fn named(point: ArchivedSnapshot) -> Result<ArchivedSnapshot, ClusterError> {
    match phase(&point) {
        Phase::Complete => Ok(point),
        other => Err(ClusterError::NotComplete { point: point.name_any(), phase: other.as_str() }),
    }
}

/// The newest complete point of a claim, not younger than `at`.
fn newest(
    points: Vec<ArchivedSnapshot>,
    namespace: &str,
    claim: &str,
    at: Option<Timestamp>,
) -> Result<ArchivedSnapshot, ClusterError> {
    let fits = |point: &ArchivedSnapshot| {
        let source = &point.spec.source;
        source.namespace == namespace
            && source.claim_name == claim
            && phase(point) == Phase::Complete
            && at.is_none_or(|at| point.spec.point_in_time.0 <= at)
    };
    let newest = points.into_iter().filter(fits).max_by_key(|point| point.spec.point_in_time.0);
    newest.ok_or_else(|| ClusterError::NoPoint {
        claim: claim.to_owned(),
        namespace: namespace.to_owned(),
        at: at.map(|at| format!(" at or before {at}")).unwrap_or_default(),
    })
}

/// What VolumeSnapshots are to the API server.
pub(super) fn snapshot_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshot"))
}

/// The VolumeSnapshot by which a namespace asks for a point.
fn snapshot(resource: &ApiResource, point: &ArchivedSnapshot, namespace: &str) -> DynamicObject {
    let content = names::restore_content(&point.name_any(), namespace);
    DynamicObject::new(&point.name_any(), resource)
        .within(namespace)
        .data(json!({"spec": {"source": {"volumeSnapshotContentName": content}}}))
}

fn claim(
    point: &ArchivedSnapshot,
    namespace: &str,
    name: &str,
    snapshot: &str,
    class: &str,
    size: ByteQuantity,
) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "storageClassName": class,
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": point.spec.source.volume_mode.as_str(),
            "resources": {"requests": {"storage": size.to_string()}},
            "dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot},
        },
    }))
    .expect("a claim with these fields is one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(name: &str, time: &str, phase: &str) -> ArchivedSnapshot {
        serde_json::from_value(json!({
            "apiVersion": "holdfast.storage/v1alpha1", "kind": "ArchivedSnapshot", "metadata": {"name": name},
            "spec": {
                "targetName": "offsite", "pointInTime": time,
                "source": {"clusterUID": "u", "namespace": "shop", "claimName": "data", "volumeMode": "Block"},
            },
            "status": {"phase": phase, "restoreSize": "10Gi"},
        }))
        .unwrap()
    }

    fn points() -> Vec<ArchivedSnapshot> {
        vec![
            point("a", "2026-11-23T05:00:00Z", "Complete"),
            point("c", "2026-11-23T07:00:00Z", "Failed"),
            point("b", "2026-11-23T06:00:00Z", "Complete"),
        ]
    }

    #[test]
    fn the_newest_complete_point_is_taken() {
        assert_eq!(newest(points(), "shop", "data", None).unwrap().name_any(), "b");
        let at = "2026-11-23T05:30:00Z".parse().ok();
        assert_eq!(newest(points(), "shop", "data", at).unwrap().name_any(), "a");
        for (namespace, claim) in [("shop", "other"), ("other", "data")] {
            assert!(matches!(newest(points(), namespace, claim, None), Err(ClusterError::NoPoint { .. })));
        }
    }

    #[test]
    fn a_point_that_is_not_complete_is_not_restored_by_name_either() {
        let failed = named(points().remove(1)).unwrap_err();
        assert!(failed.to_string().contains("Failed"), "{failed}");
    }

    #[test]
    fn the_claim_asks_for_the_point_in_the_standard_way() {
        let point = points().remove(0);
        let snapshot = snapshot(&snapshot_resource(), &point, "shop");
        assert_eq!(snapshot.data["spec"]["source"]["volumeSnapshotContentName"], "holdfast-a-shop");
        let size = restore_size(&point).unwrap();
        let claim = claim(&point, "shop", "data-2", &snapshot.name_any(), "holdfast", size);
        let spec = serde_json::to_value(claim.spec.unwrap()).unwrap();
        assert_eq!(spec["dataSource"]["name"], "a");
        assert_eq!(
            (&spec["volumeMode"], &spec["resources"]["requests"]["storage"]),
            (&json!("Block"), &json!("10Gi"))
        );
    }
}
