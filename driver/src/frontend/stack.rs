//! A volume's stack: FUSE mount, session, loop device, and what the keeper holds of them.
//!
//! # Expected flow
//! [`FrontEnd::create`] when a volume is staged; [`FrontEnd::saved`] and [`FrontEnd::adopt`] for each volume
//! when the process starts; [`Stack::teardown`] when it is unstaged; [`Stack::abort`] before that when the
//! volume has been fenced; [`FrontEnd::discard`] for what cannot be adopted.
//!
//! # Guarantees
//! - Everything may be repeated, and goes on where an earlier attempt stopped or died.
//! - Once `create` has returned, the volume's I/O survives the death of this process.
//! - `abort`, `discard` and a teardown after them never wait for the volume's I/O.
//!
//! # Assumptions
//! The mounts lie in a directory that is shared with the host (mount propagation is bidirectional) and so
//! outlive the container. This process holds the node's [`super::Incarnation`].
//!
//! # Crash behaviour
//! The connection is put into the keeper as soon as it exists, before anything uses it. A process that dies
//! before leaves a mount whose connection is dead, which the next `create` clears away; one that dies after it
//! leaves a stack that may lack its loop device, which `adopt` then makes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::abi::{Agreed, DISK_NAME, DISK_NODE};
use super::connection::{self, ConnectionError};
use super::device::BlockDevice;
use super::region::{Region, RegionError};
use super::session::{Counts, Session};
use super::slots::Slots;
use crate::keeper::protocol::Name;
use crate::keeper::{Link, LinkError};
use crate::loopdev::{self, Backing};
use crate::mount::MountTable;
use crate::offload::{Offload, OffloadError, Operation, Unmount};

/// The keeper's name for a connection and its slots.
const STACK_KIND: &str = "stack";
/// The keeper's name for a dirty buffer.
const DIRTY_KIND: &str = "dirty";
/// How long one step on loop device or mount may take.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// How long the last descriptors may take to close after an unmount.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Makes and finds the stacks of a node.
#[derive(Clone, Debug)]
pub struct FrontEnd {
    dir: PathBuf,
    keeper: Arc<Link>,
    offload: Offload,
}

/// A volume that is being served.
#[derive(Debug)]
pub struct Stack {
    front_end: FrontEnd,
    key: String,
    session: Session,
    backing: Backing,
    loop_number: u32,
}

/// What the keeper holds of a stack whose process has died.
#[derive(Debug)]
pub struct Saved {
    key: String,
    record: Record,
    queues: Vec<OwnedFd>,
    slots: Region,
}

/// What is kept as text with the descriptors. Fields are only ever added, with defaults.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// Device number of the FUSE mount, by which its loop device is found.
    fuse_device: u64,
    /// The kernel can send unanswered requests again.
    resend: bool,
    /// The caller's own text.
    context: String,
}

/// Why a stack could not be built, adopted or removed.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The key cannot be a directory's name.
    #[error("{key:?} is no volume key: 1 to 128 letters, digits, '.', '-' and '_', not beginning with '.'")]
    BadKey {
        /// The key.
        key: String,
    },
    /// The volume is in the keeper already.
    #[error("volume {key} is served already, or was by a predecessor; adopt or discard it first")]
    Exists {
        /// The volume.
        key: String,
    },
    /// A directory cannot be made, read or removed, or threads cannot be started.
    #[error("{action} failed: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// FUSE.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// Shared memory.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The keeper.
    #[error(transparent)]
    Keeper(#[from] LinkError),
    /// Loop device or mount.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// The keeper's text was not written by this program.
    #[error("the keeper's record of volume {key} cannot be read: {reason}")]
    BadRecord {
        /// The volume.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection does not end.
    #[error(
        "the FUSE connection of volume {key} has not ended after {END_LIMIT:?}; its loop device is in use"
    )]
    StillConnected {
        /// The volume.
        key: String,
    },
}

impl FrontEnd {
    /// The front end whose mounts lie in `dir`.
    pub fn new(dir: impl Into<PathBuf>, keeper: Arc<Link>, offload: Offload) -> FrontEnd {
        FrontEnd { dir: dir.into(), keeper, offload }
    }

    /// Builds the stack of the volume `key` over `device`. The `context` is a text that [`Saved::context`]
    /// returns to a successor.
    ///
    /// # Errors
    /// [`StackError`]; nothing is left then, or what a repeated call clears away.
    pub async fn create(
        &self,
        key: &str,
        device: Arc<dyn BlockDevice>,
        context: String,
    ) -> Result<Stack, StackError> {
        check_key(key)?;
        if self.saved(key).await?.is_some() {
            return Err(StackError::Exists { key: key.into() });
        }
        let dir = self.mount_dir(key);
        self.clear_leftovers(&dir).await?;
        std::fs::create_dir_all(&dir)
            .map_err(|source| system(format!("making {}", dir.display()), source))?;
        let (queues, agreed) = {
            let dir = dir.clone();
            blocking(move || connection::mount(&dir)).await??
        };
        let fuse_device = mounted_device(&dir)?.ok_or_else(|| {
            system(format!("finding the mount at {}", dir.display()), io::ErrorKind::NotFound.into())
        })?;
        let record = Record { fuse_device, resend: agreed.resend, context };
        let slots = Slots::create()?;
        self.put(key, &record, &queues, &slots).await?;
        let session = Session::start(key, queues, slots, device)
            .map_err(|source| system(format!("serving volume {key}"), source))?;
        match self.complete(key, session, &record).await {
            Ok(stack) => Ok(stack),
            Err(error) => {
                if let Err(error) = self.remove(key, Some(backing(fuse_device)), true).await {
                    tracing::warn!(volume = key, %error, "a stack that failed to build is still to be removed");
                }
                Err(error)
            }
        }
    }

    /// The volumes that a predecessor served, by their keys.
    ///
    /// # Errors
    /// [`StackError::Keeper`].
    pub async fn saved_keys(&self) -> Result<Vec<String>, StackError> {
        let keeper = self.keeper.clone();
        let names = blocking(move || keeper.list()).await??;
        Ok(names.into_iter().filter(|name| name.kind == STACK_KIND).map(|name| name.key).collect())
    }

    /// What the keeper holds of the stack `key`, if anything.
    ///
    /// # Errors
    /// [`StackError::BadRecord`], [`StackError::Region`], [`StackError::Keeper`].
    pub async fn saved(&self, key: &str) -> Result<Option<Saved>, StackError> {
        let (keeper, name) = (self.keeper.clone(), Name::new(key, STACK_KIND));
        let Some(entry) = blocking(move || keeper.get(&name)).await?? else {
            return Ok(None);
        };
        let bad = |reason: String| StackError::BadRecord { key: key.into(), reason };
        let record = serde_json::from_str(&entry.metadata).map_err(|error| bad(error.to_string()))?;
        let mut queues = entry.fds;
        let slots = queues.pop().ok_or_else(|| bad("it has no descriptors".into()))?;
        if queues.is_empty() {
            return Err(bad("it has no connection".into()));
        }
        Ok(Some(Saved { key: key.into(), record, queues, slots: Region::adopt(slots)? }))
    }

    /// Goes on serving a predecessor's stack. The device must already hold all that the predecessor had
    /// accepted (its dirty buffer: [`FrontEnd::adopt_dirty_region`]).
    ///
    /// # Errors
    /// [`StackError`]; the keeper still holds the stack then, and it may be adopted again or discarded.
    pub async fn adopt(&self, saved: Saved, device: Arc<dyn BlockDevice>) -> Result<Stack, StackError> {
        let Saved { key, record, queues, slots } = saved;
        let (slots, left) = Slots::adopt(slots)?;
        let agreed = Agreed { resend: record.resend };
        let session = Session::adopt(&key, queues, slots, left, agreed, device)
            .await
            .map_err(|source| system(format!("serving volume {key}"), source))?;
        let counts = session.counts();
        tracing::info!(volume = key, adopted = counts.adopted, "took the volume's file over");
        self.complete(&key, session, &record).await
    }

    /// Removes whatever a predecessor left of the stack `key`: its I/O fails from now on. What is mounted on the
    /// loop device is the caller's to unmount. It needs no record in the keeper, and so also clears up after
    /// keeper and node process have both died. Nothing to do is a success.
    ///
    /// # Errors
    /// [`StackError`]; may be repeated.
    pub async fn discard(&self, key: &str) -> Result<(), StackError> {
        check_key(key)?;
        let recorded = match self.saved(key).await {
            Ok(saved) => saved.map(|saved| saved.record.fuse_device),
            Err(StackError::BadRecord { reason, .. }) => {
                tracing::warn!(volume = key, reason, "discarding a stack whose record cannot be read");
                None
            }
            Err(error) => return Err(error),
        };
        let mounted = mounted_device(&self.mount_dir(key))?;
        self.remove(key, recorded.or(mounted).map(backing), true).await
    }

    /// Makes the memory of a volume's dirty buffer, of `len` bytes, and puts it into the keeper.
    ///
    /// # Errors
    /// [`StackError::Region`], [`StackError::Keeper`].
    pub async fn create_dirty_region(
        &self,
        key: &str,
        len: usize,
        context: String,
    ) -> Result<Arc<Region>, StackError> {
        check_key(key)?;
        let region = Arc::new(Region::create("holdfast-dirty", len)?);
        let (keeper, name, held) = (self.keeper.clone(), Name::new(key, DIRTY_KIND), region.clone());
        blocking(move || keeper.put(name, context, &[held.fd()])).await??;
        Ok(region)
    }

    /// A predecessor's dirty buffer with the text that was put with it, if there is one.
    ///
    /// # Errors
    /// [`StackError::Region`], [`StackError::Keeper`].
    pub async fn adopt_dirty_region(&self, key: &str) -> Result<Option<(Arc<Region>, String)>, StackError> {
        let (keeper, name) = (self.keeper.clone(), Name::new(key, DIRTY_KIND));
        let Some(mut entry) = blocking(move || keeper.get(&name)).await?? else {
            return Ok(None);
        };
        let fd = entry.fds.pop().ok_or_else(|| StackError::BadRecord {
            key: key.into(),
            reason: "the dirty buffer has no descriptor".into(),
        })?;
        Ok(Some((Arc::new(Region::adopt(fd)?), entry.metadata)))
    }

    /// Has the keeper forget a volume's dirty buffer; what was in it is lost when its last user drops it.
    ///
    /// # Errors
    /// [`StackError::Keeper`].
    pub async fn drop_dirty_region(&self, key: &str) -> Result<(), StackError> {
        self.forget(key, DIRTY_KIND).await
    }

    async fn put(
        &self,
        key: &str,
        record: &Record,
        queues: &[OwnedFd],
        slots: &Arc<Slots>,
    ) -> Result<(), StackError> {
        let metadata = serde_json::to_string(record)
            .map_err(|error| StackError::BadRecord { key: key.into(), reason: error.to_string() })?;
        let duplicates: io::Result<Vec<_>> = queues.iter().map(OwnedFd::try_clone).collect();
        let duplicates = duplicates.map_err(|source| system("duplicating descriptors".into(), source))?;
        let (keeper, name, slots) = (self.keeper.clone(), Name::new(key, STACK_KIND), slots.clone());
        blocking(move || {
            let mut fds: Vec<_> = duplicates.iter().map(AsFd::as_fd).collect();
            fds.push(slots.fd());
            keeper.put(name, metadata, &fds)
        })
        .await??;
        Ok(())
    }

    async fn forget(&self, key: &str, kind: &str) -> Result<(), StackError> {
        let (keeper, name) = (self.keeper.clone(), Name::new(key, kind));
        Ok(blocking(move || keeper.drop_entry(&name)).await??)
    }

    /// Adds the loop device, or finds the one that is there.
    async fn complete(&self, key: &str, session: Session, record: &Record) -> Result<Stack, StackError> {
        let path = self.mount_dir(key).join(DISK_NAME);
        let loop_number: u32 = self.offload.run(&Operation::AttachLoop { path }, STEP_LIMIT).await?;
        let (front_end, key) = (self.clone(), key.to_owned());
        Ok(Stack { front_end, key, session, backing: backing(record.fuse_device), loop_number })
    }

    /// Removes the mount at `dir` of a process that died before the keeper knew of it.
    async fn clear_leftovers(&self, dir: &Path) -> Result<(), StackError> {
        if let Some(device) = mounted_device(dir)? {
            tracing::warn!(dir = %dir.display(), "clearing away the mount of a process that died");
            self.disconnect(dir, Some(backing(device)), true).await?;
        }
        Ok(())
    }

    async fn disconnect(&self, dir: &Path, backing: Option<Backing>, force: bool) -> Result<(), StackError> {
        if force {
            // The connection first: what waits for it then fails instead of holding the loop device.
            self.unmount(dir, Unmount::Abort).await?;
        }
        if let Some(backing) = backing {
            let detach = Operation::DetachLoop { backing, even_if_used: force };
            self.offload.run::<()>(&detach, STEP_LIMIT).await?;
        }
        // A program that looks at the device this moment (udev, blkid) may hold it a little longer; the
        // connection then ends when it lets go.
        Ok(self.unmount(dir, Unmount::Detach).await?)
    }

    async fn unmount(&self, dir: &Path, how: Unmount) -> Result<(), OffloadError> {
        self.offload.run(&Operation::Unmount { path: dir.into(), how }, STEP_LIMIT).await
    }

    async fn remove(&self, key: &str, backing: Option<Backing>, force: bool) -> Result<(), StackError> {
        let dir = self.mount_dir(key);
        self.disconnect(&dir, backing, force).await?;
        self.forget(key, STACK_KIND).await?;
        match std::fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system(format!("removing {}", dir.display()), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn mount_dir(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }
}

impl Saved {
    /// The volume.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The text given to [`FrontEnd::create`].
    pub fn context(&self) -> &str {
        &self.record.context
    }
}

impl Stack {
    /// The volume.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The block device.
    pub fn loop_path(&self) -> PathBuf {
        loopdev::path_of(self.loop_number)
    }

    /// The device below it all.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        self.session.device()
    }

    /// What the session has done.
    pub fn counts(&self) -> Counts {
        self.session.counts()
    }

    /// Makes the block device as large as the volume has become.
    ///
    /// # Errors
    /// [`StackError::Offload`].
    pub async fn grow(&self) -> Result<(), StackError> {
        let path = self.front_end.mount_dir(&self.key).join(DISK_NAME);
        let grow = Operation::GrowLoop { number: self.loop_number, path };
        Ok(self.front_end.offload.run(&grow, STEP_LIMIT).await?)
    }

    /// Fails all I/O of the volume from now on, for a volume that was fenced. [`Stack::teardown`] then succeeds
    /// whatever still uses the device.
    ///
    /// # Errors
    /// [`StackError::Offload`].
    pub async fn abort(&self) -> Result<(), StackError> {
        self.front_end.unmount(&self.front_end.mount_dir(&self.key), Unmount::Abort).await?;
        self.wait_for_end().await
    }

    /// Removes loop device, mount, and what the keeper holds. All file systems on the device must have been
    /// unmounted, which has also written their data to the volume.
    ///
    /// # Errors
    /// [`StackError::Offload`] with `EBUSY` while the device is in use; nothing was changed then. May be
    /// repeated after any error.
    pub async fn teardown(&self) -> Result<(), StackError> {
        let force = self.session.has_ended();
        self.front_end.remove(&self.key, Some(self.backing), force).await?;
        self.wait_for_end().await
    }

    async fn wait_for_end(&self) -> Result<(), StackError> {
        tokio::time::timeout(END_LIMIT, self.session.ended())
            .await
            .map_err(|_| StackError::StillConnected { key: self.key.clone() })
    }
}

fn backing(fuse_device: u64) -> Backing {
    Backing { device: fuse_device, inode: DISK_NODE }
}

/// The device number of the FUSE mount at `dir`, read from the mount table: the connection may be dead.
fn mounted_device(dir: &Path) -> Result<Option<u64>, StackError> {
    let table = MountTable::read().map_err(|source| system("reading the mount table".into(), source))?;
    Ok(table.at(dir).filter(|mount| mount.fs_type == connection::FILE_SYSTEM).map(|mount| mount.device))
}

fn check_key(key: &str) -> Result<(), StackError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if (1..=128).contains(&key.len()) && key.bytes().all(allowed) && !key.starts_with('.') {
        Ok(())
    } else {
        Err(StackError::BadKey { key: key.into() })
    }
}

fn system(action: String, source: io::Error) -> StackError {
    StackError::System { action, source }
}

/// Runs a short call to the keeper or the kernel on a thread where it may block.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, StackError> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| system("a blocking call".into(), io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_plain_path_component() {
        for good in ["a", "p1-v2", "A.b_c-9", &"x".repeat(128)] {
            check_key(good).unwrap();
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(matches!(check_key(bad), Err(StackError::BadKey { .. })), "{bad:?}");
        }
    }
}
