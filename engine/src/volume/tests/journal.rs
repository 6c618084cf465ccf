//! A volume whose flushes end in a journal.

use super::*;
use crate::journal::tests::DISK_BYTES;
use crate::journal::tests::disk::{FakeDisk, Fault, Torn};
use crate::journal::{Journal, JournaledBuffer, Owner, Patience};

/// A node: its disk.
struct Node {
    disk: FakeDisk,
}

impl Node {
    fn new() -> Self {
        Self { disk: FakeDisk::new(DISK_BYTES) }
    }

    /// A dirty buffer in an empty memory, and what the disk has.
    async fn buffer(&self, scene: &Scene, grant: GrantId) -> Arc<dyn DirtyBuffer> {
        let Log { volume, key, env, .. } = scene.log.clone();
        let owner = Owner { volume, grant, key, env };
        let journal = Journal::open(Arc::new(self.disk.clone()), owner, Patience::default()).await.unwrap();
        Arc::new(JournaledBuffer::new(buffer(), Some(journal)))
    }

    async fn open(&self, scene: &Scene, grant: GrantId) -> Volume {
        scene.open_with(grant, self.buffer(scene, grant).await).await.unwrap()
    }

    /// The node loses power, and the process with it.
    fn lose_power(&self, volume: Volume) {
        volume.abandon();
        self.disk.lose_power(Torn::Prefix(0));
    }
}

async fn records(scene: &Scene) -> usize {
    scene.keys(&crate::pool::layout::records(scene.log.volume)).await.len()
}

#[tokio::test(start_paused = true)]
async fn what_a_flush_answered_is_there_after_a_loss_of_power_before_the_store_has_it() {
    let (scene, node) = (Scene::new().await, Node::new());
    let grant = scene.grant("a").await;
    let volume = node.open(&scene, grant).await;
    let before = records(&scene).await;
    volume.write(0, filled(1, 8192)).await.unwrap();
    volume.discard(4096, 4096).await.unwrap();
    volume.flush().await.unwrap();
    volume.write(8192, filled(2, 4096)).await.unwrap();
    assert_eq!(records(&scene).await, before, "the flush has waited for the store");
    node.lose_power(volume);

    let volume = node.open(&scene, grant).await;
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(1, 4096));
    assert_eq!(volume.read(4096, 8192).await.unwrap(), filled(0, 8192));
    volume.drain().await.unwrap();
    // From here on the journal has nothing that the log has not, and replays nothing over newer data.
    volume.write(0, filled(3, 4096)).await.unwrap();
    volume.drain().await.unwrap();
    node.lose_power(volume);
    let volume = node.open(&scene, grant).await;
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(3, 4096));
}

#[tokio::test(start_paused = true)]
async fn the_store_follows_in_order_within_seconds_and_frees_the_journal() {
    let (scene, node) = (Scene::new().await, Node::new());
    let grant = scene.grant("a").await;
    let volume = node.open(&scene, grant).await;
    // Several times what the journal holds.
    for round in 0..100u64 {
        volume.write(round % 7 * 4096, filled(round as u8, 4096)).await.unwrap();
        volume.flush().await.unwrap();
    }
    let committed = volume.shared.board.now().committed;
    tokio::time::sleep(Limits::default().age * 2).await;
    assert!(
        committed < 100 && volume.shared.board.now().committed == 100,
        "{committed} were committed at once"
    );
    assert_eq!(volume.dirty_bytes(), 0);
    // Without the journal, everything is there.
    volume.abandon();
    let volume = scene.open(grant).await;
    for lba in 0..7 {
        let newest = (0..100u64).rfind(|round| round % 7 == lba).unwrap();
        assert_eq!(volume.read(lba * 4096, 4096).await.unwrap(), filled(newest as u8, 4096));
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_journal_the_store_has_an_earlier_state() {
    let (scene, node) = (Scene::new().await, Node::new());
    let grant = scene.grant("a").await;
    let volume = node.open(&scene, grant).await;
    for round in 1..=60u8 {
        // The count first, then what it counts.
        volume.write(0, filled(round, 4096)).await.unwrap();
        volume.flush().await.unwrap();
        volume.write(u64::from(round) * 4096, filled(round, 4096)).await.unwrap();
        volume.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 37 % 500)).await;
    }
    volume.abandon();
    let volume = scene.open(grant).await;
    let count = volume.read(0, 1).await.unwrap()[0];
    assert!(count > 0, "nothing has followed");
    for round in 1..=60u8 {
        let found = volume.read(u64::from(round) * 4096, 1).await.unwrap()[0];
        let expected = if round < count { round } else { 0 };
        assert!(found == expected || round == count && found == round, "{round} of {count}: {found}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_and_a_close_have_everything_in_the_store() {
    let (scene, node) = (Scene::new().await, Node::new());
    let grant = scene.grant("a").await;
    let volume = node.open(&scene, grant).await;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    volume.snapshot("s", "").await.unwrap();
    assert_eq!(volume.shared.board.now().committed, 1);
    volume.write(0, filled(2, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    volume.close().await.unwrap();
    let volume = scene.open(grant).await;
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(2, 4096));
}

#[tokio::test(start_paused = true)]
async fn the_journal_of_a_revoked_grant_is_not_replayed() {
    let (scene, node) = (Scene::new().await, Node::new());
    let grant = scene.grant("a").await;
    let volume = node.open(&scene, grant).await;
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    node.lose_power(volume);
    unpublish(&scene.log, "a", deadline()).await.unwrap();
    let elsewhere = scene.grant("b").await;
    let volume = scene.open(elsewhere).await;
    volume.write(0, filled(2, 4096)).await.unwrap();
    volume.close().await.unwrap();
    let refused = scene.open_with(grant, node.buffer(&scene, grant).await).await;
    assert!(matches!(refused, Err(OpenError::NotGranted { .. })));

    unpublish(&scene.log, "b", deadline()).await.unwrap();
    let again = scene.grant("a").await;
    let Log { volume, key, env, .. } = scene.log.clone();
    let owner = Owner { volume, grant: again, key, env };
    Journal::open(Arc::new(node.disk.clone()), owner, Patience::default()).await.unwrap_err();
    let volume = scene.open(again).await;
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(2, 4096));
}

#[tokio::test(start_paused = true)]
async fn with_a_failed_journal_a_flush_is_in_the_store() {
    let (scene, node) = (Scene::new().await, Node::new());
    let grant = scene.grant("a").await;
    let volume = node.open(&scene, grant).await;
    node.disk.set_fault(Some(Fault::Fails));
    volume.write(0, filled(1, 4096)).await.unwrap();
    volume.flush().await.unwrap();
    node.lose_power(volume);
    let volume = scene.open(grant).await;
    assert_eq!(volume.read(0, 4096).await.unwrap(), filled(1, 4096));
}
