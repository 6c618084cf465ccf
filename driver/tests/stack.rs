//! The whole stack over a device in memory: file systems, discard, growing, use by others, and its end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use common::{LIMIT, Node, mounter, offload};
use holdfast_driver::frontend::memory::MemoryDevice;
use holdfast_driver::frontend::{BlockDevice, DeviceError, Region, StackError};
use holdfast_driver::keeper::guards;
use holdfast_driver::loopdev::{self, Backing, LoopError};
use holdfast_driver::mount::freeze::{freeze, thaw_leftovers};
use holdfast_driver::mount::{FreezeError, FsSpec, FsType, MountError, Mounter};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 320 * MIB;

/// A device in memory whose size and behaviour the test changes.
struct TestDevice {
    memory: MemoryDevice,
    region: Arc<Region>,
    size: AtomicU64,
}

impl TestDevice {
    fn new(size: u64) -> Arc<TestDevice> {
        let region = Arc::new(Region::create("test-device", 2 * SIZE as usize).unwrap());
        let memory = MemoryDevice::new(region.clone());
        Arc::new(TestDevice { memory, region, size: AtomicU64::new(size) })
    }

    /// Bytes of memory that the device holds.
    fn held_bytes(&self) -> u64 {
        rustix::fs::fstat(self.region.fd()).unwrap().st_blocks as u64 * 512
    }
}

#[async_trait]
impl BlockDevice for TestDevice {
    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Bytes>, DeviceError> {
        self.memory.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.memory.write(offset, data).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.memory.discard(offset, len).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.memory.flush().await
    }
}

fn spec(fs_type: FsType) -> FsSpec {
    FsSpec { fs_type, options: Vec::new(), read_only: false }
}

fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// Whether this process has CAP_SYS_RESOURCE (24), without which ext4 grows only unmounted.
fn may_grow_mounted_ext4() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    u64::from_str_radix(effective, 16).unwrap() >> 24 & 1 == 1
}

/// Data is the same after everything was unmounted, removed and built again; deleting a file and trimming
/// gives its blocks back; a volume that has grown is used in full.
async fn round_trip(fs_type: FsType) {
    let node = Node::start();
    let front_end = node.front_end();
    let device = TestDevice::new(SIZE);
    let target = node.path("target");
    let data: Vec<u8> =
        (0..24 * MIB).map(|position| (position.wrapping_mul(2_654_435_761) >> 13) as u8).collect();

    let stack = front_end.create("volume", device.clone(), String::new()).await.unwrap();
    mounter().mount(&stack.loop_path(), &target, &spec(fs_type)).await.unwrap();
    mounter().mount(&stack.loop_path(), &target, &spec(fs_type)).await.unwrap();
    let mut file = File::create(target.join("file")).unwrap();
    file.write_all(&data).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mounter().unmount(&target).await.unwrap();
    mounter().unmount(&target).await.unwrap();
    stack.teardown().await.unwrap();
    stack.teardown().await.unwrap();
    assert!(!target.exists());

    // A larger volume from a smaller one's data.
    device.size.store(SIZE * 3 / 2, Ordering::Relaxed);
    let stack = front_end.create("volume", device.clone(), String::new()).await.unwrap();
    mounter().mount(&stack.loop_path(), &target, &spec(fs_type)).await.unwrap();
    assert!(std::fs::read(target.join("file")).unwrap() == data, "the file's data changed");
    let staged = mounter().stats(&target).await.unwrap();
    assert!(staged.total_bytes > SIZE * 12 / 10, "{staged:?}");

    // Growing in use.
    device.size.store(SIZE * 2, Ordering::Relaxed);
    stack.grow().await.unwrap();
    match mounter().grow(&target).await {
        Err(MountError::GrowNotPermitted { .. }) => {
            assert!(fs_type == FsType::Ext4 && !may_grow_mounted_ext4());
        }
        grown => {
            grown.unwrap();
            let after = mounter().stats(&target).await.unwrap();
            assert!(after.total_bytes > staged.total_bytes + SIZE / 3, "{staged:?} {after:?}");
        }
    }

    let held = device.held_bytes();
    std::fs::remove_file(target.join("file")).unwrap();
    common::eventually("the return of the file's blocks", || {
        run("sync", &["-f", target.to_str().unwrap()]);
        device.held_bytes() + 23 * MIB < held
    });
    mounter().unmount(&target).await.unwrap();
    stack.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_keeps_data_grows_and_gives_space_back() {
    round_trip(FsType::Ext4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn xfs_keeps_data_grows_and_gives_space_back() {
    round_trip(FsType::Xfs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_block_volume_reads_writes_and_discards_exactly() {
    let node = Node::start();
    let device = TestDevice::new(64 * MIB);
    let stack = node.front_end().create("volume", device.clone(), String::new()).await.unwrap();
    let target = node.path("pod/device");
    mounter().bind_device(&stack.loop_path(), &target, false).await.unwrap();
    mounter().bind_device(&stack.loop_path(), &target, false).await.unwrap();

    let shown = File::options().read(true).write(true).open(&target).unwrap();
    shown.write_all_at(&[7; 3 * 4096], 4096).unwrap();
    shown.sync_all().unwrap();
    run("blkdiscard", &["--offset", "8192", "--length", "4096", target.to_str().unwrap()]);
    assert_eq!(
        device.read(4096, 3 * 4096).await.unwrap().concat(),
        [[7; 4096], [0; 4096], [7; 4096]].concat()
    );
    run("blkdiscard", &["--zeroout", "--offset", "4096", "--length", "4096", target.to_str().unwrap()]);
    assert_eq!(
        device.read(4096, 3 * 4096).await.unwrap().concat(),
        [[0; 4096], [0; 4096], [7; 4096]].concat()
    );

    device.size.store(96 * MIB, Ordering::Relaxed);
    stack.grow().await.unwrap();
    let size: u64 = std::io::Seek::seek(&mut &shown, std::io::SeekFrom::End(0)).unwrap();
    assert_eq!(size, 96 * MIB);
    drop(shown);
    mounter().unmount(&target).await.unwrap();
    stack.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_in_use_is_not_torn_down_and_goes_on() {
    let node = Node::start();
    let stack = node.front_end().create("volume", TestDevice::new(SIZE), String::new()).await.unwrap();
    let target = node.path("target");
    mounter().mount(&stack.loop_path(), &target, &spec(FsType::Ext4)).await.unwrap();
    let refused = stack.teardown().await.unwrap_err();
    assert!(matches!(&refused, StackError::Offload(error) if error.is(libc::EBUSY)), "{refused}");

    std::fs::write(target.join("file"), "goes on").unwrap();
    mounter().unmount(&target).await.unwrap();
    stack.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_device_is_formatted() {
    let node = Node::start();
    let stack = node.front_end().create("volume", TestDevice::new(SIZE), String::new()).await.unwrap();
    let (device, target) = (stack.loop_path(), node.path("target"));
    let read_only = FsSpec { read_only: true, ..spec(FsType::Ext4) };
    let refused = mounter().mount(&device, &target, &read_only).await;
    assert!(matches!(refused, Err(MountError::Unformatted { .. })), "{refused:?}");

    mounter().mount(&device, &target, &spec(FsType::Ext4)).await.unwrap();
    mounter().unmount(&target).await.unwrap();
    let refused = mounter().mount(&device, &target, &spec(FsType::Xfs)).await;
    assert!(matches!(refused, Err(MountError::OtherFileSystem { .. })), "{refused:?}");

    mounter().mount(&device, &target, &read_only).await.unwrap();
    assert!(mounter().mounted(&target).await.unwrap().unwrap().is_read_only());
    mounter().unmount(&target).await.unwrap();
    stack.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_xfs_whose_making_was_interrupted_is_made_again() {
    let node = Node::start();
    let device = TestDevice::new(SIZE);
    let stack = node.front_end().create("volume", device.clone(), String::new()).await.unwrap();
    run("mkfs.xfs", &["-q", stack.loop_path().to_str().unwrap()]);
    // sb_inprogress
    device.write(126, &[1]).await.unwrap();
    let target = node.path("target");
    mounter().mount(&stack.loop_path(), &target, &spec(FsType::Xfs)).await.unwrap();
    std::fs::write(target.join("file"), "usable").unwrap();
    mounter().unmount(&target).await.unwrap();
    stack.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bind_mount_is_read_only_when_asked_and_refuses_another_source() {
    let node = Node::start();
    let stack = node.front_end().create("volume", TestDevice::new(SIZE), String::new()).await.unwrap();
    let (staged, published) = (node.path("staged"), node.path("published"));
    mounter().mount(&stack.loop_path(), &staged, &spec(FsType::Ext4)).await.unwrap();
    mounter().bind(&staged, &published, true).await.unwrap();
    mounter().bind(&staged, &published, true).await.unwrap();
    let refused = std::fs::write(published.join("file"), "no").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    std::fs::write(staged.join("file"), "yes").unwrap();

    let refused = mounter().bind(Path::new("/"), &published, true).await;
    assert!(matches!(refused, Err(MountError::Conflict { .. })), "{refused:?}");
    mounter().unmount(&published).await.unwrap();
    mounter().unmount(&staged).await.unwrap();
    stack.teardown().await.unwrap();
}

/// Never answers a write.
#[derive(Default)]
struct StuckDevice {
    /// Whether one has come.
    written: AtomicBool,
}

#[async_trait]
impl BlockDevice for StuckDevice {
    fn size_bytes(&self) -> u64 {
        64 * MIB
    }

    async fn read(&self, _offset: u64, len: u32) -> Result<Vec<Bytes>, DeviceError> {
        Ok(vec![vec![0; len as usize].into()])
    }

    async fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), DeviceError> {
        self.written.store(true, Ordering::Relaxed);
        std::future::pending().await
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Fenced)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Err(DeviceError::NoSpace("test".into()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_volume_fails_its_waiting_writes_and_is_removed_though_in_use() {
    let node = Node::start();
    let stuck = Arc::new(StuckDevice::default());
    let stack = node.front_end().create("volume", stuck.clone(), String::new()).await.unwrap();
    let backing = loopdev::backing_of(loopdev::number_of(&stack.loop_path()).unwrap()).unwrap().unwrap();
    let device = File::options().write(true).custom_flags(libc::O_DIRECT).open(stack.loop_path()).unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        #[repr(align(4096))]
        struct Page([u8; 4096]);
        let page = Page([1; 4096]);
        let result = device.write_all_at(&page.0, 0);
        (result, device)
    });
    common::eventually("the write", || stuck.written.load(Ordering::Relaxed));
    stack.abort().await.unwrap();
    let (result, device) = tokio::time::timeout(LIMIT, writer).await.unwrap().unwrap();
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO));
    stack.teardown().await.unwrap();
    drop(device);
    common::eventually("the removal of the loop device", || loopdev::find(backing).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn device_errors_reach_the_user_as_errnos() {
    let node = Node::start();
    let stuck = Arc::new(StuckDevice::default());
    let stack = node.front_end().create("volume", stuck, String::new()).await.unwrap();
    let file = File::options().read(true).write(true).open(node.path("volumes/volume/disk")).unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    let mut bytes = [1; 512];
    file.read_exact_at(&mut bytes, 512).unwrap();
    assert_eq!(bytes, [0; 512]);
    assert_eq!(file.set_len(4096).unwrap_err().raw_os_error(), Some(libc::EPERM));
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(&file, punch, 0, 4096), Err(rustix::io::Errno::IO));
    let outside = file.write_at(&[0; 512], 64 * MIB).unwrap_err();
    assert_eq!(outside.raw_os_error(), Some(libc::EFBIG));
    drop(file);
    stack.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_volume_is_not_created_twice_and_a_saved_one_can_be_discarded() {
    let node = Node::start();
    let front_end = node.front_end();
    let stack = front_end.create("volume", TestDevice::new(SIZE), "grant 1".into()).await.unwrap();
    let refused = front_end.create("volume", TestDevice::new(SIZE), String::new()).await;
    assert!(matches!(refused, Err(StackError::Exists { .. })));
    assert_eq!(front_end.saved_keys().await.unwrap(), ["volume"]);

    let saved = front_end.saved("volume").await.unwrap().unwrap();
    assert_eq!((saved.key(), saved.context()), ("volume", "grant 1"));
    let backing = loopdev::backing_of(loopdev::number_of(&stack.loop_path()).unwrap()).unwrap().unwrap();
    front_end.discard("volume").await.unwrap();
    front_end.discard("volume").await.unwrap();
    assert!(front_end.saved_keys().await.unwrap().is_empty());
    common::eventually("the removal of the loop device", || loopdev::find(backing).unwrap().is_none());
    let again = front_end.create("volume", TestDevice::new(SIZE), "grant 2".into()).await.unwrap();
    again.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_the_keeper_never_learned_of_is_cleared_away() {
    let node = Node::start();
    let front_end = node.front_end();
    let dir = node.path("volumes/volume");
    std::fs::create_dir_all(&dir).unwrap();
    drop(holdfast_driver::frontend::connection::mount(&dir).unwrap());
    assert!(std::fs::metadata(&dir).is_err(), "the mount's connection should be dead");
    let stack = front_end.create("volume", TestDevice::new(SIZE), String::new()).await.unwrap();
    stack.teardown().await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_holds_writes_back_until_it_is_thawed() {
    let node = Node::start();
    let (front_end, link) = (node.front_end(), node.link());
    let stack = front_end.create("volume", TestDevice::new(SIZE), String::new()).await.unwrap();
    let not_mounted = freeze("volume", &stack.loop_path(), link.clone(), offload()).await;
    assert!(matches!(not_mounted, Err(FreezeError::NotMounted { .. })));

    let target = node.path("target");
    mounter().mount(&stack.loop_path(), &target, &spec(FsType::Ext4)).await.unwrap();
    let frozen = freeze("volume", &stack.loop_path(), link.clone(), offload()).await.unwrap();
    let twice = freeze("other", &stack.loop_path(), link.clone(), offload()).await;
    assert!(matches!(twice, Err(FreezeError::FrozenAlready { .. })), "{twice:?}");
    let path = target.join("file");
    let writer = tokio::task::spawn_blocking(move || std::fs::write(path, "late"));
    assert!(frozen.holds());
    assert!(!writer.is_finished());
    frozen.thaw().await.unwrap();
    tokio::time::timeout(LIMIT, writer).await.unwrap().unwrap().unwrap();

    // A freeze that a dead process left.
    let _left = freeze("volume", &stack.loop_path(), link.clone(), offload()).await.unwrap();
    thaw_leftovers(&[stack.loop_path()], &offload()).await.unwrap();
    std::fs::write(target.join("file"), "thawed").unwrap();
    link.unguard("volume").unwrap();
    mounter().unmount(&target).await.unwrap();
    stack.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_thaws_at_the_deadline() {
    let node = Node::start();
    let (front_end, link) = (node.front_end(), node.link());
    let stack = front_end.create("volume", TestDevice::new(SIZE), String::new()).await.unwrap();
    let target = node.path("target");
    mounter().mount(&stack.loop_path(), &target, &spec(FsType::Xfs)).await.unwrap();
    let directory = File::open(&target).unwrap();
    link.guard("volume", std::os::fd::AsFd::as_fd(&directory), std::time::Duration::from_millis(300))
        .unwrap();
    assert!(guards::freeze(std::os::fd::AsFd::as_fd(&directory)).unwrap());
    let path = target.join("file");
    let writer = tokio::task::spawn_blocking(move || std::fs::write(path, "after the deadline"));
    tokio::time::timeout(LIMIT, writer).await.expect("the keeper thaws").unwrap().unwrap();
    assert!(!link.unguard("volume").unwrap(), "the guard should say that it expired");
    drop(directory);
    mounter().unmount(&target).await.unwrap();
    stack.teardown().await.unwrap();
}

#[test]
fn loop_devices_are_known_by_their_file_and_not_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let make = || File::create(&path).unwrap().set_len(16 * MIB).unwrap();
    make();
    let first = loopdev::attach(&path).unwrap();
    assert_eq!(loopdev::attach(&path).unwrap(), first);
    let first_backing = Backing::of(&path).unwrap();

    std::fs::rename(&path, dir.path().join("moved")).unwrap();
    make();
    let second = loopdev::attach(&path).unwrap();
    let second_backing = Backing::of(&path).unwrap();
    assert_ne!(first, second);
    assert_eq!(loopdev::find(first_backing).unwrap(), Some(first));
    assert_eq!(loopdev::find(second_backing).unwrap(), Some(second));

    let claimed =
        File::options().read(true).custom_flags(libc::O_EXCL).open(loopdev::path_of(first)).unwrap();
    assert!(matches!(loopdev::detach(first_backing, false), Err(LoopError::InUse { .. })));
    drop(claimed);
    loopdev::detach(first_backing, false).unwrap();
    loopdev::detach(first_backing, false).unwrap();
    assert_eq!(loopdev::find(second_backing).unwrap(), Some(second));
    loopdev::detach(second_backing, false).unwrap();
    common::eventually("the removal", || loopdev::find(second_backing).unwrap().is_none());
}
