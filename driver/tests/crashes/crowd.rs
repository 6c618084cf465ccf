//! A hundred volumes on one node, and the memory that they take: written at once, and copied from an archive at once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use holdfast_engine::env::Env;

use crate::ALONE;
use crate::restores::{archive, content};
use crate::site::{MIB, Node, Site, block};

const VOLUMES: usize = 100;
const VOLUME_BYTES: i64 = 128 * MIB;
/// All that keeper and node plugin may take.
const MEMORY_BYTES: u64 = 2 << 30;

/// What copying them all from an archive may take beside that: eight steps at once, of up to 16 MiB each, and what the
/// allocator keeps of such.
const HYDRATION_BYTES: u64 = 256 << 20;
/// What there is to copy for each.
const RESTORED_BYTES: usize = 12 << 20;

/// How often the memory is looked at while all volumes are written.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The same while they are copied.
const LOOK_AT_COPIES_EVERY: Duration = Duration::from_millis(50);

/// Writes `mib` MiB at random to each of the devices, to all at once.
fn write(devices: &[PathBuf], mib: u32) {
    let mut fio = Command::new("fio");
    fio.args([
        "--direct=1",
        "--rw=randwrite",
        "--bs=64k",
        "--iodepth=4",
        "--ioengine=libaio",
        "--end_fsync=1",
    ]);
    fio.args(["--norandommap", "--randrepeat=0", "--group_reporting", &format!("--io_size={mib}m")]);
    for (number, device) in devices.iter().enumerate() {
        fio.arg(format!("--name=volume-{number}")).arg(format!("--filename={}", device.display()));
    }
    let output =
        fio.output().unwrap_or_else(|error| panic!("fio cannot be run ({error}): apt-get install fio"));
    assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes of memory that a process has for itself.
fn private_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Bytes of the shared memory of which a process holds descriptors, each once.
fn shared_bytes(pid: u32) -> u64 {
    let held = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let is_memory =
        |fd: &PathBuf| fs::read_link(fd).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"));
    let blocks = |fd: PathBuf| fs::metadata(fd).map(|file| (file.ino(), file.blocks() * 512)).unwrap();
    let mut files: Vec<(u64, u64)> = held.filter(is_memory).map(blocks).collect();
    files.sort_unstable();
    files.dedup_by_key(|(inode, _)| *inode);
    files.iter().map(|(_, bytes)| bytes).sum()
}

/// Of keeper and node plugin.
fn memory_bytes(node: &Node) -> u64 {
    private_bytes(node.process.id()) + private_bytes(node.keeper.id()) + shared_bytes(node.keeper.id())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_volumes_on_a_node_take_at_most_two_gib() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let (mut volumes, mut devices) = (Vec::new(), Vec::new());
    for number in 0..VOLUMES {
        let volume = site.create_sized(&format!("volume-{number}"), VOLUME_BYTES).await;
        let context = site.attach(&volume, &node, &block()).await.unwrap();
        devices.push(node.publish(&volume, &context, &block()).await.unwrap());
        volumes.push(volume);
    }
    let attached = memory_bytes(&node);
    // More than a dirty buffer has room for, so that each has been used in full.
    devices.chunks(2).for_each(|some| write(some, 104));
    let written = memory_bytes(&node);
    let load = tokio::task::spawn_blocking(move || write(&devices, 16));
    let mut most = written;
    while !load.is_finished() {
        most = most.max(memory_bytes(&node));
        tokio::time::sleep(LOOK_EVERY).await;
    }
    load.await.unwrap();
    let mib = [attached, written, most].map(|bytes| bytes >> 20);
    println!(
        "{VOLUMES} volumes: {} MiB when attached, {} when written, {} under load",
        mib[0], mib[1], mib[2]
    );
    assert!(most <= MEMORY_BYTES, "{} MiB", mib[2]);
    for volume in &volumes {
        node.unpublish(volume).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_volumes_copied_from_an_archive_at_once_take_at_most_256_mib_more() {
    let _alone = ALONE.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let mut random = vec![0; RESTORED_BYTES];
    Env::system().entropy.fill(&mut random);
    let point = archive(directory.path(), &random).await;
    let mut site = Site::start_with_target(&format!("url: file://{}\n", directory.path().display())).await;
    // So slow that all of them are there while nearly everything is left to copy.
    let mut node = site.node_with("n1", &["--cache-bytes=0", "--hydrate-bytes-per-second=65536"]).await;
    let mut volumes = Vec::new();
    for number in 0..VOLUMES {
        let volume = site.create(&format!("restored-{number}"), Some(content(point))).await;
        let context = site.attach(&volume, &node, &block()).await.unwrap();
        node.publish(&volume, &context, &block()).await.unwrap();
        volumes.push(volume);
    }
    let attached = memory_bytes(&node);
    node.restart_with("--hydrate-bytes-per-second=0").await;
    let (mut most, mut most_at_once) = (0, 0);
    let mut left = Vec::new();
    while left.len() < VOLUMES || left.iter().any(|left| *left > 0.0) {
        tokio::time::sleep(LOOK_AT_COPIES_EVERY).await;
        most = most.max(memory_bytes(&node));
        left = node.series("holdfast_volume_to_hydrate_bytes");
        most_at_once = most_at_once.max(left.iter().filter(|left| **left > 0.0).count());
    }
    let mib = [attached, most].map(|bytes| bytes >> 20);
    println!(
        "{VOLUMES} volumes: {} MiB when attached, {} while up to {most_at_once} are copied",
        mib[0], mib[1]
    );
    assert!(most_at_once > VOLUMES / 2, "only {most_at_once} were copied at once");
    assert!(most <= attached + HYDRATION_BYTES, "{} MiB, {} before", mib[1], mib[0]);
    for volume in &volumes {
        node.unpublish(volume).await.unwrap();
    }
}
