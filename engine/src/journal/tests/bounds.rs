//! What a journal refuses: other grants, damage, more than fits, disks that fail. It never acknowledges then.

use super::disk::{FakeDisk, Fault, Torn};
use super::*;
use crate::buffer::BufferError;

const SECOND: Duration = Duration::from_secs(1);

async fn refused(disk: &FakeDisk, owner: Owner) -> JournalError {
    Journal::open(Arc::new(disk.clone()), owner, Patience::default())
        .await
        .expect_err("it must not be opened")
}

#[tokio::test(start_paused = true)]
async fn concurrent_flushes_share_a_write() {
    let disk = FakeDisk::new(DISK_BYTES);
    let buffer = bound(&disk, memory(), 0).await;
    let before = disk.writes();
    for fill in 1..=5 {
        buffer.append(&write(fill, 1)).unwrap();
    }
    let flushes = futures::future::join_all((1..=5).map(|number| buffer.persist(number))).await;
    assert_eq!(flushes, [true; 5]);
    assert_eq!(disk.writes(), before + 1);
    // And what is there is not written again.
    assert!(buffer.persist(5).await);
    assert_eq!(disk.writes(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn entries_of_one_grant_are_never_handed_to_another() {
    let disk = FakeDisk::new(DISK_BYTES);
    let buffer = bound(&disk, memory(), 0).await;
    buffer.append(&write(1, 1)).unwrap();
    assert!(buffer.persist(1).await);
    drop(buffer);
    let other = ObjectId([2; 16]);
    let error = refused(&disk, Owner { grant: other, ..owner(None) }).await;
    assert!(matches!(error, JournalError::OtherGrant { found: GRANT, .. }), "{error}");
    let error = refused(&disk, Owner { volume: VolumeId([9; 16]), ..owner(None) }).await;
    assert!(matches!(error, JournalError::OtherGrant { owner: VOLUME, .. }), "{error}");
    let buffer = JournaledBuffer::new(memory(), Some(open(&disk).await));
    assert!(matches!(buffer.bind(other, 0), Err(BufferError::OtherGrant { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_full_journal_sends_flushes_to_the_log_until_the_log_frees_entries() {
    let disk = FakeDisk::new(DISK_BYTES);
    let buffer = bound(&disk, Arc::new(MemoryBuffer::new(1 << 20)), 0).await;
    let mut last = 0;
    loop {
        last = buffer.append(&write(last + 1, 3)).unwrap();
        if !buffer.persist(last).await {
            break;
        }
    }
    assert_eq!(last, 8, "each takes 16 KiB of 120");
    assert!(!buffer.persist(last).await);
    buffer.free(3);
    assert!(buffer.persist(last).await);
    drop(buffer);
    disk.lose_power(Torn::Prefix(0));
    let found = bound(&disk, Arc::new(MemoryBuffer::new(1 << 20)), 3).await.recover().unwrap();
    assert_eq!(found.len() as u64, last - 3);
}

#[tokio::test(start_paused = true)]
async fn flushes_wait_for_the_log_while_the_oldest_frame_waits_too_long() {
    let disk = FakeDisk::new(DISK_BYTES);
    let buffer = bound(&disk, memory(), 0).await;
    buffer.append(&write(1, 1)).unwrap();
    assert!(buffer.persist(1).await);
    tokio::time::advance(Patience::default().log + SECOND).await;
    buffer.append(&write(2, 1)).unwrap();
    assert!(!buffer.persist(2).await);
    buffer.free(1);
    assert!(buffer.persist(2).await);
    assert!(buffer.journal().unwrap().waiting().age < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_or_hangs_acknowledges_nothing_and_is_left_alone() {
    for fault in [Fault::Fails, Fault::Hangs] {
        let disk = FakeDisk::new(DISK_BYTES);
        let buffer = bound(&disk, memory(), 0).await;
        buffer.append(&write(1, 1)).unwrap();
        assert!(buffer.persist(1).await);
        disk.set_fault(Some(fault));
        buffer.append(&write(2, 1)).unwrap();
        assert!(!buffer.persist(2).await, "{fault:?}");
        disk.set_fault(None);
        let writes = disk.writes();
        buffer.append(&write(3, 1)).unwrap();
        assert!(!buffer.persist(3).await);
        assert_eq!(buffer.works(), Some(false));
        assert_eq!(disk.writes(), writes);
        drop(buffer);
        // What it had acknowledged is still found.
        disk.lose_power(Torn::Prefix(0));
        assert_eq!(bound(&disk, memory(), 0).await.recover().unwrap(), [(1, write(1, 1))]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_not_waited_for_at_opening() {
    let disk = FakeDisk::new(DISK_BYTES);
    disk.set_fault(Some(Fault::Hangs));
    let error = Journal::open(Arc::new(disk.clone()), owner(None), Patience::default()).await.unwrap_err();
    assert!(
        matches!(&error, JournalError::Disk { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
    );
    disk.set_fault(None);
    assert_eq!(bound(&disk, memory(), 0).await.works(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn flushes_leave_a_journal_and_join_it_again_without_a_gap() {
    let disk = FakeDisk::new(DISK_BYTES);
    let buffer = bound(&disk, memory(), 0).await;
    buffer.append(&write(1, 1)).unwrap();
    assert!(buffer.persist(1).await);
    buffer.leave();
    assert_eq!(buffer.works(), None);
    buffer.append(&write(2, 1)).unwrap();
    assert!(!buffer.persist(2).await);
    buffer.join(None).unwrap();
    assert_eq!(buffer.works(), Some(true));
    buffer.append(&write(3, 1)).unwrap();
    assert!(buffer.persist(3).await);
    drop(buffer);
    disk.lose_power(Torn::Prefix(0));
    let found = bound(&disk, memory(), 0).await.recover().unwrap();
    assert_eq!(found, [(1, write(1, 1)), (2, write(2, 1)), (3, write(3, 1))]);
}

#[tokio::test(start_paused = true)]
async fn a_buffer_in_use_joins_a_new_journal() {
    let buffer = JournaledBuffer::new(memory(), None);
    buffer.bind(GRANT, 40).unwrap();
    assert_eq!(buffer.works(), Some(false), "one was wanted and could not be made");
    assert!(!buffer.persist(40).await);
    let disk = FakeDisk::new(DISK_BYTES);
    buffer.join(Some(open(&disk).await)).unwrap();
    assert!(buffer.persist(40).await, "the log has everything");
    buffer.append(&write(41, 1)).unwrap();
    assert!(buffer.persist(41).await);
    drop(buffer);
    disk.lose_power(Torn::Prefix(0));
    assert_eq!(bound(&disk, memory(), 40).await.recover().unwrap(), [(41, write(41, 1))]);
}

#[tokio::test(start_paused = true)]
async fn entries_that_are_nowhere_are_an_error() {
    let disk = FakeDisk::new(DISK_BYTES);
    let buffer = bound(&disk, memory(), 5).await;
    buffer.append(&write(6, 1)).unwrap();
    assert!(buffer.persist(6).await);
    drop(buffer);
    // A log that has less than it had cannot be.
    let buffer = JournaledBuffer::new(memory(), Some(open(&disk).await));
    assert!(matches!(buffer.bind(GRANT, 3), Err(BufferError::Missing { first: 4, found: 6 })));
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_the_buffer_cannot_take_is_an_error() {
    let disk = FakeDisk::new(DISK_BYTES);
    let buffer = bound(&disk, memory(), 0).await;
    for fill in 1..=3 {
        buffer.append(&write(fill, 3)).unwrap();
    }
    assert!(buffer.persist(3).await);
    drop(buffer);
    let buffer = JournaledBuffer::new(Arc::new(MemoryBuffer::new(30_000)), Some(open(&disk).await));
    assert!(matches!(buffer.bind(GRANT, 0), Err(BufferError::Outgrown { number: 3 })));
}

#[tokio::test(start_paused = true)]
async fn damaged_headers_and_strange_ciphers_are_errors() {
    let disk = FakeDisk::new(DISK_BYTES);
    let buffer = bound(&disk, memory(), 0).await;
    buffer.append(&write(1, 1)).unwrap();
    assert!(buffer.persist(1).await);
    drop(buffer);
    drop(open(&disk).await);
    let error = refused(&disk, owner(Some(DataKey::new([3; 32])))).await;
    assert!(matches!(error, JournalError::Frame(CodecError::NotEncrypted { .. })), "{error}");
    // One slot is enough.
    disk.overwrite(20, &[0xff; 8]);
    assert_eq!(bound(&disk, memory(), 0).await.recover().unwrap().len(), 1);
    disk.overwrite(20, &[0xff; 8]);
    disk.overwrite(BLOCK_BYTES as usize + 20, &[0xff; 8]);
    let error = refused(&disk, owner(None)).await;
    assert!(matches!(error, JournalError::Damaged { volume: VOLUME }), "{error}");
    let error = refused(&FakeDisk::new(4096), owner(None)).await;
    assert!(matches!(error, JournalError::TooSmall { len_bytes: 4096 }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_only_header_that_is_damaged_hides_no_frames() {
    let disk = FakeDisk::new(DISK_BYTES);
    drop(open(&disk).await);
    disk.overwrite(BLOCK_BYTES as usize + 20, &[0xff; 8]);
    // It was torn when the journal was made.
    let buffer = bound(&disk, memory(), 0).await;
    buffer.append(&write(1, 1)).unwrap();
    assert!(buffer.persist(1).await);
    drop(buffer);
    disk.overwrite(BLOCK_BYTES as usize + 20, &[0xff; 8]);
    let error = refused(&disk, owner(None)).await;
    assert!(matches!(error, JournalError::Damaged { volume: VOLUME }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn with_a_key_nothing_readable_lies_on_the_disk() {
    let disk = FakeDisk::new(DISK_BYTES);
    let key = || Some(DataKey::new([3; 32]));
    let secret = b"a secret in the middle of a block";
    let mut data = vec![0; BLOCK_BYTES as usize];
    data[1000..1000 + secret.len()].copy_from_slice(secret);
    let mutation = Mutation::Write { offset: 0, data: data.into() };
    let open =
        async || Journal::open(Arc::new(disk.clone()), owner(key()), Patience::default()).await.unwrap();
    let buffer = JournaledBuffer::new(memory(), Some(open().await));
    buffer.bind(GRANT, 0).unwrap();
    buffer.append(&mutation).unwrap();
    assert!(buffer.persist(1).await);
    assert!(!disk.bytes().windows(secret.len()).any(|window| window == secret));
    drop(buffer);
    let buffer = JournaledBuffer::new(memory(), Some(open().await));
    buffer.bind(GRANT, 0).unwrap();
    assert_eq!(buffer.recover().unwrap(), [(1, mutation)]);
}
