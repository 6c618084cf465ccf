//! What the tests of the front end share: a keeper process, a directory for mounts, and cleaning up.
//!
//! These tests need root, /dev/fuse, /dev/loop-control and the programs of fio, e2fsprogs, xfsprogs and
//! util-linux; what is missing fails them by name.

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub mod engine;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_driver::frontend::FrontEnd;
use holdfast_driver::frontend::abi::DISK_NODE;
use holdfast_driver::keeper::Link;
use holdfast_driver::loopdev::{self, Backing};
use holdfast_driver::mount::{MountTable, SystemMounter};
use holdfast_driver::offload::Offload;
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_holdfast-driver");
pub const LIMIT: Duration = Duration::from_secs(30);

/// A node: its keeper and its directory. Dropping it unmounts everything below the directory.
pub struct Node {
    pub keeper: KeeperProcess,
    dir: TempDir,
}

pub struct KeeperProcess {
    child: Child,
    socket: PathBuf,
}

impl KeeperProcess {
    pub fn start(socket: &Path) -> KeeperProcess {
        let child = Command::new(PROGRAM)
            .args(["keeper", "--socket"])
            .arg(socket)
            .stdin(Stdio::null())
            .spawn()
            .expect("the driver's binary runs");
        KeeperProcess { child, socket: socket.into() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the keeper and starts another one.
    pub fn restart(&mut self) {
        self.kill();
        *self = KeeperProcess::start(&self.socket);
    }

    pub fn kill(&mut self) {
        // One that has been killed before has been waited for, and is left alone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for KeeperProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    pub fn start() -> Node {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        for facility in ["/dev/fuse", "/dev/loop-control"] {
            assert!(Path::new(facility).exists(), "{facility} is missing: load the kernel module");
        }
        for program in ["fio", "mkfs.ext4", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_growfs", "blkid", "mount"]
        {
            let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
            assert!(found.status.success(), "{program} is missing: apt-get install fio e2fsprogs xfsprogs");
        }
        let dir = tempfile::tempdir().unwrap();
        Node { keeper: KeeperProcess::start(&dir.path().join("keeper.sock")), dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("keeper.sock")
    }

    pub fn link(&self) -> Arc<Link> {
        Link::connect(&self.socket(), LIMIT).unwrap()
    }

    pub fn front_end(&self) -> FrontEnd {
        FrontEnd::new(self.path("volumes"), self.link(), offload())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        clean_up(self.dir.path());
    }
}

/// Takes away all mounts below a directory. Whatever a failed test left is aborted, so that nothing waits for a volume
/// that nobody serves.
pub fn clean_up(dir: &Path) {
    let Ok(table) = MountTable::read() else { return };
    let below: Vec<_> = table.iter().filter(|mount| mount.mount_point.starts_with(dir)).collect();
    for mount in below.iter().filter(|mount| mount.fs_type == "fuse.holdfast") {
        let _ = rustix::mount::unmount(&mount.mount_point, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
    for mount in below.iter().rev() {
        let _ = rustix::mount::unmount(&mount.mount_point, UnmountFlags::DETACH);
        let _ = loopdev::detach(Backing { device: mount.device, inode: DISK_NODE }, true);
    }
}

pub fn offload() -> Offload {
    Offload::with_program(PROGRAM)
}

pub fn mounter() -> SystemMounter {
    SystemMounter::new(offload())
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "{what} did not happen within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
