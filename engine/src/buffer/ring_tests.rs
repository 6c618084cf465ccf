use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::buffer::MemoryRegion;

const REGION_BYTES: usize = 12_000;
const GRANT: GrantId = GrantId { 0: [1; 16] };

/// A region whose process dies in the middle of a write: of that one some bytes are new, of later ones none.
#[derive(Debug)]
struct Mortal {
    region: Arc<MemoryRegion>,
    /// Writes that are still whole; the one after them is torn.
    whole: AtomicU64,
    dead: AtomicBool,
    torn: Torn,
}

#[derive(Debug, Clone, Copy)]
enum Torn {
    /// The first so many thousandths are new.
    Prefix(usize),
    /// The bytes whose bit in the repeated pattern is set are new.
    Scattered(u64),
}

impl Mortal {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

impl Region for Mortal {
    fn len(&self) -> usize {
        self.region.len()
    }

    fn read_at(&self, offset: usize, bytes: &mut [u8]) {
        self.region.read_at(offset, bytes);
    }

    fn release(&self, offset: usize, len: usize) {
        self.write_at(offset, &vec![0; len]);
    }

    fn write_at(&self, offset: usize, bytes: &[u8]) {
        if self.is_dead() {
            return;
        }
        if self.whole.fetch_sub(1, Ordering::Relaxed) > 0 {
            return self.region.write_at(offset, bytes);
        }
        self.dead.store(true, Ordering::Relaxed);
        for (place, byte) in bytes.iter().enumerate() {
            let is_new = match self.torn {
                Torn::Prefix(thousandths) => place * 1000 < bytes.len() * thousandths,
                Torn::Scattered(pattern) => pattern >> (place % 64) & 1 == 1,
            };
            if is_new {
                self.region.write_at(offset + place, &[*byte]);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Write(u64, usize),
    Discard(u64, u64),
    /// Frees this share of what is there, in eighths.
    Free(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (any::<u64>(), 0..3000usize).prop_map(|(offset, len)| Act::Write(offset, len)),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(offset, len)| Act::Discard(offset, len)),
        3 => (0..9usize).prop_map(Act::Free),
    ]
}

fn torn() -> impl Strategy<Value = Torn> {
    prop_oneof![(0..1001usize).prop_map(Torn::Prefix), any::<u64>().prop_map(Torn::Scattered)]
}

/// One life of a process: what it does, when it dies, and whether its successor comes with another grant.
type Life = (Vec<Act>, u64, Torn, bool);

fn life() -> impl Strategy<Value = Life> {
    (proptest::collection::vec(act(), 0..40), 0..60u64, torn(), proptest::bool::weighted(0.2))
}

/// What must be in the buffer, and what may be.
#[derive(Debug, Default)]
struct Model {
    entries: VecDeque<(u64, Mutation)>,
    next: u64,
    /// The append that was under way at the death.
    maybe_appended: Option<(u64, Mutation)>,
    /// The free that was under way.
    maybe_freed: Option<u64>,
}

impl Model {
    /// Lives until the acts are done or the process is dead.
    fn live(&mut self, ring: &Ring, region: &Mortal, acts: &[Act], fill: u8) {
        for act in acts {
            let mutation = match act {
                Act::Write(offset, len) => {
                    Mutation::Write { offset: *offset, data: vec![fill ^ self.next as u8; *len].into() }
                }
                Act::Discard(offset, len) => Mutation::Discard { offset: *offset, len: *len },
                Act::Free(eighths) => {
                    let number = self.next - 1 - (self.entries.len() * (8 - eighths) / 8) as u64;
                    ring.free(number);
                    if region.is_dead() {
                        self.maybe_freed = Some(number);
                        return;
                    }
                    self.entries.retain(|(found, _)| *found > number);
                    continue;
                }
            };
            match ring.append(&mutation) {
                Ok(number) => {
                    assert_eq!(number, self.next);
                    if region.is_dead() {
                        self.maybe_appended = Some((number, mutation));
                        return;
                    }
                    self.entries.push_back((number, mutation));
                    self.next += 1;
                }
                Err(BufferError::Full) => assert!(!self.entries.is_empty(), "an empty ring is full"),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Takes over what a successor has found, which must be allowed.
    fn settle(&mut self, found: Vec<(u64, Mutation)>) {
        let mut allowed = vec![self.entries.clone()];
        if let Some(number) = self.maybe_freed.take() {
            allowed.push(self.entries.iter().filter(|(found, _)| *found > number).cloned().collect());
        }
        if let Some(entry) = self.maybe_appended.take() {
            allowed.push(self.entries.iter().cloned().chain([entry]).collect());
        }
        let found = VecDeque::from(found);
        assert!(allowed.contains(&found), "found {found:?}, allowed {allowed:?}");
        self.next = found.back().map_or(self.next, |(number, _)| number + 1);
        self.entries = found;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_crash_at_any_write_leaves_exactly_what_was_answered_and_not_freed(
        lives in proptest::collection::vec(life(), 1..6),
    ) {
        let memory = Arc::new(MemoryRegion::new(REGION_BYTES));
        let (mut grant, mut model) = (GRANT, Model { next: 1, ..Model::default() });
        Ring::open(memory.clone(), &Budget::unlimited()).unwrap().bind(grant, 0).unwrap();
        for (fill, (acts, whole, torn, moves)) in (0..).zip(lives) {
            let region = Arc::new(Mortal {
                region: memory.clone(),
                whole: whole.into(),
                dead: false.into(),
                torn,
            });
            // Memory is always tight, so that each free gives some back.
            let ring = Ring::open(region.clone(), &Budget::new(0)).unwrap();
            model.live(&ring, &region, &acts, fill);

            let successor = Ring::open(memory.clone(), &Budget::unlimited()).unwrap();
            model.settle(successor.recover().unwrap());
            if moves {
                grant.0[0] += 1;
                prop_assert_eq!(successor.bind(grant, 7).unwrap(), model.entries.len());
                prop_assert!(successor.recover().unwrap().is_empty());
                model = Model { next: 8, ..Model::default() };
            } else {
                prop_assert_eq!(successor.bind(grant, 0).is_ok(), successor.state().header.freed == 0);
            }
        }
    }

    #[test]
    fn a_bind_that_is_torn_has_happened_or_has_not(torn in torn(), entries in 0..4u64) {
        let memory = Arc::new(MemoryRegion::new(REGION_BYTES));
        let ring = Ring::open(memory.clone(), &Budget::unlimited()).unwrap();
        ring.bind(GRANT, 0).unwrap();
        for offset in 0..entries {
            ring.append(&Mutation::Discard { offset, len: 1 }).unwrap();
        }
        let region = Mortal { region: memory.clone(), whole: 0.into(), dead: false.into(), torn };
        let newer = GrantId { 0: [2; 16] };
        Ring::open(Arc::new(region), &Budget::unlimited()).unwrap().bind(newer, 3).unwrap();

        let successor = Ring::open(memory, &Budget::unlimited()).unwrap();
        let dropped = successor.bind(newer, 3).unwrap();
        prop_assert!(dropped == 0 || dropped as u64 == entries);
        prop_assert!(successor.recover().unwrap().is_empty());
        prop_assert_eq!(successor.append(&Mutation::Discard { offset: 0, len: 1 }).unwrap(), 4);
    }
}

#[test]
fn a_first_bind_that_is_torn_leaves_an_empty_buffer() {
    for thousandths in (0..1000).step_by(7) {
        let memory = Arc::new(MemoryRegion::new(REGION_BYTES));
        let torn = Torn::Prefix(thousandths);
        let region = Mortal { region: memory.clone(), whole: 0.into(), dead: false.into(), torn };
        Ring::open(Arc::new(region), &Budget::unlimited()).unwrap().bind(GRANT, 0).unwrap();
        assert_eq!(Ring::open(memory, &Budget::unlimited()).unwrap().bind(GRANT, 0).unwrap(), 0);
    }
}

#[test]
fn a_full_ring_takes_entries_again_once_the_oldest_are_freed() {
    let ring = Ring::open(Arc::new(MemoryRegion::new(REGION_BYTES)), &Budget::unlimited()).unwrap();
    ring.bind(GRANT, 10).unwrap();
    let write = Mutation::Write { offset: 4096, data: vec![5; 4096].into() };
    for lap in 0..100 {
        assert_eq!(ring.append(&write).unwrap(), 11 + 2 * lap);
        assert_eq!(ring.append(&write).unwrap(), 12 + 2 * lap);
        assert!(matches!(ring.append(&write), Err(BufferError::Full)));
        assert_eq!(ring.recover().unwrap()[1], (12 + 2 * lap, write.clone()));
        ring.free(12 + 2 * lap);
    }
}

#[test]
fn a_write_larger_than_the_ring_is_refused() {
    let ring = Ring::open(Arc::new(MemoryRegion::new(REGION_BYTES)), &Budget::unlimited()).unwrap();
    let write = Mutation::Write { offset: 0, data: vec![0; REGION_BYTES].into() };
    assert!(matches!(ring.append(&write), Err(BufferError::TooLarge { .. })));
    let small = Arc::new(MemoryRegion::new(Ring::REGION_BYTES_MIN - 1));
    assert!(matches!(Ring::open(small, &Budget::unlimited()), Err(BufferError::TooSmall { .. })));
}

#[test]
fn entries_that_the_log_has_are_skipped_and_numbering_goes_on_after_them() {
    let memory = Arc::new(MemoryRegion::new(REGION_BYTES));
    let ring = Ring::open(memory.clone(), &Budget::unlimited()).unwrap();
    ring.bind(GRANT, 0).unwrap();
    for offset in 1..=3 {
        ring.append(&Mutation::Discard { offset, len: 1 }).unwrap();
    }
    let successor = Ring::open(memory, &Budget::unlimited()).unwrap();
    successor.bind(GRANT, 2).unwrap();
    assert_eq!(successor.recover().unwrap(), [(3, Mutation::Discard { offset: 3, len: 1 })]);
    successor.bind(GRANT, 9).unwrap();
    assert_eq!(successor.append(&Mutation::Discard { offset: 0, len: 1 }).unwrap(), 10);
    assert!(matches!(successor.bind(GRANT, 8), Err(BufferError::Damaged { .. })));
}

#[test]
fn two_damaged_headers_are_an_error() {
    let memory = Arc::new(MemoryRegion::new(REGION_BYTES));
    let ring = Ring::open(memory.clone(), &Budget::unlimited()).unwrap();
    ring.bind(GRANT, 0).unwrap();
    ring.append(&Mutation::Discard { offset: 0, len: 1 }).unwrap();
    ring.free(1);
    memory.write_at(20, &[0xff]);
    memory.write_at(SLOT_BYTES + 20, &[0xff]);
    assert!(matches!(Ring::open(memory, &Budget::unlimited()), Err(BufferError::Damaged { .. })));
}

/// A region that notes which of its bytes were written since they were given back.
#[derive(Debug)]
struct Counted {
    region: MemoryRegion,
    touched: Mutex<Vec<bool>>,
}

impl Counted {
    fn new() -> Arc<Self> {
        let touched = Mutex::new(vec![false; REGION_BYTES]);
        Arc::new(Self { region: MemoryRegion::new(REGION_BYTES), touched })
    }

    fn touched_bytes(&self) -> usize {
        self.touched.lock().unwrap()[RING_START..].iter().filter(|touched| **touched).count()
    }
}

impl Region for Counted {
    fn len(&self) -> usize {
        self.region.len()
    }

    fn read_at(&self, offset: usize, bytes: &mut [u8]) {
        self.region.read_at(offset, bytes);
    }

    fn write_at(&self, offset: usize, bytes: &[u8]) {
        self.touched.lock().unwrap()[offset..offset + bytes.len()].fill(true);
        self.region.write_at(offset, bytes);
    }

    fn release(&self, offset: usize, len: usize) {
        self.touched.lock().unwrap()[offset..offset + len].fill(false);
        self.region.release(offset, len);
    }
}

#[test]
fn what_freed_entries_leave_behind_goes_back_when_the_ring_is_empty_or_memory_is_tight() {
    let write = Mutation::Write { offset: 0, data: vec![5; 1000].into() };
    for (budget, is_tight) in [(Budget::unlimited(), false), (Budget::new(0), true)] {
        let region = Counted::new();
        let ring = Ring::open(region.clone(), &budget).unwrap();
        ring.bind(GRANT, 0).unwrap();
        let mut last = 0;
        for lap in 0..30 {
            for _ in 0..4 {
                last = ring.append(&write).unwrap();
            }
            let before = region.touched_bytes();
            ring.free(last - 1);
            assert_eq!(region.touched_bytes() < before, is_tight, "lap {lap}");
            ring.free(last);
            assert!(region.touched_bytes() < REGION_BYTES / 64, "lap {lap}");
        }
        let successor = Ring::open(region, &budget).unwrap();
        assert_eq!((successor.recover().unwrap(), successor.append(&write).unwrap()), (vec![], last + 1));
    }
}

#[test]
fn rings_of_one_budget_hold_together_what_it_allows() {
    const BYTES: usize = 16 << 20;
    let budget = Budget::new(8 << 20);
    let open = || {
        let ring = Ring::open(Arc::new(MemoryRegion::new(BYTES)), &budget).unwrap();
        ring.bind(GRANT, 0).unwrap();
        ring
    };
    let write = Mutation::Write { offset: 0, data: vec![5; 1 << 20].into() };
    let fill = |ring: &Ring| (0..).take_while(|_| ring.append(&write).is_ok()).count();
    let (first, second) = (open(), open());
    assert_eq!(fill(&first), 7, "the budget, less what entries take besides their data");
    assert_eq!(fill(&second), 1, "its own");
    first.free(4);
    assert_eq!(fill(&second), 3);
    drop(second);
    assert_eq!(fill(&first), 4);
}
