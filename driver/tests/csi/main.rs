//! The driver as Kubernetes meets it: a controller, node plugins and keepers as processes, a directory as the pool, real
//! mounts.
//!
//! These tests need root, /dev/fuse, /dev/loop-control and the programs of e2fsprogs and util-linux.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod certificates;
#[path = "../common/mod.rs"]
mod common;
mod journals;
mod site;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use holdfast_csi_proto::csi::volume_capability::access_mode::Mode;
use holdfast_csi_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use holdfast_csi_proto::csi::{
    CapacityRange, ControllerExpandVolumeRequest, NodeExpandVolumeRequest, VolumeContentSource,
};
use tonic::Code;

use site::{MIB, Site, block, filesystem};

fn writer() -> holdfast_csi_proto::csi::VolumeCapability {
    filesystem(Mode::SingleNodeWriter)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_through_the_death_of_the_node_plugin() {
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let volume = site.create("data", None).await;
    let context = site.attach(&volume, &node, &writer()).await.unwrap();
    let target = node.publish(&volume, &context, &writer()).await.unwrap();
    write(&target.join("before"), "written before").unwrap();

    for round in 0..3 {
        node.process.kill();
        let file = target.join(format!("during-{round}"));
        let blocked = tokio::task::spawn_blocking(move || write(&file, "written while nobody served"));
        node.start_again().await;
        blocked.await.unwrap().unwrap();
    }
    assert_eq!(read(&target.join("before")), "written before");

    node.unpublish(&volume).await.unwrap();
    site.detach(&volume, &node).await;
    let context = site.attach(&volume, &node, &writer()).await.unwrap();
    let target = node.publish(&volume, &context, &writer()).await.unwrap();
    for round in 0..3 {
        assert_eq!(read(&target.join(format!("during-{round}"))), "written while nobody served");
    }
    node.unpublish(&volume).await.unwrap();
    site.detach(&volume, &node).await;
    site.delete(&volume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_volume_is_cut_by_its_owner_and_the_snapshot_is_restored() {
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let volume = site.create("data", None).await;
    let context = site.attach(&volume, &node, &writer()).await.unwrap();
    let target = node.publish(&volume, &context, &writer()).await.unwrap();
    write(&target.join("file"), "as of the snapshot").unwrap();
    let snapshot = site.snapshot(&volume, "s").await.unwrap();
    assert!(snapshot.ready_to_use);
    assert_eq!(site.snapshot(&volume, "s").await.unwrap().snapshot_id, snapshot.snapshot_id);
    write(&target.join("file"), "later").unwrap();

    // A clone of the snapshot, and one of the volume as it is now.
    let snapshot_id = snapshot.snapshot_id.clone();
    let of_snapshot = VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id })) };
    let volume_id = volume.volume_id.clone();
    let of_volume = VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id })) };
    for (name, source, text) in
        [("restored", of_snapshot, "as of the snapshot"), ("copied", of_volume, "later")]
    {
        let clone = site.create(name, Some(source)).await;
        let context = site.attach(&clone, &node, &writer()).await.unwrap();
        let target = node.publish(&clone, &context, &writer()).await.unwrap();
        assert_eq!(read(&target.join("file")), text, "{name}");
        write(&target.join("file"), "the clone's own").unwrap();
        node.unpublish(&clone).await.unwrap();
        site.detach(&clone, &node).await;
    }
    assert_eq!(read(&target.join("file")), "later");
    node.unpublish(&volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_down_is_unavailable_until_it_is_back() {
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let volume = site.create("data", None).await;
    let context = site.attach(&volume, &node, &writer()).await.unwrap();
    node.publish(&volume, &context, &writer()).await.unwrap();
    node.process.kill();
    let status = site.snapshot(&volume, "s").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    node.start_again().await;
    node.ready();
    site.snapshot(&volume, "s").await.unwrap();
    node.unpublish(&volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_volume_grows_with_its_file_system() {
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let volume = site.create("data", None).await;
    let context = site.attach(&volume, &node, &writer()).await.unwrap();
    let target = node.publish(&volume, &context, &writer()).await.unwrap();
    let range = Some(CapacityRange { required_bytes: 256 * MIB, limit_bytes: 0 });
    let request = ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: range,
        volume_capability: Some(writer()),
        ..ControllerExpandVolumeRequest::default()
    };
    let grown = site.controller.controller_expand_volume(request).await.unwrap().into_inner();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (256 * MIB, true));
    let request = NodeExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        volume_path: target.display().to_string(),
        capacity_range: range,
        ..NodeExpandVolumeRequest::default()
    };
    match node.client.node_expand_volume(request).await {
        Ok(grown) => assert_eq!(grown.get_ref().capacity_bytes, 256 * MIB),
        // Without CAP_SYS_RESOURCE ext4 grows when it is staged next.
        Err(status) => {
            assert!(status.message().contains("CAP_SYS_RESOURCE"), "{status}");
            node.unpublish(&volume).await.unwrap();
            node.publish(&volume, &context, &writer()).await.unwrap();
        }
    }
    let stat = rustix::fs::statvfs(&target).unwrap();
    assert!(stat.f_blocks * stat.f_frsize > 200 << 20, "{} blocks", stat.f_blocks);
    node.unpublish(&volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn detaching_fences_a_node_that_still_writes() {
    let mut site = Site::start().await;
    let (mut first, mut second) = (site.node("n1").await, site.node("n2").await);
    let volume = site.create("data", None).await;
    let context = site.attach(&volume, &first, &writer()).await.unwrap();
    let target = first.publish(&volume, &context, &writer()).await.unwrap();
    write(&target.join("file"), "of the first node").unwrap();
    let elsewhere = site.attach(&volume, &second, &writer()).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::FailedPrecondition);

    // A forced detach: the first node still has it mounted.
    site.detach(&volume, &first).await;
    let newer = site.attach(&volume, &second, &writer()).await.unwrap();
    let moved = second.publish(&volume, &newer, &writer()).await.unwrap();
    assert_eq!(read(&moved.join("file")), "of the first node");
    write(&moved.join("file"), "of the second node").unwrap();

    let late = target.join("late");
    let refused = tokio::task::spawn_blocking(move || write(&late, "too late")).await.unwrap();
    assert!(refused.is_err(), "a fenced node acknowledged a write");
    first.restart().await;
    let status = first.publish(&volume, &context, &writer()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    first.unpublish(&volume).await.unwrap();

    assert_eq!(read(&moved.join("file")), "of the second node");
    assert!(!moved.join("late").exists());
    second.unpublish(&volume).await.unwrap();
    site.detach(&volume, &second).await;

    // And back again, under a third grant.
    let context = site.attach(&volume, &first, &writer()).await.unwrap();
    let target = first.publish(&volume, &context, &writer()).await.unwrap();
    assert_eq!(read(&target.join("file")), "of the second node");
    first.unpublish(&volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_read_what_one_wrote() {
    let mut site = Site::start().await;
    let (mut first, mut second) = (site.node("n1").await, site.node("n2").await);
    let volume = site.create("data", None).await;
    let context = site.attach(&volume, &first, &writer()).await.unwrap();
    let target = first.publish(&volume, &context, &writer()).await.unwrap();
    write(&target.join("file"), "for all").unwrap();
    first.unpublish(&volume).await.unwrap();
    site.detach(&volume, &first).await;

    let readers = filesystem(Mode::MultiNodeReaderOnly);
    for node in [&mut first, &mut second] {
        let context = site.attach(&volume, node, &readers).await.unwrap();
        let target = node.publish(&volume, &context, &readers).await.unwrap();
        assert_eq!(read(&target.join("file")), "for all");
        let refused = write(&target.join("file"), "changed").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    }
    let status = site.attach(&volume, &first, &writer()).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    for node in [&mut first, &mut second] {
        node.restart().await;
        assert_eq!(read(&node.target(&volume).join("file")), "for all");
        node.unpublish(&volume).await.unwrap();
        site.detach(&volume, node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_block_volume_keeps_its_bytes() {
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let volume = site.create("disk", None).await;
    let context = site.attach(&volume, &node, &block()).await.unwrap();
    let target = node.publish(&volume, &context, &block()).await.unwrap();
    let pattern: Vec<u8> = (0..1 << 20).map(|at| (at % 251) as u8).collect();
    let disk = File::options().read(true).write(true).open(&target).unwrap();
    disk.write_all_at(&pattern, 5 << 20).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    node.unpublish(&volume).await.unwrap();

    let target = node.publish(&volume, &context, &block()).await.unwrap();
    let mut found = vec![0; pattern.len()];
    File::open(&target).unwrap().read_exact_at(&mut found, 5 << 20).unwrap();
    assert!(found == pattern, "the device holds something else");
    node.unpublish(&volume).await.unwrap();
}
