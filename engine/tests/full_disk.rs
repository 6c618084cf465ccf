//! A directory whose disk is full.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use bytes::Bytes;
use holdfast_engine::store::{Directory, Store, StoreError};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A file system of one MiB that is gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` without the rights to mount one.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = c"size=1m";
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), options).ok()?;
        Some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).expect("what was mounted can be unmounted");
    }
}

#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_holds_no_half_object() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: mounting needs root");
        return;
    };
    let store = Directory::new(disk.path().to_owned());
    let half = Bytes::from(vec![7; 600 << 10]);
    store.put_if_absent("seg/a", half.clone()).await.unwrap();
    let refused = store.put_if_absent("seg/b", half.clone()).await;
    assert!(matches!(&refused, Err(StoreError::Full { key }) if key == "seg/b"), "{refused:?}");
    assert!(matches!(store.get("seg/b").await, Err(StoreError::NotFound { .. })));
    let listed = store.list("seg/", None, 10).await.unwrap();
    assert_eq!(listed.len(), 1);

    store.delete("seg/a").await.unwrap();
    store.put_if_absent("seg/b", half.clone()).await.unwrap();
    assert_eq!(store.get("seg/b").await.unwrap(), half);
}
