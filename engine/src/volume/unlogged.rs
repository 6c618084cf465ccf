//! The writes that are not yet in the log: layers, the newest of which gathers what is written.
//!
//! A layer that holds a segment's worth is closed, and put into a segment while the next one gathers. A record makes a
//! run of the oldest layers visible: those whose segments have landed, and after all of them the newest, if it is small
//! enough to travel inside the record. So each record makes visible everything up to some write, and nothing after it.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use super::batch::Batch;
use super::overlay::{Dirty, Overlay};
use super::{Limits, RUNS_MAX};
use crate::buffer::Mutation;
use crate::codec;
use crate::ids::BLOCK_BYTES;

/// The writes that are not yet in the log.
#[derive(Debug)]
pub(super) struct Unlogged {
    /// What gathers, and since when.
    active: Overlay,
    since: Instant,
    /// Layers that are closed, oldest first.
    layers: VecDeque<Layer>,
    /// The number of the newest mutation.
    last: u64,
    /// The log has all mutations up to this number.
    logged: u64,
    /// The highest number that somebody waits for.
    wanted: u64,
    /// Whether a write waits for room in the dirty buffer.
    pressed: bool,
}

/// A layer that is closed.
#[derive(Debug)]
struct Layer {
    overlay: Arc<Overlay>,
    since: Instant,
    /// The number of its newest mutation.
    last: u64,
    upload: Upload,
}

/// How far a layer's data are on their way into segments.
#[derive(Debug)]
enum Upload {
    Waits,
    Runs,
    Landed(Arc<Batch>),
}

/// When a record is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// When there is something to record.
    Never,
    At(Instant),
    /// Now, for all mutations up to this number at least.
    Now(u64),
}

/// What a record makes visible.
#[derive(Debug)]
pub(super) struct Taken {
    /// How many of the oldest layers.
    layers: usize,
    /// Those that are in segments.
    pub(super) batches: Vec<Arc<Batch>>,
    /// The one after them, which is not.
    pub(super) tail: Option<Arc<Overlay>>,
    /// The number of the newest mutation.
    pub(super) last: u64,
}

impl Unlogged {
    /// Nothing is there, and all mutations up to `logged` are in the log.
    pub(super) fn new(logged: u64) -> Self {
        Self {
            active: Overlay::default(),
            since: Instant::now(),
            layers: VecDeque::new(),
            last: logged,
            logged,
            wanted: logged,
            pressed: false,
        }
    }

    /// Takes a mutation in, under the number that the dirty buffer gave it. Whether something is to be uploaded now.
    pub(super) fn record(&mut self, sequence: u64, mutation: &Mutation, limits: &Limits) -> bool {
        let (offset, len, data) = match mutation {
            Mutation::Write { offset, data } => (*offset, data.len() as u64, Some(data.clone())),
            Mutation::Discard { offset, len } => (*offset, *len, None),
        };
        let run = Dirty { lba: offset / BLOCK_BYTES, blocks: len / BLOCK_BYTES, data, order: sequence };
        let closes = !self.active.is_empty() && !self.fits(&run, limits);
        if closes {
            self.close();
        }
        if self.active.is_empty() {
            self.since = Instant::now();
        }
        self.active.insert(run);
        self.last = sequence;
        closes
    }

    /// Whether a segment surely holds what gathers and `run` too.
    fn fits(&self, run: &Dirty, limits: &Limits) -> bool {
        let data = run.data.as_ref().map_or(0, |data| data.len() as u64);
        let bytes = codec::segment_bytes_at_most(
            (self.active.chunks() + run.chunks()) as usize,
            (self.active.data_bytes() + data) as usize,
        );
        data == 0 || bytes as u64 <= limits.segment_bytes
    }

    fn close(&mut self) {
        let overlay = Arc::new(std::mem::take(&mut self.active));
        let (since, last) = (self.since, self.last);
        self.layers.push_back(Layer { overlay, since, last, upload: Upload::Waits });
    }

    /// Whether no more runs may gather before a record.
    pub(super) fn is_crowded(&self) -> bool {
        self.active.len() >= RUNS_MAX
    }

    /// Whether what gathers has just begun to, or is due for more than its age.
    pub(super) fn is_news(&self, limits: &Limits) -> bool {
        self.active.len() == 1 || self.is_overfull(limits)
    }

    /// What overwrites itself gathers slowly, but takes its room in the dirty buffer all the same.
    fn is_overfull(&self, limits: &Limits) -> bool {
        self.active.inserted_bytes() >= 2 * limits.segment_bytes || self.is_crowded()
    }

    /// The number of the newest mutation.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Asks for everything that is there; its newest number.
    pub(super) fn want_all(&mut self) -> u64 {
        self.wanted = self.last;
        self.last
    }

    /// Notes that a write waits for room in the dirty buffer.
    pub(super) fn press(&mut self) {
        self.pressed = true;
    }

    /// When the next record is due, for a dirty buffer of so many bytes. Records are few if they wait until the buffer
    /// needs the room, but then some uploads must be under way still, so that the store is never idle.
    pub(super) fn due(&self, capacity: u64, limits: &Limits) -> Due {
        let oldest = match self.layers.front() {
            Some(layer) => layer.since,
            None if !self.active.is_empty() => self.since,
            None => return Due::Never,
        };
        if self.wanted > self.logged {
            return Due::Now(self.wanted);
        }
        let aged = oldest + limits.age;
        if aged <= Instant::now() || self.is_overfull(limits) {
            return Due::Now(self.last);
        }
        let landed = self.landed();
        let room = |layers: &mut dyn Iterator<Item = &Layer>| -> u64 {
            layers.map(|layer| layer.overlay.inserted_bytes()).sum()
        };
        let gained = room(&mut self.layers.iter().take(landed));
        let rest = room(&mut self.layers.iter().skip(landed)) + self.active.inserted_bytes();
        if landed > 0 && (3 * gained >= 2 * capacity || self.pressed && gained >= rest) {
            return Due::Now(self.layers[landed - 1].last);
        }
        if self.pressed && landed == self.layers.len() {
            return Due::Now(self.last);
        }
        Due::At(aged)
    }

    /// How many of the oldest layers are in segments.
    fn landed(&self) -> usize {
        self.layers.iter().take_while(|layer| matches!(layer.upload, Upload::Landed(_))).count()
    }

    /// What a record makes visible that has all mutations up to `target`; none as long as some of their data are on
    /// their way, or have to be uploaded first, being more than `inline_bytes`.
    pub(super) fn take(&mut self, target: u64, inline_bytes: u64) -> Option<Taken> {
        let landed = self.landed();
        let all = landed == self.layers.len();
        let small = self.active.data_bytes() <= inline_bytes;
        let covered = landed.checked_sub(1).map_or(self.logged, |newest| self.layers[newest].last);
        let closed = self.layers.back().map_or(self.logged, |newest| newest.last);
        let mut tail = None;
        if all && small && !self.active.is_empty() {
            self.close();
            let newest = self.layers.back_mut()?;
            newest.upload = Upload::Runs;
            tail = Some(Arc::clone(&newest.overlay));
        } else if covered < target {
            if closed < target && !small {
                self.close();
            }
            return None;
        }
        let batches = self.layers.iter().take(landed).filter_map(|layer| match &layer.upload {
            Upload::Landed(batch) => Some(Arc::clone(batch)),
            Upload::Waits | Upload::Runs => None,
        });
        let batches = batches.collect();
        let last = if tail.is_some() { self.last } else { covered };
        Some(Taken { layers: landed + usize::from(tail.is_some()), batches, tail, last })
    }

    /// Notes that what was taken is in the log and in the map. Whether that was all there is.
    pub(super) fn logged(&mut self, taken: &Taken) -> bool {
        self.layers.drain(..taken.layers);
        self.logged = taken.last;
        self.pressed = false;
        self.layers.is_empty() && self.active.is_empty()
    }

    /// The closed layers whose upload has not begun, by their numbers; it begins now.
    pub(super) fn begin_uploads(&mut self) -> Vec<(u64, Arc<Overlay>)> {
        let waiting = self.layers.iter_mut().filter(|layer| matches!(layer.upload, Upload::Waits));
        let begin = |layer: &mut Layer| {
            layer.upload = Upload::Runs;
            (layer.last, Arc::clone(&layer.overlay))
        };
        waiting.map(begin).collect()
    }

    /// Notes that the layer of this number is in segments.
    pub(super) fn uploaded(&mut self, last: u64, batch: Batch) {
        if let Some(layer) = self.layers.iter_mut().find(|layer| layer.last == last) {
            layer.upload = Upload::Landed(Arc::new(batch));
        }
    }

    /// What is there of the blocks `from..to`, newer layers over older ones.
    pub(super) fn view(&self, from: u64, to: u64) -> Overlay {
        let mut view = Overlay::default();
        for layer in self.layers.iter().map(|layer| &*layer.overlay).chain([&self.active]) {
            layer.lookup(from, to).for_each(|run| view.insert(run));
        }
        view
    }

    /// Bytes of data.
    pub(super) fn data_bytes(&self) -> u64 {
        let closed = self.layers.iter().map(|layer| layer.overlay.data_bytes()).sum::<u64>();
        self.active.data_bytes() + closed
    }
}

impl Taken {
    /// Whether there is nothing to record.
    pub(super) fn is_empty(&self) -> bool {
        self.layers == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::volume::AheadLimits;

    /// A segment holds about 16 blocks, and a record 2.
    const LIMITS: Limits = Limits {
        segment_bytes: 17 * BLOCK_BYTES,
        inline_bytes: 2 * BLOCK_BYTES,
        age: Duration::from_secs(5),
        checkpoint_records: 512,
        checkpoint_map_bytes: 4 << 20,
        replay_map_bytes: 32 << 20,
        grace: Duration::ZERO,
        outage: Duration::ZERO,
        codec: crate::codec::Codec::Raw,
        ahead: AheadLimits { jump_blocks: 0, long_blocks: 0, window_blocks: 0, step_blocks: 0 },
    };
    const CAPACITY: u64 = 60 * BLOCK_BYTES;

    /// Mutations up to `last`, each of a block.
    fn unlogged(last: u64) -> Unlogged {
        let mut unlogged = Unlogged::new(0);
        (1..=last).for_each(|sequence| write(&mut unlogged, sequence));
        unlogged
    }

    fn write(unlogged: &mut Unlogged, sequence: u64) {
        // Far apart, so that each is a chunk.
        let offset = sequence * 100 * BLOCK_BYTES;
        let data = Bytes::from(vec![sequence as u8; BLOCK_BYTES as usize]);
        unlogged.record(sequence, &Mutation::Write { offset, data }, &LIMITS);
    }

    #[test]
    fn a_layer_is_closed_before_it_outgrows_a_segment() {
        let mut unlogged = unlogged(100);
        for (_, overlay) in unlogged.begin_uploads() {
            let bytes = codec::segment_bytes_at_most(overlay.len(), overlay.data_bytes() as usize) as u64;
            assert!(
                bytes <= LIMITS.segment_bytes && bytes > LIMITS.segment_bytes - 2 * BLOCK_BYTES,
                "{bytes}"
            );
        }
        assert!(unlogged.begin_uploads().is_empty(), "an upload begins once");
        assert_eq!(unlogged.data_bytes(), 100 * BLOCK_BYTES);
    }

    #[test]
    fn a_record_passes_over_no_layer_that_has_not_landed() {
        let mut unlogged = unlogged(50);
        let numbers: Vec<u64> = unlogged.begin_uploads().into_iter().map(|(last, _)| last).collect();
        let [first, second, third] = numbers[..] else { panic!("{numbers:?}") };
        unlogged.uploaded(second, Batch::default());
        unlogged.uploaded(third, Batch::default());
        assert!(unlogged.take(first, LIMITS.inline_bytes).is_none());
        assert!(unlogged.take(50, LIMITS.inline_bytes).is_none());
        unlogged.uploaded(first, Batch::default());
        let taken = unlogged.take(50, LIMITS.inline_bytes).unwrap();
        assert_eq!((taken.layers, taken.last, taken.batches.len()), (4, 50, 3));
        assert_eq!(taken.tail.as_ref().map(|tail| tail.data_bytes()), Some(2 * BLOCK_BYTES));
        assert!(unlogged.logged(&taken), "nothing is left");
        assert_eq!(unlogged.data_bytes(), 0);
        assert_eq!(unlogged.due(CAPACITY, &LIMITS), Due::Never);
    }

    #[test]
    fn what_is_too_much_for_a_record_is_uploaded_first_and_what_comes_later_is_not_waited_for() {
        let mut unlogged = unlogged(10);
        assert!(unlogged.take(10, LIMITS.inline_bytes).is_none());
        let uploads = unlogged.begin_uploads();
        assert_eq!(uploads.len(), 1);
        (11..=20).for_each(|sequence| write(&mut unlogged, sequence));
        unlogged.uploaded(10, Batch::default());
        let taken = unlogged.take(10, LIMITS.inline_bytes).unwrap();
        assert_eq!((taken.last, taken.tail.is_none()), (10, true));
        assert!(!unlogged.logged(&taken));
        assert_eq!(unlogged.data_bytes(), 10 * BLOCK_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_is_due_for_a_waiting_flush_for_room_and_for_age() {
        let mut unlogged = unlogged(47);
        let began = Instant::now();
        let numbers: Vec<u64> = unlogged.begin_uploads().into_iter().map(|(last, _)| last).collect();
        assert_eq!(unlogged.due(CAPACITY, &LIMITS), Due::At(began + LIMITS.age));
        unlogged.uploaded(numbers[0], Batch::default());
        assert_eq!(unlogged.due(CAPACITY, &LIMITS), Due::At(began + LIMITS.age));
        unlogged.press();
        assert_eq!(unlogged.due(CAPACITY, &LIMITS), Due::At(began + LIMITS.age), "uploads are under way");
        unlogged.uploaded(numbers[1], Batch::default());
        assert_eq!(unlogged.due(CAPACITY, &LIMITS), Due::Now(numbers[1]), "half of the room");
        let taken = unlogged.take(numbers[1], LIMITS.inline_bytes).unwrap();
        unlogged.logged(&taken);
        assert_eq!(unlogged.due(CAPACITY, &LIMITS), Due::At(began + LIMITS.age));
        unlogged.want_all();
        assert_eq!(unlogged.due(CAPACITY, &LIMITS), Due::Now(47));
        let mut unlogged = self::unlogged(1);
        tokio::time::advance(LIMITS.age).await;
        assert_eq!(unlogged.due(CAPACITY, &LIMITS), Due::Now(1));
        unlogged = self::unlogged(60);
        for (number, _) in unlogged.begin_uploads() {
            unlogged.uploaded(number, Batch::default());
        }
        assert!(matches!(unlogged.due(CAPACITY, &LIMITS), Due::Now(48)), "two thirds of the room");
    }
}
