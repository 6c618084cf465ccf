//! The requests being served, in memory that outlives the process.
//!
//! Every request is read from /dev/fuse straight into a slot of a [`Region`], before anything is done about
//! it. The slot is cleared when the reply has been written. A successor finds in the slots what its
//! predecessor had taken from the kernel and not answered, which on kernels before 6.9 exists nowhere else.
//!
//! ```text
//! page 0            magic, slots, bytes per slot
//! slot i            one page: word 0 is the queue that took the request; its last 80 bytes are the buffer's
//!                   beginning, so that the data of a write is aligned to a page; then 1 MiB of data
//! ```
//!
//! # Guarantees
//! A slot whose request has not been cleared is found by [`Slots::adopt`], complete: the kernel copies a
//! request without looking at signals as long as the pages are there, and they are touched before the first
//! use of a slot (otherwise a SIGKILL during the copy would fail the request with EIO).
//!
//! # Crash behaviour
//! A process that dies between the reply and the clearing leaves a request that has been answered. Serving it
//! again would undo later writes to the same blocks, so the successor asks the kernel first whether the
//! request still waits ([`super::connection::is_waiting`]).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::abi::{IN_HEADER_BYTES, WRITE_IN_BYTES};
use super::region::{Region, RegionError};

/// Longest write that the kernel sends at once.
pub const MAX_WRITE_BYTES: usize = 1 << 20;
/// Requests of one volume that can be served at the same time.
pub const SLOT_COUNT: usize = 64;

const MAGIC: u64 = u64::from_ne_bytes(*b"HFSLOTS1");
const PAGE: usize = 4096;
const SLOT_BYTES: usize = PAGE + MAX_WRITE_BYTES;
const BUFFER_BYTES: usize = IN_HEADER_BYTES + WRITE_IN_BYTES + MAX_WRITE_BYTES;
const BUFFER_OFFSET: usize = SLOT_BYTES - BUFFER_BYTES;

/// The slots of one volume.
#[derive(Debug)]
pub struct Slots {
    region: Region,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Free slots; the last is taken first, so that few slots ever hold memory.
    free: Vec<usize>,
    /// Which slots' pages have been touched.
    touched: Vec<bool>,
    /// Nobody will free a slot any more.
    closed: bool,
}

/// One slot, owned. Dropping it leaves its request there for a successor; [`Slot::release`] ends it.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    index: usize,
}

impl Slots {
    /// Makes the slots of a new volume, all free.
    ///
    /// # Errors
    /// [`RegionError::Create`].
    pub fn create() -> Result<Arc<Slots>, RegionError> {
        let region = Region::create("holdfast-slots", PAGE + SLOT_COUNT * SLOT_BYTES)?;
        region.atomic_u64(8).store(SLOT_COUNT as u64, Ordering::Relaxed);
        region.atomic_u64(16).store(SLOT_BYTES as u64, Ordering::Relaxed);
        region.atomic_u64(0).store(MAGIC, Ordering::Release);
        Ok(Arc::new(Slots::over(region, (0..SLOT_COUNT).rev().collect())))
    }

    /// Takes over the slots of a predecessor; also returns those that hold a request.
    ///
    /// # Errors
    /// [`RegionError::Adopt`] if the region does not hold slots of this format.
    pub fn adopt(region: Region) -> Result<(Arc<Slots>, Vec<Slot>), RegionError> {
        let word = |offset| region.atomic_u64(offset).load(Ordering::Acquire);
        if region.len() != PAGE + SLOT_COUNT * SLOT_BYTES
            || (word(0), word(8), word(16)) != (MAGIC, SLOT_COUNT as u64, SLOT_BYTES as u64)
        {
            return Err(RegionError::Adopt {
                reason: "it does not hold request slots of this format".into(),
            });
        }
        let occupied = |index: usize| word(head_offset(index)) != 0;
        let (taken, free): (Vec<_>, Vec<_>) = (0..SLOT_COUNT).rev().partition(|&index| occupied(index));
        let slots = Arc::new(Slots::over(region, free));
        let taken = taken.into_iter().map(|index| Slot { slots: slots.clone(), index }).collect();
        Ok((slots, taken))
    }

    fn over(region: Region, free: Vec<usize>) -> Slots {
        let state = State { free, touched: vec![false; SLOT_COUNT], closed: false };
        Slots { region, state: Mutex::new(state), freed: Condvar::new() }
    }

    /// The descriptor of the slots' memory, for the keeper.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.region.fd()
    }

    /// Waits for a free slot; `None` once the slots are closed. The wait is as long as the slowest of the
    /// requests being served, whose time the device bounds.
    pub fn acquire(self: &Arc<Slots>) -> Option<Slot> {
        let mut state = self.lock();
        let index = loop {
            if state.closed {
                return None;
            }
            match state.free.pop() {
                Some(index) => break index,
                None => state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        if !std::mem::replace(&mut state.touched[index], true) {
            drop(state);
            for page in (slot_offset(index)..slot_offset(index + 1)).step_by(PAGE) {
                self.region.atomic_u64(page).fetch_or(0, Ordering::Relaxed);
            }
        }
        Some(Slot { slots: self.clone(), index })
    }

    /// Ends all waiting in [`Slots::acquire`].
    pub fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
    }

    /// Returns the memory of free slots to the system, for a volume that is idle.
    pub fn trim(&self) {
        let mut state = self.lock();
        for index in state.free.clone() {
            // Errors are of no consequence: the slot keeps its memory.
            if state.touched[index] && self.region.punch(slot_offset(index), SLOT_BYTES).is_ok() {
                state.touched[index] = false;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that touch it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Waits for a request on `device`, a descriptor of queue number `queue`, and reads it into the slot.
    ///
    /// # Errors
    /// What read(2) on /dev/fuse answers; `ENODEV` when the connection has ended. The slot is then empty.
    pub fn read_request(&mut self, device: BorrowedFd<'_>, queue: usize) -> io::Result<()> {
        let slots = &self.slots;
        slots.region.atomic_u64(slot_offset(self.index)).store(queue as u64, Ordering::Release);
        let mut buffer = slots.region.range(slot_offset(self.index) + BUFFER_OFFSET, BUFFER_BYTES);
        // SAFETY: the buffer lies in the mapping, and the slot is owned, so nobody else reads or writes it.
        let read = rustix::io::read(device, unsafe { buffer.as_mut() });
        if let Err(errno) = read {
            self.clear();
            return Err(errno.into());
        }
        Ok(())
    }

    /// The request in the slot, followed by whatever lay in the buffer.
    pub fn buffer(&self) -> &[u8] {
        let range = self.slots.region.range(slot_offset(self.index) + BUFFER_OFFSET, BUFFER_BYTES);
        // SAFETY: the buffer lies in the mapping and changes only in `read_request`, which needs `&mut self`.
        unsafe { range.as_ref() }
    }

    /// The queue that took the request.
    pub fn queue(&self) -> usize {
        self.slots.region.atomic_u64(slot_offset(self.index)).load(Ordering::Acquire) as usize
    }

    /// Forgets the request (it has been answered, or needs no answer) and frees the slot.
    pub fn release(self) {
        self.clear();
        self.slots.lock().free.push(self.index);
        self.slots.freed.notify_one();
    }

    fn clear(&self) {
        self.slots.region.atomic_u64(head_offset(self.index)).store(0, Ordering::Release);
    }
}

fn slot_offset(index: usize) -> usize {
    PAGE + index * SLOT_BYTES
}

/// Where a request's length and opcode lie; zero while there is no request.
fn head_offset(index: usize) -> usize {
    slot_offset(index) + BUFFER_OFFSET
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn adopt_copy(slots: &Slots) -> (Arc<Slots>, Vec<Slot>) {
        Slots::adopt(Region::adopt(slots.fd().try_clone_to_owned().unwrap()).unwrap()).unwrap()
    }

    fn pipe_with(message: &[u8]) -> std::os::fd::OwnedFd {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(writer, message).unwrap();
        reader
    }

    #[test]
    fn a_successor_finds_what_was_read_and_not_released() {
        let slots = Slots::create().unwrap();
        let mut kept = slots.acquire().unwrap();
        kept.read_request(pipe_with(b"request one").as_fd(), 3).unwrap();
        let mut done = slots.acquire().unwrap();
        done.read_request(pipe_with(b"request two").as_fd(), 1).unwrap();
        done.release();

        let (_slots, found) = adopt_copy(&slots);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].queue(), &found[0].buffer()[..11]), (3, &b"request one"[..]));
    }

    #[test]
    fn a_failed_read_leaves_the_slot_empty() {
        let slots = Slots::create().unwrap();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        slots.acquire().unwrap().read_request(writer.as_fd(), 0).unwrap_err();
        assert!(adopt_copy(&slots).1.is_empty());
    }

    #[test]
    fn trimming_empties_free_slots_and_keeps_requests() {
        let slots = Slots::create().unwrap();
        let mut slot = slots.acquire().unwrap();
        slot.read_request(pipe_with(b"kept").as_fd(), 0).unwrap();
        slots.acquire().unwrap().release();
        slots.trim();
        assert_eq!(&slot.buffer()[..4], b"kept");
        let stat = rustix::fs::fstat(slots.fd()).unwrap();
        assert!((stat.st_blocks as usize * 512) < SLOT_BYTES + 4 * PAGE);
    }

    #[test]
    fn closing_wakes_whoever_waits_for_a_slot() {
        let slots = Slots::create().unwrap();
        let held: Vec<_> = (0..SLOT_COUNT).map(|_| slots.acquire().unwrap()).collect();
        let waiter = std::thread::spawn({
            let slots = slots.clone();
            move || slots.acquire().is_none()
        });
        slots.close();
        assert!(waiter.join().unwrap());
        assert_eq!(held.len(), SLOT_COUNT);
    }

    #[test]
    fn a_region_of_another_format_is_not_adopted() {
        let region = Region::create("test", PAGE + SLOT_COUNT * SLOT_BYTES).unwrap();
        assert!(matches!(Slots::adopt(region), Err(RegionError::Adopt { .. })));
    }
}
