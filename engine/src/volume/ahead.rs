//! Reading ahead of who reads on: what comes next is in the cache, or on its way there, when it is asked for.
//!
//! A volume has some streams in mind. A read goes on with one if it begins near where that ended and leaves little out:
//! several requests of one reader may overtake each other on their way here. A stream that has gone on for a while is
//! read ahead of, first twice as far as it has come, then up to a window. Random reads make no such stream and fetch
//! nothing but their own chunks.
//!
//! # Guarantees
//! - All volumes together never ask for more ahead of their readers than a part of the cache, which all streams share
//!   ([`AheadRoom`]): they do not throw out what was read ahead for each other, and memory is bounded.
//! - A failure to read ahead is nobody's failure: the read that needs the block asks for it again and says why.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::{AheadReader, AheadRoom};
use crate::ids::{BLOCK_BYTES, CHUNK_BLOCKS_MAX};

/// Streams of one volume.
const STREAMS: usize = 16;
/// In how many reads at least a stream has come so far that it is read ahead of.
const LONG_READS: u64 = 3;
/// A stream that none of so many reads has gone on with needs no room any more.
const RECENT_READS: u64 = 256;

/// When a volume is read ahead of its readers, and how far.
#[derive(Debug, Clone, Copy)]
pub struct AheadLimits {
    /// How far, in blocks, requests of one stream overtake each other.
    pub jump_blocks: u64,
    /// Blocks that a stream has passed before it is read ahead of.
    pub long_blocks: u64,
    /// The farthest that a stream is read ahead, in blocks.
    pub window_blocks: u64,
    /// Blocks that are asked for at once, when the window is large.
    pub step_blocks: u64,
}

impl Default for AheadLimits {
    fn default() -> Self {
        Self {
            jump_blocks: (4 << 20) / BLOCK_BYTES,
            long_blocks: (256 << 10) / BLOCK_BYTES,
            window_blocks: (32 << 20) / BLOCK_BYTES,
            // As long as the longest request.
            step_blocks: (4 << 20) / BLOCK_BYTES,
        }
    }
}

/// Where a volume is read one after the other.
#[derive(Debug)]
pub(super) struct ReadAhead {
    limits: AheadLimits,
    /// Its share of what may be under way or unused; none where that is too little for any stream.
    reader: Option<AheadReader>,
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    known: Vec<Stream>,
    reads: u64,
}

/// Reads that go on where others ended.
#[derive(Debug)]
struct Stream {
    /// The first block, or one a window before `next`.
    from: u64,
    /// The block after the last one read.
    next: u64,
    /// Blocks read between them.
    passed: u64,
    reads: u64,
    /// The block up to which it was read ahead.
    asked: u64,
    /// The number of the last read that went on with it.
    used: u64,
}

impl ReadAhead {
    /// For a volume that shares `room`.
    pub(super) fn new(limits: AheadLimits, room: Option<Arc<AheadRoom>>) -> Self {
        let room = room.filter(|room| room.bytes() >= 2 * limits.long_blocks * BLOCK_BYTES);
        Self { limits, reader: room.map(AheadRoom::reader), streams: Mutex::default() }
    }

    /// Notes a read of the blocks `from..to`; answers which blocks should be read ahead now.
    pub(super) fn passes(&self, from: u64, to: u64) -> Option<Range<u64>> {
        let reader = self.reader.as_ref()?;
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.pass(from, to, &self.limits, reader)
    }
}

impl Streams {
    fn pass(&mut self, from: u64, to: u64, limits: &AheadLimits, reader: &AheadReader) -> Option<Range<u64>> {
        self.reads += 1;
        let now = self.reads;
        let joined = self.known.iter_mut().filter(|stream| stream.is_joined_by(from, to, limits));
        let Some(stream) = joined.min_by_key(|stream| stream.next.abs_diff(from)) else {
            self.begin(Stream { from, next: to, passed: to - from, reads: 1, asked: to, used: now });
            return None;
        };
        if to <= stream.next {
            return None;
        }
        stream.pass(from, to, now, limits);
        if !stream.is_long(limits) {
            return None;
        }
        let next = stream.next;
        let is_live = |stream: &&Stream| stream.is_long(limits) && now - stream.used < RECENT_READS;
        let live = self.known.iter().filter(is_live).count().max(1) as u64;
        let stream = self.known.iter_mut().find(|stream| stream.next == next && stream.used == now)?;
        stream.ahead(limits, limits.window_blocks.min(reader.share_bytes(live) / BLOCK_BYTES))
    }

    /// The stream used longest ago makes room.
    fn begin(&mut self, stream: Stream) {
        if self.known.len() < STREAMS {
            self.known.push(stream);
        } else if let Some(oldest) = self.known.iter_mut().min_by_key(|known| known.used) {
            *oldest = stream;
        }
    }
}

impl Stream {
    fn is_joined_by(&self, from: u64, to: u64, AheadLimits { jump_blocks, .. }: &AheadLimits) -> bool {
        let is_near = from <= self.next + jump_blocks && to + jump_blocks >= self.next && to > self.from;
        let passed = self.passed + to.saturating_sub(from.max(self.next));
        is_near && 2 * passed >= to.max(self.next) - self.from
    }

    /// Goes on to `to`, beyond what was read.
    fn pass(&mut self, from: u64, to: u64, now: u64, AheadLimits { window_blocks, .. }: &AheadLimits) {
        self.passed += to - from.max(self.next);
        (self.next, self.used) = (to, now);
        self.reads += 1;
        let length = self.next - self.from;
        if length > *window_blocks {
            // As dense as it was.
            self.passed = self.passed * window_blocks / length;
            self.from = self.next - window_blocks;
        }
    }

    fn is_long(&self, limits: &AheadLimits) -> bool {
        self.next - self.from >= limits.long_blocks && self.reads >= LONG_READS
    }

    /// What to ask for, so that up to `window_blocks` are ahead: twice as far as it has come, in steps that make
    /// large requests.
    fn ahead(&mut self, limits: &AheadLimits, window_blocks: u64) -> Option<Range<u64>> {
        let window = window_blocks.min(2 * (self.next - self.from));
        let chunk = u64::from(CHUNK_BLOCKS_MAX);
        let (from, to) = (self.asked.max(self.next), (self.next + window) / chunk * chunk);
        let step = limits.step_blocks.min(window / 2).max(1);
        if to.saturating_sub(from) < step {
            return None;
        }
        self.asked = to;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = (1 << 20) / BLOCK_BYTES;
    const WINDOW_BLOCKS: u64 = 32 * MIB;
    const STEP_BLOCKS: u64 = 4 * MIB;

    /// Of a volume that has so many bytes of a cache alone.
    fn within(limits: AheadLimits, bytes: u64) -> ReadAhead {
        ReadAhead::new(limits, Some(Arc::new(AheadRoom::new(bytes))))
    }

    fn reading() -> ReadAhead {
        within(AheadLimits::default(), 32 << 20)
    }

    /// Passes `reads` over a volume and collects what is asked for.
    fn asked(ahead: &ReadAhead, reads: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
        reads.into_iter().filter_map(|read| ahead.passes(read.start, read.end)).collect()
    }

    fn blocks(asked: &[Range<u64>]) -> u64 {
        asked.iter().map(|range| range.end - range.start).sum()
    }

    #[test]
    fn a_stream_is_read_ahead_once_in_large_steps_and_never_farther_than_the_window() {
        let ahead = reading();
        let mut reached = 0;
        let mut steps = Vec::new();
        for at in (0..256 * MIB).step_by(32) {
            if let Some(range) = ahead.passes(at, at + 32) {
                assert!(range.start >= reached && range.start >= at + 32, "{range:?} was asked for before");
                assert!(range.end <= at + 32 + WINDOW_BLOCKS, "{range:?} is far ahead of {at}");
                reached = range.end;
                steps.push(range);
            }
        }
        assert!(reached >= 256 * MIB, "only up to {reached}");
        let late = &steps[steps.len() - 32..];
        assert!(late.iter().all(|range| range.end - range.start >= STEP_BLOCKS), "{late:?}");
    }

    #[test]
    fn a_window_of_less_than_a_chunk_asks_for_nothing_that_was_read() {
        let limits = AheadLimits { jump_blocks: 4, long_blocks: 1, window_blocks: 2, step_blocks: 8 };
        let ahead = within(limits, 2 * BLOCK_BYTES);
        for at in 0..200 {
            // The second stream leaves each of them one block.
            for from in [at, 1000 + at] {
                let range = ahead.passes(from, from + 1);
                assert!(range.as_ref().is_none_or(|range| range.start < range.end), "{range:?} at {from}");
            }
        }
    }

    #[test]
    fn random_reads_ask_for_nothing() {
        let ahead = reading();
        let mut state = 1u64;
        let reads = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state % (64 * MIB);
            at..at + 1
        });
        assert_eq!(asked(&ahead, reads.take(100_000)), []);
    }

    #[test]
    fn the_same_blocks_again_and_again_are_no_stream() {
        let ahead = reading();
        let reads = (0..10_000).map(|n| n * 7 % 64..n * 7 % 64 + 1);
        assert_eq!(asked(&ahead, reads), []);
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let ahead = reading();
        // Eight at a time, each eight in another order.
        let order = [0, 2, 1, 3, 5, 4, 7, 6];
        let reads = (0..16).flat_map(|eight| order.map(|n| (eight * 8 + n) * MIB / 2));
        let asked = asked(&ahead, reads.map(|at| at..at + MIB / 2));
        assert!(asked.last().is_some_and(|last| last.end >= 64 * MIB), "{asked:?}");
        assert!(asked.windows(2).all(|two| two[0].end <= two[1].start), "{asked:?}");
    }

    #[test]
    fn streams_share_the_window() {
        let ahead = reading();
        let far = 1 << 20;
        for at in (0..128 * MIB).step_by(128) {
            for stream in 0..4 {
                let at = stream * far + at;
                let range = ahead.passes(at, at + 128);
                let reach = if at % far < 32 * MIB { WINDOW_BLOCKS } else { WINDOW_BLOCKS / 4 };
                assert!(range.is_none_or(|range| range.end <= at + 128 + reach));
            }
        }
    }

    #[test]
    fn streams_of_several_volumes_share_what_a_cache_has_for_them() {
        let room = Arc::new(AheadRoom::new(32 << 20));
        let volumes: Vec<ReadAhead> =
            (0..4).map(|_| ReadAhead::new(AheadLimits::default(), Some(Arc::clone(&room)))).collect();
        let mut farthest = 0;
        for at in (0..128 * MIB).step_by(128) {
            for volume in &volumes {
                let range = volume.passes(at, at + 128);
                let reach = if at < 32 * MIB { WINDOW_BLOCKS } else { WINDOW_BLOCKS / 4 };
                assert!(range.as_ref().is_none_or(|range| range.end <= at + 128 + reach));
                farthest = farthest.max(range.map_or(0, |range| range.end));
            }
        }
        assert!(farthest >= 128 * MIB, "only up to {farthest}");
    }

    #[test]
    fn a_small_cache_is_not_read_ahead_into() {
        let ahead = within(AheadLimits::default(), 256 << 10);
        assert_eq!(blocks(&asked(&ahead, (0..1000).map(|n| n * 32..n * 32 + 32))), 0);
    }
}
