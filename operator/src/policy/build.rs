//! Build: the objects that a policy's reconcile creates. Pure.

use std::collections::BTreeMap;

use holdfast_api::archived::{ArchiveSource, Origin, VolumeMode};
use holdfast_api::jiff::Timestamp;
use holdfast_api::{ArchivedSnapshot, ArchivedSnapshotSpec, SnapshotPolicy, annotations, labels, names};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::api;
use crate::policy::observe::Observed;
use crate::policy::plan::Take;
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotSource, VolumeSnapshotSpec};

/// The VolumeSnapshot to take. Volume mode and file system are noted on it, because the volume may be gone when
/// the snapshot is archived. No owner: deleting the policy deletes no recovery point.
pub fn volume_snapshot(policy: &SnapshotPolicy, take: &Take, volume: &PersistentVolume) -> VolumeSnapshot {
    let spec = volume.spec.as_ref();
    let mode = spec.and_then(|spec| spec.volume_mode.clone()).unwrap_or_else(|| "Filesystem".to_owned());
    let fs_type = spec.and_then(|spec| spec.csi.as_ref()?.fs_type.clone()).filter(|_| mode == "Filesystem");
    let mut notes = BTreeMap::from([
        (annotations::SCHEDULED_AT.to_owned(), take.slot.to_string()),
        (annotations::VOLUME_MODE.to_owned(), mode),
    ]);
    if let Some(fs_type) = fs_type {
        notes.insert(annotations::FS_TYPE.to_owned(), fs_type);
    }
    let mut metadata = api::managed(
        policy.namespace().as_deref(),
        take.name.clone(),
        [
            (labels::POLICY, names::label_value(&policy.name_any())),
            (labels::SCHEDULE, take.schedule.clone()),
            (labels::CLAIM, names::label_value(&take.claim.name)),
        ],
    );
    metadata.annotations = Some(notes);
    VolumeSnapshot {
        metadata,
        spec: VolumeSnapshotSpec {
            volume_snapshot_class_name: Some(policy.spec.volume_snapshot_class_name.clone()),
            source: VolumeSnapshotSource {
                persistent_volume_claim_name: Some(take.claim.name.clone()),
                volume_snapshot_content_name: None,
            },
        },
        status: None,
    }
}

/// The ArchivedSnapshot for a ready snapshot, with the promise its retention gives it.
pub fn archived_snapshot(
    seen: &Observed,
    snapshot: &VolumeSnapshot,
    handle: String,
) -> Option<ArchivedSnapshot> {
    let policy = &seen.policy;
    let rule = policy.spec.archive.as_ref()?;
    let time = snapshot.time()?;
    let uid = snapshot.uid()?;
    let source = ArchiveSource {
        cluster_uid: seen.cluster_uid.clone(),
        namespace: policy.namespace()?,
        claim_name: snapshot.claim()?.to_owned(),
        volume_mode: VolumeMode::named(
            snapshot.annotations().get(annotations::VOLUME_MODE).map_or("", String::as_str),
        ),
        fs_type: snapshot.annotations().get(annotations::FS_TYPE).cloned(),
    };
    let earlier: Vec<Timestamp> = seen
        .archived
        .iter()
        .filter(|point| point.spec.source.same_volume(&source) && point.spec.target_name == rule.target_name)
        .filter(|point| point.spec.snapshot_handle.is_some())
        .map(|point| point.spec.point_in_time.0)
        .collect();
    let expires_at = rule.retention.map(|retention| retention.expires_at(time, &earlier, &seen.zone));
    let metadata = api::managed(
        None,
        names::archived(&rule.target_name, &seen.cluster_uid, &uid),
        [
            (labels::POLICY, names::label_value(&policy.name_any())),
            (labels::NAMESPACE, source.namespace.clone()),
            (labels::CLAIM, names::label_value(&source.claim_name)),
            (labels::TARGET, rule.target_name.clone()),
        ],
    );
    Some(ArchivedSnapshot {
        metadata,
        spec: ArchivedSnapshotSpec {
            target_name: rule.target_name.clone(),
            snapshot_handle: None,
            point_in_time: Time(crate::conditions::whole_seconds(time)),
            source,
            origin: Some(Origin { volume_snapshot_name: snapshot.name_any(), uid, snapshot_handle: handle }),
            expires_at: expires_at.map(|time| Time(crate::conditions::whole_seconds(time))),
        },
        status: None,
    })
}
