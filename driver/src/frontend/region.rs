//! Memory that outlives the process: dirty buffers and requests being served.
//!
//! A region is an anonymous file in tmpfs (a memfd) that is mapped here and whose descriptor the keeper also
//! holds. No path leads to it, so nothing has to be cleaned up, and nobody else can open it.
//!
//! # Guarantees
//! What has been written to a region when the process dies (SIGKILL included) is there when its successor
//! adopts the descriptor. Its size is sealed, so that an access can never fault.
//!
//! # Assumptions
//! The keeper, or this process, lives. Memory is not durable: a power failure takes it.
//!
//! # Crash behaviour
//! A copy that was under way when the process died may be torn at any byte. Formats on top of a region
//! therefore commit with [`Region::atomic_u64`] or a checksum.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Shared memory that survives its process. Dropping it unmaps it; the keeper's duplicate keeps the contents.
#[derive(Debug)]
pub struct Region {
    fd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value, is never remapped, and is only reached by copies and atomics.
unsafe impl Send for Region {}
// SAFETY: as above; racing copies of one range may tear, which the type documents as the caller's matter.
unsafe impl Sync for Region {}

/// Why a region cannot be made, or an access cannot be right.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The kernel refused to make the memory.
    #[error("cannot make a shared memory region of {len} bytes: {source}; the node may be short of memory")]
    Create {
        /// Bytes asked for.
        len: usize,
        /// The kernel's answer.
        source: Errno,
    },
    /// The descriptor is not a region made by this program.
    #[error("cannot adopt a shared memory region: {reason}")]
    Adopt {
        /// What is wrong with it.
        reason: String,
    },
}

impl Region {
    /// Makes a region of `len` bytes, all zero. Memory is taken as it is touched.
    ///
    /// # Errors
    /// [`RegionError::Create`] when the kernel refuses.
    pub fn create(name: &str, len: usize) -> Result<Region, RegionError> {
        let failed = |source| RegionError::Create { len, source };
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(failed)?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(failed)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
            .map_err(failed)?;
        let base = map(&fd, len).map_err(failed)?;
        Ok(Region { fd, base, len })
    }

    /// Maps a region again from a descriptor that the keeper held.
    ///
    /// # Errors
    /// [`RegionError::Adopt`] if the descriptor is no sealed memory, or cannot be mapped.
    pub fn adopt(fd: OwnedFd) -> Result<Region, RegionError> {
        let failed = |reason: String| RegionError::Adopt { reason };
        let seals = rustix::fs::fcntl_get_seals(&fd)
            .map_err(|errno| failed(format!("the descriptor is no memory region ({errno})")))?;
        if !seals.contains(SealFlags::GROW | SealFlags::SHRINK) {
            return Err(failed("its size is not sealed".into()));
        }
        let stat = rustix::fs::fstat(&fd).map_err(|errno| failed(errno.to_string()))?;
        let len = usize::try_from(stat.st_size).map_err(|_| failed("it has no valid size".into()))?;
        let base = map(&fd, len).map_err(|errno| failed(errno.to_string()))?;
        Ok(Region { fd, base, len })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The descriptor, for the keeper to hold.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Copies from the region at `offset` into `buf`.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn read_at(&self, offset: usize, buf: &mut [u8]) {
        self.check(offset, buf.len());
        // SAFETY: the range was checked; `buf` is exclusively ours, so the two cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.base.as_ptr().add(offset), buf.as_mut_ptr(), buf.len()) }
    }

    /// Copies `data` into the region at `offset`. Racing accesses to one range may tear; callers own ranges.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn write_at(&self, offset: usize, data: &[u8]) {
        self.check(offset, data.len());
        // SAFETY: the range was checked; `data` is memory of this process, which the mapping does not alias.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.base.as_ptr().add(offset), data.len()) }
        // A successor that finds a later write also finds this one.
        compiler_fence(Ordering::SeqCst);
    }

    /// A counter or state word in the region. Stores with `Release` after `write_at` commit what was written:
    /// a successor that sees the word sees the bytes.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 8 or not inside the region.
    pub fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8), "offset {offset} is not aligned to 8 bytes");
        // SAFETY: in range and aligned (the base is a page); the mapping lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Sets a range to zero and returns whole pages in it to the system.
    ///
    /// # Errors
    /// The kernel's errno.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn punch(&self, offset: usize, len: usize) -> Result<(), Errno> {
        self.check(offset, len);
        rustix::fs::fallocate(
            &self.fd,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset as u64,
            len as u64,
        )
    }

    /// The address of a range, for the kernel to read into and for data that is served where it lies.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub(crate) fn range(&self, offset: usize, len: usize) -> NonNull<[u8]> {
        self.check(offset, len);
        // SAFETY: the range was checked, so the address stays inside the mapping.
        NonNull::slice_from_raw_parts(unsafe { self.base.add(offset) }, len)
    }

    fn check(&self, offset: usize, len: usize) {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "range {offset}+{len} is outside a region of {} bytes",
            self.len
        );
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrowed from it can outlive `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl holdfast_engine::buffer::Region for Region {
    fn len(&self) -> usize {
        self.len
    }

    fn read_at(&self, offset: usize, bytes: &mut [u8]) {
        Region::read_at(self, offset, bytes);
    }

    fn write_at(&self, offset: usize, bytes: &[u8]) {
        Region::write_at(self, offset, bytes);
    }

    fn release(&self, offset: usize, len: usize) {
        // After an error it has the memory still.
        let _ = self.punch(offset, len);
    }
}

fn map(fd: &OwnedFd, len: usize) -> Result<NonNull<u8>, Errno> {
    // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
    let base = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            fd,
            0,
        )
    }?;
    NonNull::new(base.cast()).ok_or(Errno::NOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_region_holds_what_was_written() {
        let first = Region::create("test", 3 * 4096).unwrap();
        first.write_at(5000, b"survives");
        first.atomic_u64(8).store(7, Ordering::Release);
        let second = Region::adopt(first.fd().try_clone_to_owned().unwrap()).unwrap();
        drop(first);
        let mut seen = [0; 8];
        second.read_at(5000, &mut seen);
        assert_eq!((&seen, second.len()), (b"survives", 3 * 4096));
        assert_eq!(second.atomic_u64(8).load(Ordering::Acquire), 7);
    }

    #[test]
    fn a_punched_range_reads_as_zeros_and_its_neighbours_stay() {
        let region = Region::create("test", 3 * 4096).unwrap();
        region.write_at(0, &[1; 3 * 4096]);
        region.punch(4096, 4096).unwrap();
        let mut seen = [9; 3 * 4096];
        region.read_at(0, &mut seen);
        assert!(seen[..4096].iter().all(|&byte| byte == 1));
        assert!(seen[4096..8192].iter().all(|&byte| byte == 0));
        assert!(seen[8192..].iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_file_that_could_shrink_is_not_adopted() {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(matches!(Region::adopt(fd), Err(RegionError::Adopt { .. })));
    }

    #[test]
    #[should_panic(expected = "outside a region")]
    fn an_access_outside_is_refused() {
        Region::create("test", 4096).unwrap().write_at(4090, &[0; 7]);
    }
}
