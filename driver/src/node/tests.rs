//! The service over a fake node.

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_csi_proto::csi::node_server::Node;
use holdfast_csi_proto::csi::volume_capability::access_mode::Mode;
use holdfast_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use holdfast_csi_proto::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability,
};
use holdfast_engine::ids::{ObjectId, PoolId, VolumeId};
use tempfile::TempDir;
use tonic::{Code, Request, Status};

use super::NodeService;
use super::fake::FakeNode;
use super::records::Records;
use crate::handles::VolumeHandle;
use crate::publication::{Access, Publication};

const VOLUME: VolumeHandle = VolumeHandle { pool: PoolId([1; 16]), volume: VolumeId([2; 16]) };
const FIRST: Publication = Publication { grant: ObjectId([3; 16]), access: Access::ReadWrite };
const SECOND: Publication = Publication { grant: ObjectId([4; 16]), access: Access::ReadWrite };
const STAGING: &str = "/staging";

/// A kubelet that talks to a node.
struct Kubelet {
    node: FakeNode,
    service: NodeService,
    records: TempDir,
}

fn filesystem(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

fn block() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

impl Kubelet {
    fn new() -> Self {
        let records = tempfile::tempdir().expect("a directory");
        let node = FakeNode::default();
        let service = Self::service(&node, &records);
        Self { node, service, records }
    }

    fn service(node: &FakeNode, records: &TempDir) -> NodeService {
        let records = Records::open(records.path().into()).expect("made");
        NodeService::new("n1".into(), Arc::new(node.clone()), Arc::new(node.clone()), records)
    }

    /// A new process over the same node.
    fn restart_driver(&mut self) {
        self.service = Self::service(&self.node, &self.records);
    }

    async fn stage(&self, publication: Publication, capability: VolumeCapability) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: VOLUME.to_string(),
            publish_context: publication.to_context(),
            staging_target_path: STAGING.into(),
            volume_capability: Some(capability),
            ..NodeStageVolumeRequest::default()
        };
        self.service.node_stage_volume(Request::new(request)).await.map(|_| ())
    }

    async fn publish(
        &self,
        publication: Publication,
        capability: VolumeCapability,
        target: &str,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: VOLUME.to_string(),
            publish_context: publication.to_context(),
            staging_target_path: STAGING.into(),
            target_path: target.into(),
            volume_capability: Some(capability),
            readonly,
            ..NodePublishVolumeRequest::default()
        };
        self.service.node_publish_volume(Request::new(request)).await.map(|_| ())
    }

    async fn unpublish(&self, target: &str) -> Result<(), Status> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: VOLUME.to_string(), target_path: target.into() };
        self.service.node_unpublish_volume(Request::new(request)).await.map(|_| ())
    }

    async fn unstage(&self) -> Result<(), Status> {
        let request =
            NodeUnstageVolumeRequest { volume_id: VOLUME.to_string(), staging_target_path: STAGING.into() };
        self.service.node_unstage_volume(Request::new(request)).await.map(|_| ())
    }

    async fn stats(&self, path: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: VOLUME.to_string(),
            volume_path: path.into(),
            ..NodeGetVolumeStatsRequest::default()
        };
        self.service.node_get_volume_stats(Request::new(request)).await.map(tonic::Response::into_inner)
    }

    async fn expand(&self, path: &str, required_bytes: i64) -> Result<i64, Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: VOLUME.to_string(),
            volume_path: path.into(),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
            ..NodeExpandVolumeRequest::default()
        };
        let response = self.service.node_expand_volume(Request::new(request)).await?;
        Ok(response.get_ref().capacity_bytes)
    }
}

#[tokio::test]
async fn the_life_of_a_volume_may_be_repeated_step_by_step() {
    let kubelet = Kubelet::new();
    let capability = || filesystem(Mode::SingleNodeWriter);
    for _ in 0..2 {
        kubelet.stage(FIRST, capability()).await.expect("staged");
    }
    for target in ["/pod/a", "/pod/a", "/pod/b"] {
        kubelet.publish(FIRST, capability(), target, false).await.expect("published");
    }
    assert_eq!(kubelet.node.log(), ["attach", "mount /staging", "mount /pod/a", "mount /pod/b"]);
    for target in ["/pod/a", "/pod/a", "/pod/b"] {
        kubelet.unpublish(target).await.expect("unpublished");
    }
    for _ in 0..2 {
        kubelet.unstage().await.expect("unstaged");
    }
    assert_eq!(kubelet.node.log(), ["unmount /pod/a", "unmount /pod/b", "unmount /staging", "detach"]);
}

#[tokio::test]
async fn a_read_only_publication_is_mounted_read_only() {
    let kubelet = Kubelet::new();
    let readers = Publication { access: Access::ReadOnly, ..FIRST };
    kubelet
        .publish(readers, filesystem(Mode::MultiNodeReaderOnly), "/pod/a", false)
        .await
        .expect("published");
    let shown = kubelet.node.mounts();
    assert_eq!(shown[&PathBuf::from(STAGING)], ("/dev/loop7".into(), true));
    assert_eq!(shown[&PathBuf::from("/pod/a")], (STAGING.into(), true));

    let kubelet = Kubelet::new();
    kubelet.publish(FIRST, filesystem(Mode::SingleNodeWriter), "/pod/a", true).await.expect("published");
    let shown = kubelet.node.mounts();
    assert!(!shown[&PathBuf::from(STAGING)].1);
    assert!(shown[&PathBuf::from("/pod/a")].1);
}

#[tokio::test]
async fn a_raw_block_volume_is_shown_as_its_device() {
    let kubelet = Kubelet::new();
    kubelet.stage(FIRST, block()).await.expect("staged");
    assert_eq!(kubelet.node.mounts().len(), 0);
    kubelet.publish(FIRST, block(), "/pod/disk", false).await.expect("published");
    assert_eq!(kubelet.node.mounts()[&PathBuf::from("/pod/disk")], ("/dev/loop7".into(), false));
    let usage = kubelet.stats("/pod/disk").await.expect("is there").usage;
    assert_eq!(usage.iter().map(|usage| usage.total).collect::<Vec<_>>(), [1 << 30]);
    kubelet.node.resize(VOLUME, 2 << 30);
    for path in ["/pod/disk", STAGING] {
        assert_eq!(kubelet.expand(path, 2 << 30).await.expect("grown"), 2 << 30);
    }
    kubelet.unpublish("/pod/disk").await.expect("unpublished");
    kubelet.unstage().await.expect("unstaged");
}

#[tokio::test]
async fn a_newer_grant_rebuilds_what_an_older_one_left() {
    let kubelet = Kubelet::new();
    let capability = || filesystem(Mode::SingleNodeWriter);
    kubelet.publish(FIRST, capability(), "/pod/a", false).await.expect("published");
    kubelet.node.revoke(FIRST.grant);
    kubelet.node.log();

    kubelet.publish(SECOND, capability(), "/pod/b", false).await.expect("published anew");
    assert_eq!(
        kubelet.node.log(),
        ["take away /pod/a", "take away /staging", "give up", "attach", "mount /staging", "mount /pod/b"]
    );
    let status = kubelet.publish(FIRST, capability(), "/pod/c", false).await.expect_err("revoked");
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_session_that_is_over_blocks_neither_unpublishing_nor_unstaging() {
    let mut kubelet = Kubelet::new();
    kubelet.publish(FIRST, filesystem(Mode::SingleNodeWriter), "/pod/a", false).await.expect("published");
    kubelet.node.revoke(FIRST.grant);
    kubelet.restart_driver();
    let condition = kubelet.stats("/pod/a").await.expect("is there").volume_condition.expect("has one");
    assert!(condition.abnormal && condition.message.contains("another host"), "{condition:?}");

    // The staging mount is unmounted while the pod's own is still there: forced, it may be.
    kubelet.unstage().await.expect("unstaged");
    kubelet.unpublish("/pod/a").await.expect("unpublished");
    assert_eq!(kubelet.node.mounts().len(), 0);
}

#[tokio::test]
async fn while_the_store_is_away_the_condition_says_so_and_nothing_is_unstaged() {
    let kubelet = Kubelet::new();
    kubelet.publish(FIRST, filesystem(Mode::SingleNodeWriter), "/pod/a", false).await.expect("published");
    kubelet.node.take_store_away(true);
    let stats = kubelet.stats("/pod/a").await.expect("is there");
    let condition = stats.volume_condition.expect("has one");
    assert!(condition.abnormal && condition.message.contains("does not answer"), "{condition:?}");
    assert!(!stats.usage.is_empty());
    kubelet.unpublish("/pod/a").await.expect("needs no store");
    assert_eq!(kubelet.unstage().await.expect_err("would hang").code(), Code::Unavailable);
    assert!(kubelet.node.mounts().contains_key(&PathBuf::from(STAGING)));

    kubelet.node.take_store_away(false);
    kubelet.unstage().await.expect("unstaged");
    assert_eq!(kubelet.node.mounts().len(), 0);
}

#[tokio::test]
async fn read_write_once_pod_has_one_path_also_after_a_restart() {
    let mut kubelet = Kubelet::new();
    let capability = || filesystem(Mode::SingleNodeSingleWriter);
    kubelet.publish(FIRST, capability(), "/pod/a", false).await.expect("published");
    kubelet.restart_driver();
    let status = kubelet.publish(FIRST, capability(), "/pod/b", false).await.expect_err("a second path");
    assert_eq!(status.code(), Code::FailedPrecondition);
    kubelet.publish(FIRST, capability(), "/pod/a", false).await.expect("the same path");
    kubelet.unpublish("/pod/a").await.expect("unpublished");
    kubelet.publish(FIRST, capability(), "/pod/b", false).await.expect("the only path now");
}

#[tokio::test]
async fn statistics_and_growth_need_a_path_of_the_volume() {
    let kubelet = Kubelet::new();
    kubelet.publish(FIRST, filesystem(Mode::SingleNodeWriter), "/pod/a", false).await.expect("published");
    let usage = kubelet.stats("/pod/a").await.expect("is there").usage;
    let numbers: Vec<_> = usage.iter().map(|usage| (usage.total, usage.used, usage.available)).collect();
    assert_eq!(numbers, [(1000, 300, 700), (10, 4, 6)]);
    assert_eq!(kubelet.stats("/pod/b").await.expect_err("not there").code(), Code::NotFound);
    assert_eq!(kubelet.expand("/pod/b", 1).await.expect_err("not there").code(), Code::NotFound);

    let early = kubelet.expand("/pod/a", 2 << 30).await.expect_err("not grown yet");
    assert_eq!(early.code(), Code::FailedPrecondition);
    kubelet.node.resize(VOLUME, 2 << 30);
    assert_eq!(kubelet.expand("/pod/a", 2 << 30).await.expect("grown"), 2 << 30);
}

#[tokio::test]
async fn a_volume_that_was_not_attached_is_not_staged() {
    let kubelet = Kubelet::new();
    let request = NodeStageVolumeRequest {
        volume_id: VOLUME.to_string(),
        staging_target_path: STAGING.into(),
        volume_capability: Some(block()),
        ..NodeStageVolumeRequest::default()
    };
    let status = kubelet.service.node_stage_volume(Request::new(request)).await.expect_err("no grant");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(kubelet.node.log(), Vec::<String>::new());
}

#[tokio::test]
async fn two_operations_on_one_volume_do_not_meet() {
    let kubelet = Kubelet::new();
    let running = kubelet.service.in_flight.begin(VOLUME).expect("the first");
    let status = kubelet.stage(FIRST, block()).await.expect_err("the second");
    assert_eq!(status.code(), Code::Aborted);
    drop(running);
    kubelet.stage(FIRST, block()).await.expect("the first has ended");
}
