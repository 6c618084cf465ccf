//! The service over a fake pool.

use std::collections::HashMap;

use holdfast_csi_proto::csi::volume_capability::access_mode::Mode;
use holdfast_csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use holdfast_csi_proto::csi::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use holdfast_csi_proto::csi::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerModifyVolumeRequest,
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateSnapshotRequest,
    CreateVolumeRequest, ListSnapshotsRequest, ListVolumesRequest, Snapshot,
    ValidateVolumeCapabilitiesRequest, Volume, VolumeCapability, VolumeContentSource,
};
use tonic::{Code, Status};

use super::fake::FakeStorage;
use super::{attach, listings, snapshots, volumes};
use crate::params::Durability;

const GIB: i64 = 1 << 30;

fn capability(fs_type: &str, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.into(),
            ..MountVolume::default()
        })),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

fn new_volume(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: GIB, limit_bytes: 0 }),
        volume_capabilities: vec![capability("ext4", Mode::SingleNodeWriter)],
        ..CreateVolumeRequest::default()
    }
}

async fn create(storage: &FakeStorage, request: CreateVolumeRequest) -> Result<Volume, Status> {
    Ok(volumes::create(storage, request).await?.volume.expect("the answer has a volume"))
}

async fn cut(storage: &FakeStorage, volume: &Volume, name: &str) -> Result<Snapshot, Status> {
    let request = CreateSnapshotRequest {
        name: name.into(),
        source_volume_id: volume.volume_id.clone(),
        ..CreateSnapshotRequest::default()
    };
    Ok(snapshots::create(storage, request).await?.snapshot.expect("the answer has a snapshot"))
}

async fn publish(
    storage: &FakeStorage,
    volume: &Volume,
    node: &str,
    mode: Mode,
) -> Result<HashMap<String, String>, Status> {
    let request = ControllerPublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: node.into(),
        volume_capability: Some(capability("ext4", mode)),
        ..ControllerPublishVolumeRequest::default()
    };
    Ok(attach::publish(storage, request).await?.publish_context)
}

async fn unpublish(storage: &FakeStorage, volume: &Volume, node: &str) {
    let request = ControllerUnpublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: node.into(),
        ..ControllerUnpublishVolumeRequest::default()
    };
    attach::unpublish(storage, request).await.expect("detaching is idempotent");
}

fn from(source: SourceType) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(source) })
}

#[tokio::test]
async fn a_repeated_create_finds_its_volume_and_another_size_or_source_is_refused() {
    let storage = FakeStorage::default();
    let volume = create(&storage, new_volume("a")).await.expect("made");
    assert_eq!(volume.capacity_bytes, GIB);
    assert_eq!(create(&storage, new_volume("a")).await.expect("found"), volume);

    let larger = CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes: 2 * GIB, limit_bytes: 0 }),
        ..new_volume("a")
    };
    assert_eq!(create(&storage, larger).await.expect_err("other size").code(), Code::AlreadyExists);

    let other = create(&storage, new_volume("b")).await.expect("made");
    let cloned = CreateVolumeRequest {
        volume_content_source: from(SourceType::Volume(VolumeSource { volume_id: other.volume_id })),
        ..new_volume("a")
    };
    assert_eq!(create(&storage, cloned).await.expect_err("other source").code(), Code::AlreadyExists);
}

#[tokio::test]
async fn a_volume_is_no_smaller_than_its_file_system_or_source() {
    let storage = FakeStorage::default();
    let tiny_xfs = CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes: 1, limit_bytes: 0 }),
        volume_capabilities: vec![capability("xfs", Mode::SingleNodeWriter)],
        ..new_volume("xfs")
    };
    assert_eq!(create(&storage, tiny_xfs).await.expect("made").capacity_bytes, 300 << 20);

    let parent = create(&storage, new_volume("parent")).await.expect("made");
    let snapshot = cut(&storage, &parent, "s").await.expect("taken");
    let source = || from(SourceType::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() }));
    let of_its_size =
        CreateVolumeRequest { capacity_range: None, volume_content_source: source(), ..new_volume("c1") };
    let clone = create(&storage, of_its_size).await.expect("made");
    assert_eq!(clone.capacity_bytes, GIB);
    assert_eq!(clone.content_source, source());

    let too_small = CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes: 0, limit_bytes: GIB / 2 }),
        volume_content_source: source(),
        ..new_volume("c2")
    };
    assert_eq!(create(&storage, too_small).await.expect_err("no room").code(), Code::OutOfRange);
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_reason_and_make_nothing() {
    let storage = FakeStorage::default();
    let base = new_volume("a");
    let parameters = HashMap::from([("pol".to_owned(), "x".to_owned())]);
    let gone = "ab".repeat(16) + "-" + &"07".repeat(16);
    for (request, code, hint) in [
        (CreateVolumeRequest { name: String::new(), ..base.clone() }, Code::InvalidArgument, "name"),
        (CreateVolumeRequest { name: "x".repeat(129), ..base.clone() }, Code::InvalidArgument, "128"),
        (
            CreateVolumeRequest { volume_capabilities: vec![], ..base.clone() },
            Code::InvalidArgument,
            "volume_capabilities",
        ),
        (
            CreateVolumeRequest {
                volume_capabilities: vec![capability("", Mode::MultiNodeMultiWriter)],
                ..base.clone()
            },
            Code::InvalidArgument,
            "ReadWriteMany",
        ),
        (
            CreateVolumeRequest { parameters: parameters.clone(), ..base.clone() },
            Code::InvalidArgument,
            "pol",
        ),
        (
            CreateVolumeRequest { mutable_parameters: parameters, ..base.clone() },
            Code::InvalidArgument,
            "VolumeAttributesClass",
        ),
        (
            CreateVolumeRequest {
                capacity_range: Some(CapacityRange { required_bytes: 17 << 40, limit_bytes: 0 }),
                ..base.clone()
            },
            Code::OutOfRange,
            "largest",
        ),
        (
            CreateVolumeRequest {
                volume_content_source: from(SourceType::Volume(VolumeSource { volume_id: gone })),
                ..base.clone()
            },
            Code::NotFound,
            "no volume",
        ),
    ] {
        let status = create(&storage, request).await.expect_err(hint);
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().contains(hint), "{:?} lacks {hint:?}", status.message());
    }
    let listed = listings::volumes(&storage, ListVolumesRequest::default()).await.expect("lists");
    assert_eq!(listed.entries, vec![]);
}

#[tokio::test]
async fn a_volume_has_one_writing_node_or_many_reading_ones() {
    let storage = FakeStorage::default();
    let volume = create(&storage, new_volume("a")).await.expect("made");
    let context = publish(&storage, &volume, "n1", Mode::SingleNodeWriter).await.expect("granted");
    let again = publish(&storage, &volume, "n1", Mode::SingleNodeWriter).await.expect("granted already");
    assert_eq!(again, context);

    let refused = |result: Result<_, Status>| result.expect_err("refused").code();
    let elsewhere = publish(&storage, &volume, "n2", Mode::SingleNodeWriter).await;
    assert_eq!(refused(elsewhere), Code::FailedPrecondition);
    let other_mode = publish(&storage, &volume, "n1", Mode::MultiNodeReaderOnly).await;
    assert_eq!(refused(other_mode), Code::AlreadyExists);
    let nowhere = publish(&storage, &volume, "n9", Mode::SingleNodeWriter).await;
    assert_eq!(refused(nowhere), Code::NotFound);

    unpublish(&storage, &volume, "n1").await;
    unpublish(&storage, &volume, "n1").await;
    for node in ["n1", "n2"] {
        publish(&storage, &volume, node, Mode::MultiNodeReaderOnly).await.expect("readers share");
    }
    let writer = publish(&storage, &volume, "n1", Mode::SingleNodeWriter).await;
    assert_eq!(refused(writer), Code::AlreadyExists);

    let state = volumes::get(&storage, &volume.volume_id).await.expect("exists").status.expect("has one");
    assert_eq!(state.published_node_ids, ["n1", "n2"]);
    unpublish(&storage, &volume, "").await;
    publish(&storage, &volume, "n2", Mode::SingleNodeWriter).await.expect("all readers are gone");
}

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() {
    let storage = FakeStorage::default();
    let volume = create(&storage, new_volume("a")).await.expect("made");
    let grow = async |required_bytes, limit_bytes| {
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
            ..ControllerExpandVolumeRequest::default()
        };
        volumes::expand(&storage, request).await
    };
    assert_eq!(grow(2 * GIB, 0).await.expect("grows").capacity_bytes, 2 * GIB);
    assert_eq!(grow(GIB, 0).await.expect("is larger already").capacity_bytes, 2 * GIB);
    assert_eq!(grow(0, GIB).await.expect_err("would shrink").code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_snapshot_is_found_by_its_name_and_listed_by_its_source() {
    let storage = FakeStorage::default();
    let (a, b) = (
        create(&storage, new_volume("a")).await.expect("made"),
        create(&storage, new_volume("b")).await.expect("made"),
    );
    let snapshot = cut(&storage, &a, "s").await.expect("taken");
    assert_eq!(cut(&storage, &a, "s").await.expect("found"), snapshot);
    assert_eq!(cut(&storage, &b, "s").await.expect_err("of another").code(), Code::AlreadyExists);
    let time = snapshot.creation_time.expect("has one");
    assert_eq!((time.seconds, time.nanos), (1_700_000_000, 123_000_000));

    cut(&storage, &b, "t").await.expect("taken");
    let list = async |snapshot_id: &str, source_volume_id: &str| {
        let request = ListSnapshotsRequest {
            snapshot_id: snapshot_id.into(),
            source_volume_id: source_volume_id.into(),
            ..ListSnapshotsRequest::default()
        };
        listings::snapshots(&storage, request).await.expect("lists").entries.len()
    };
    assert_eq!(list("", "").await, 2);
    assert_eq!(list("", &a.volume_id).await, 1);
    assert_eq!(list(&snapshot.snapshot_id, &b.volume_id).await, 0);
    assert_eq!(list(&snapshot.snapshot_id, "").await, 1);
    assert_eq!(list("none", "").await, 0);
    assert_eq!(list("", "none").await, 0);

    for _ in 0..2 {
        snapshots::delete(&storage, &snapshot.snapshot_id).await.expect("deleting is idempotent");
    }
    assert_eq!(list("", &a.volume_id).await, 0);
}

#[tokio::test]
async fn listings_come_in_pages() {
    let storage = FakeStorage::default();
    for name in ["a", "b", "c", "d", "e"] {
        create(&storage, new_volume(name)).await.expect("made");
    }
    let (mut token, mut sizes) = (String::new(), Vec::new());
    loop {
        let request = ListVolumesRequest { max_entries: 2, starting_token: token };
        let page = listings::volumes(&storage, request).await.expect("lists");
        sizes.push(page.entries.len());
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [2, 2, 1]);
    for (max_entries, starting_token, code) in [(-1, "", Code::InvalidArgument), (0, "x", Code::Aborted)] {
        let request = ListVolumesRequest { max_entries, starting_token: starting_token.into() };
        assert_eq!(listings::volumes(&storage, request).await.expect_err("refused").code(), code);
    }
}

#[tokio::test]
async fn what_is_no_volume_is_deleted_already_but_cannot_be_used() {
    let storage = FakeStorage::default();
    volumes::delete(&storage, "something else").await.expect("is gone");
    snapshots::delete(&storage, "something else").await.expect("is gone");
    assert_eq!(volumes::delete(&storage, "").await.expect_err("no name").code(), Code::InvalidArgument);
    assert_eq!(volumes::get(&storage, "something else").await.expect_err("is none").code(), Code::NotFound);
}

#[tokio::test]
async fn capabilities_that_no_volume_has_are_not_confirmed() {
    let storage = FakeStorage::default();
    let volume = create(&storage, new_volume("a")).await.expect("made");
    let validate = async |mode| {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: volume.volume_id.clone(),
            volume_capabilities: vec![capability("", mode)],
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        volumes::validate(&storage, request).await.expect("answers")
    };
    assert!(validate(Mode::SingleNodeWriter).await.confirmed.is_some());
    let refused = validate(Mode::MultiNodeMultiWriter).await;
    assert!(refused.confirmed.is_none() && refused.message.contains("ReadWriteMany"), "{}", refused.message);
}

#[tokio::test]
async fn the_durability_is_chosen_by_either_class_and_changed_later() {
    let storage = FakeStorage::default();
    let journal = HashMap::from([("durability".to_owned(), "journal".to_owned())]);
    let by_storage_class =
        CreateVolumeRequest { parameters: journal.clone(), ..new_volume("by-storage-class") };
    create(&storage, by_storage_class).await.expect("made");
    assert_eq!(storage.durability("by-storage-class"), Some(Durability::Journal));
    let by_both = CreateVolumeRequest {
        parameters: journal.clone(),
        mutable_parameters: HashMap::from([("durability".to_owned(), "remote".to_owned())]),
        ..new_volume("by-both")
    };
    let volume = create(&storage, by_both).await.expect("made");
    assert_eq!(storage.durability("by-both"), Some(Durability::Remote));

    let modify =
        |volume_id: &str, mutable_parameters: &HashMap<String, String>| ControllerModifyVolumeRequest {
            volume_id: volume_id.into(),
            mutable_parameters: mutable_parameters.clone(),
            ..ControllerModifyVolumeRequest::default()
        };
    for parameters in [&journal, &journal, &HashMap::new()] {
        volumes::modify(&storage, modify(&volume.volume_id, parameters)).await.expect("modified");
        assert_eq!(storage.durability("by-both"), Some(Durability::Journal));
    }
    let refused = async |request| volumes::modify(&storage, request).await.expect_err("refused").code();
    let codec = HashMap::from([("codec".to_owned(), "zstd".to_owned())]);
    assert_eq!(refused(modify(&volume.volume_id, &codec)).await, Code::InvalidArgument);
    assert_eq!(refused(modify("", &journal)).await, Code::InvalidArgument);
    assert_eq!(refused(modify("gone", &journal)).await, Code::NotFound);
}
