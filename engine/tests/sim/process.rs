//! A process: something that can die or be paused, at any moment.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// One life of a process. What it shares with the world asks it first.
#[derive(Debug)]
pub struct Process {
    pub name: String,
    dead: watch::Sender<bool>,
    /// Whether somebody wants it to let go of its volume.
    leaves: watch::Sender<bool>,
    /// Calls to the store that it still lives to make.
    calls_left: AtomicU64,
    /// Calls to the store that it still lives to have sent.
    sent_left: AtomicU64,
    /// Writes to the dirty buffer's memory that it still lives to finish.
    copies_left: AtomicU64,
    paused_until: Mutex<Option<Instant>>,
    /// What happens to it when it next puts an object whose key holds this text, or is in the middle of listing a
    /// prefix that holds it: behind the word `list`.
    trap: Mutex<Option<(&'static str, Trap)>>,
}

/// What happens to a process at a certain put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// It is paused, and puts the object afterwards.
    Pause(Duration),
    /// It dies; the object is put after so long.
    Die(Duration),
}

impl Process {
    pub fn new(name: String) -> Self {
        Self {
            name,
            dead: watch::Sender::new(false),
            leaves: watch::Sender::new(false),
            calls_left: AtomicU64::new(u64::MAX),
            sent_left: AtomicU64::new(u64::MAX),
            copies_left: AtomicU64::new(u64::MAX),
            paused_until: Mutex::default(),
            trap: Mutex::default(),
        }
    }

    pub fn kill(&self) {
        self.dead.send_replace(true);
    }

    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// Waits until it is dead.
    pub async fn died(&self) {
        // The sender is `self`, so the wait cannot fail.
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// Asks it to let go of its volume, in the normal way.
    pub fn ask_to_leave(&self) {
        self.leaves.send_replace(true);
    }

    /// Whether it was asked to let go of its volume.
    pub fn leaves(&self) -> bool {
        *self.leaves.borrow()
    }

    /// Waits until it is asked to let go of its volume.
    pub async fn asked_to_leave(&self) {
        // The sender is `self`, so the wait cannot fail.
        let _ = self.leaves.subscribe().wait_for(|leaves| *leaves).await;
    }

    /// It will die at a later call to the store.
    pub fn kill_at_call(&self, calls: u64) {
        self.calls_left.store(calls, Ordering::Relaxed);
    }

    /// It will die while a later call to the store is under way.
    pub fn kill_after_call(&self, calls: u64) {
        self.sent_left.store(calls, Ordering::Relaxed);
    }

    /// A call is on its way.
    pub fn sent(&self) {
        if self.sent_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.kill();
        }
    }

    /// It will die in the middle of a later write to the dirty buffer's memory.
    pub fn kill_at_copy(&self, copies: u64) {
        self.copies_left.store(copies, Ordering::Relaxed);
    }

    /// Whether the write that begins now is its last, which is torn.
    pub fn dies_at_this_copy(&self) -> bool {
        let dies = self.copies_left.fetch_sub(1, Ordering::Relaxed) == 0;
        if dies {
            self.kill();
        }
        dies
    }

    pub fn pause_until(&self, when: Instant) {
        *self.paused_until.lock().expect("no holder panics") = Some(when);
    }

    pub fn set_trap(&self, at: &'static str, trap: Trap) {
        *self.trap.lock().expect("no holder panics") = Some((at, trap));
    }

    /// The trap that putting `key` springs.
    pub fn spring(&self, key: &str) -> Option<Trap> {
        let mut trap = self.trap.lock().expect("no holder panics");
        trap.take_if(|(at, _)| key.contains(*at)).map(|(_, trap)| trap)
    }

    /// Begins a call to the store. Never returns in a dead process; late in a paused one.
    pub async fn enter(&self) {
        if self.calls_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.kill();
        }
        self.live().await;
    }

    /// Goes on only while it lives and is not paused.
    pub async fn live(&self) {
        loop {
            if self.is_dead() {
                return std::future::pending().await;
            }
            let paused_until = *self.paused_until.lock().expect("no holder panics");
            match paused_until {
                Some(when) if when > Instant::now() => tokio::time::sleep_until(when).await,
                Some(_) | None => return,
            }
        }
    }
}
