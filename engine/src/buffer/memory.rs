//! A dirty buffer in plain memory: for sessions that nobody continues after a crash (maintenance, archive runs).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{BufferError, DirtyBuffer, Mutation};
use crate::ids::GrantId;

/// What an entry costs besides its data.
const ENTRY_BYTES: usize = 64;

/// A bounded dirty buffer in memory.
#[derive(Debug)]
pub struct MemoryBuffer {
    capacity_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    grant: GrantId,
    last: u64,
    used_bytes: usize,
    entries: VecDeque<(u64, Mutation)>,
}

fn cost(mutation: &Mutation) -> usize {
    match mutation {
        Mutation::Write { data, .. } => ENTRY_BYTES + data.len(),
        Mutation::Discard { .. } => ENTRY_BYTES,
    }
}

impl MemoryBuffer {
    /// An empty buffer that holds up to `capacity_bytes`.
    pub fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn free(&mut self, sequence: u64) {
        while self.entries.front().is_some_and(|(oldest, _)| *oldest <= sequence) {
            self.used_bytes -= self.entries.pop_front().map_or(0, |(_, mutation)| cost(&mutation));
        }
    }
}

impl DirtyBuffer for MemoryBuffer {
    fn bind(&self, grant: GrantId, complete: u64) -> Result<usize, BufferError> {
        let mut state = self.state();
        let mut dropped = 0;
        if state.grant != grant {
            dropped = state.entries.len();
            *state = State { grant, ..State::default() };
        }
        state.free(complete);
        state.last = state.last.max(complete);
        Ok(dropped)
    }

    fn recover(&self) -> Result<Vec<(u64, Mutation)>, BufferError> {
        Ok(self.state().entries.iter().cloned().collect())
    }

    fn append(&self, mutation: &Mutation) -> Result<u64, BufferError> {
        let bytes = cost(mutation);
        if bytes > self.capacity_bytes {
            return Err(BufferError::TooLarge { len: bytes, capacity: self.capacity_bytes });
        }
        let mut state = self.state();
        if state.used_bytes + bytes > self.capacity_bytes {
            return Err(BufferError::Full);
        }
        state.used_bytes += bytes;
        state.last += 1;
        let sequence = state.last;
        state.entries.push_back((sequence, mutation.clone()));
        Ok(sequence)
    }

    fn free(&self, sequence: u64) {
        self.state().free(sequence);
    }

    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes as u64
    }
}
