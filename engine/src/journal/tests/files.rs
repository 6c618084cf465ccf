//! Journals as files.

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn journals(dir: &std::path::Path) -> Journals {
    Journals::new(dir.join("journals"), DISK_BYTES, Patience::default()).unwrap()
}

fn name() -> JournalName {
    JournalName { volume: "pool-volume".into(), grant: GRANT }
}

#[tokio::test]
async fn a_journal_is_found_again_in_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let journals = journals(dir.path());
    assert!(!journals.contains(&name()).await.unwrap());
    let buffer = JournaledBuffer::new(memory(), Some(journals.open(&name(), owner(None)).await.unwrap()));
    buffer.bind(GRANT, 0).unwrap();
    for fill in 1..=40 {
        let number = buffer.append(&write(fill, 1)).unwrap();
        assert!(buffer.persist(number).await);
        buffer.free(number.saturating_sub(2));
    }
    let busy = journals.open(&name(), owner(None)).await.unwrap_err();
    assert!(matches!(busy, JournalsError::Path { .. }), "{busy}");
    drop(buffer);

    assert_eq!(journals.list().await.unwrap(), [name()]);
    let buffer = JournaledBuffer::new(memory(), Some(opened_soon(&journals).await));
    buffer.bind(GRANT, 38).unwrap();
    assert_eq!(buffer.recover().unwrap(), [(39, write(39, 1)), (40, write(40, 1))]);
    drop(buffer);
    journals.remove(&name()).await.unwrap();
    journals.remove(&name()).await.unwrap();
    assert_eq!(journals.list().await.unwrap(), []);
}

/// The file is free once the task that wrote to it has ended, soon after the journal was dropped.
async fn opened_soon(journals: &Journals) -> Journal {
    for _ in 0..1000 {
        match journals.open(&name(), owner(None)).await {
            Ok(journal) => return journal,
            Err(_) => tokio::task::yield_now().await,
        }
    }
    journals.open(&name(), owner(None)).await.unwrap()
}

#[tokio::test]
async fn what_is_set_aside_is_never_opened_again_and_expires() {
    let dir = tempfile::tempdir().unwrap();
    let journals = journals(dir.path());
    let mut paths = Vec::new();
    for day in 1..=4 {
        drop(journals.open(&name(), owner(None)).await.unwrap());
        paths.push(journals.set_aside(&name(), day * DAY.as_millis() as u64).await.unwrap());
        assert_eq!(journals.list().await.unwrap(), []);
    }
    let now_ms = 9 * DAY.as_millis() as u64;
    let there = || paths.iter().map(|path| path.exists()).collect::<Vec<_>>();
    assert_eq!(journals.expire(now_ms, 7 * DAY, u64::MAX).await.unwrap(), 3);
    assert_eq!(there(), [false, true, true, true]);
    assert_eq!(journals.expire(now_ms, 7 * DAY, DISK_BYTES).await.unwrap(), 1);
    assert_eq!(there(), [false, false, false, true]);
    // A new journal of the same name begins empty.
    let buffer = JournaledBuffer::new(memory(), Some(journals.open(&name(), owner(None)).await.unwrap()));
    buffer.bind(GRANT, 0).unwrap();
    assert_eq!(buffer.recover().unwrap(), []);
}

#[tokio::test]
async fn a_file_that_was_not_finished_is_no_journal() {
    let dir = tempfile::tempdir().unwrap();
    journals(dir.path());
    let unfinished = dir.path().join("journals").join(format!("{}.new", name()));
    std::fs::write(&unfinished, "zeros").unwrap();
    assert_eq!(journals(dir.path()).list().await.unwrap(), []);
    assert!(!unfinished.exists());
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("journals"), "a file").unwrap();
    let error = Journals::new(dir.path().join("journals"), DISK_BYTES, Patience::default()).unwrap_err();
    assert!(error.to_string().contains("journals"), "{error}");
}
