//! A crash at any write, a loss of power at any time: what was acknowledged is found, and nothing that never was next.

use std::sync::Arc;

use proptest::prelude::*;

use super::disk::{FakeDisk, Torn};
use super::*;
use crate::buffer::BufferError;

#[derive(Debug, Clone)]
enum Act {
    Write(u64),
    Discard,
    Flush,
    /// This share of what is not in the log gets there, in eighths.
    Commit(u64),
}

/// One life of a process: what it does, when and how it dies, and whether the node dies with it.
#[derive(Debug, Clone)]
struct Life {
    acts: Vec<Act>,
    writes: u64,
    torn: Torn,
    power_lost: Option<Torn>,
}

/// What must be found, and what may be.
#[derive(Debug, Default)]
struct Model {
    /// Every entry by its number, from 1.
    entries: Vec<Mutation>,
    /// Entries up to this are in the log.
    complete: u64,
    /// Entries up to this were acknowledged as durable.
    acknowledged: u64,
    made: u64,
}

impl Model {
    fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Checks what a successor has found, and goes on from there.
    fn settle(&mut self, found: Vec<(u64, Mutation)>) {
        for (place, (number, mutation)) in (1..).zip(&found) {
            assert_eq!(*number, self.complete + place, "entries are missing");
            assert_eq!(
                Some(mutation),
                self.entries.get(*number as usize - 1),
                "entry {number} is another one"
            );
        }
        let last = self.complete + found.len() as u64;
        assert!(
            last >= self.acknowledged,
            "entry {} was acknowledged; {last} is the last",
            self.acknowledged
        );
        self.entries.truncate(last as usize);
    }

    fn append(&mut self, buffer: &JournaledBuffer, blocks: u64) {
        self.made += 1;
        let mutation = match blocks {
            0 => Mutation::Discard { offset: self.made * BLOCK_BYTES, len: 5 * BLOCK_BYTES },
            blocks => write(self.made, blocks),
        };
        let number = match buffer.append(&mutation) {
            Err(BufferError::Full) => {
                self.commit(buffer, 8);
                buffer.append(&mutation).expect("an empty buffer has room")
            }
            appended => appended.expect("it fits"),
        };
        self.entries.push(mutation);
        assert_eq!(number, self.last());
    }

    fn commit(&mut self, buffer: &JournaledBuffer, eighths: u64) {
        self.complete += (self.last() - self.complete) * eighths / 8;
        buffer.free(self.complete);
    }

    /// Lives until the acts are done, or the process is dead.
    async fn live(
        &mut self,
        disk: &FakeDisk,
        inner: &Arc<dyn DirtyBuffer>,
        life: &Life,
        key: Option<DataKey>,
    ) {
        let opened = Journal::open(Arc::new(disk.clone()), owner(key), Patience::default());
        let journal = tokio::select! {
            biased;
            opened = opened => opened.expect("no crash makes a journal unusable"),
            () = disk.crashed() => return,
        };
        let buffer = JournaledBuffer::new(Arc::clone(inner), Some(journal));
        buffer.bind(GRANT, self.complete).expect("the buffers fit together");
        self.settle(buffer.recover().expect("intact"));
        for act in &life.acts {
            match act {
                Act::Write(blocks) => self.append(&buffer, *blocks),
                Act::Discard => self.append(&buffer, 0),
                Act::Commit(eighths) => self.commit(&buffer, *eighths),
                Act::Flush => tokio::select! {
                    biased;
                    persisted = buffer.persist(self.last()) => {
                        if persisted {
                            self.acknowledged = self.acknowledged.max(self.last());
                        }
                    }
                    () = disk.crashed() => return,
                },
            }
        }
    }

    async fn run(&mut self, lives: &[Life], key: Option<DataKey>) {
        let disk = FakeDisk::new(DISK_BYTES);
        let mut inner = memory();
        for life in lives {
            disk.crash_at(life.writes, life.torn);
            self.live(&disk, &inner, life, key.clone()).await;
            match life.power_lost {
                Some(torn) => {
                    disk.lose_power(torn);
                    inner = memory();
                }
                None => disk.revive(),
            }
        }
        // The node comes back a last time, with an empty memory.
        disk.lose_power(Torn::Prefix(0));
        let last = Life { acts: Vec::new(), writes: u64::MAX, torn: Torn::Prefix(0), power_lost: None };
        disk.crash_at(u64::MAX, Torn::Prefix(0));
        self.live(&disk, &memory(), &last, key).await;
    }
}

fn block_on(work: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().expect("a runtime starts").block_on(work);
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..4u64).prop_map(Act::Write),
        1 => Just(Act::Discard),
        4 => Just(Act::Flush),
        1 => (0..9u64).prop_map(Act::Commit),
    ]
}

fn torn() -> impl Strategy<Value = Torn> {
    prop_oneof![
        (0..30usize).prop_map(Torn::Prefix),
        (0..30usize).prop_map(Torn::Suffix),
        any::<u64>().prop_map(Torn::Scattered),
    ]
}

fn life() -> impl Strategy<Value = Life> {
    (proptest::collection::vec(act(), 0..60), 0..25u64, torn(), proptest::option::weighted(0.6, torn()))
        .prop_map(|(acts, writes, torn, power_lost)| Life { acts, writes, torn, power_lost })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_was_acknowledged_is_found_in_order(
        lives in proptest::collection::vec(life(), 1..7),
        key in proptest::option::of(any::<[u8; 32]>()),
    ) {
        block_on(Model::default().run(&lives, key.map(DataKey::new)));
    }
}

/// Two laps and more of frames over older ones: many small; and a ring that is nearly full when half of it is freed, so
/// that the next frame lies where the header's oldest was.
fn scripts() -> [Vec<Act>; 2] {
    use Act::{Commit, Discard, Flush, Write};
    let small = [Write(1), Flush, Write(1), Write(1), Write(1), Write(1), Flush, Discard, Commit(4), Flush];
    let small = small.into_iter().chain([Write(3), Commit(8), Flush]).cycle().take(13 * 7).collect();
    let fill = [Write(1), Flush].into_iter().cycle().take(2 * 14);
    let nearly_full = fill.chain([Commit(4), Write(3), Flush, Commit(8)]).cycle().take(32 * 2).collect();
    [small, nearly_full]
}

#[test]
fn a_crash_at_any_sector_of_any_write_leaves_a_prefix_with_all_that_was_acknowledged() {
    use Act::{Flush, Write};
    let whole = Torn::Prefix(usize::MAX);
    for acts in scripts() {
        for writes in 0..36 {
            for torn in (0..36).step_by(8).flat_map(|sectors| [Torn::Prefix(sectors), Torn::Suffix(sectors)])
            {
                // The node loses power in the middle of the write, or a successor first builds on what it left.
                let goes_on = vec![Flush, Write(1), Write(1), Flush];
                for (torn, power_lost, acts_after) in
                    [(whole, Some(torn), goes_on.clone()), (torn, None, goes_on), (torn, None, vec![Flush])]
                {
                    let life = Life { acts: acts.clone(), writes, torn, power_lost };
                    let power_lost = Some(Torn::Prefix(0));
                    let after = Life { acts: acts_after, writes: u64::MAX, torn: whole, power_lost };
                    block_on(Model::default().run(&[life, after], None));
                }
            }
        }
    }
}

#[test]
fn a_loss_of_power_while_a_successor_opens_leaves_one_header() {
    use Act::{Commit, Flush, Write};
    let acts: Vec<Act> = [Write(1), Flush, Write(1), Flush, Commit(4)].into_iter().cycle().take(50).collect();
    let whole = Torn::Prefix(usize::MAX);
    for writes in 0..12 {
        for seed in 0..100 {
            // The last header of a killed process is in the system's memory only when the power fails.
            let killed = Life { acts: acts.clone(), writes, torn: whole, power_lost: None };
            let power_lost = Some(Torn::Scattered(seed));
            let opening = Life { acts: Vec::new(), writes: 0, torn: whole, power_lost };
            block_on(Model::default().run(&[killed, opening], None));
        }
    }
}

#[test]
fn what_a_killed_process_left_unsynced_is_durable_once_its_successor_builds_on_it() {
    block_on(async {
        let disk = FakeDisk::new(DISK_BYTES);
        let buffer = bound(&disk, memory(), 0).await;
        buffer.append(&write(1, 1)).expect("room");
        disk.crash_at(0, Torn::Prefix(usize::MAX));
        tokio::select! {
            biased;
            _ = buffer.persist(1) => unreachable!("the process dies first"),
            () = disk.crashed() => {}
        }
        drop(buffer);
        disk.revive();
        // The successor, with an empty memory, finds it in the system's memory, and acknowledges it.
        let buffer = bound(&disk, memory(), 0).await;
        assert_eq!(buffer.recover().expect("intact"), [(1, write(1, 1))]);
        assert!(buffer.persist(1).await);
        drop(buffer);
        disk.lose_power(Torn::Prefix(0));
        let buffer = bound(&disk, memory(), 0).await;
        assert_eq!(buffer.recover().expect("intact"), [(1, write(1, 1))]);
    });
}
