//! Volumes with `durability: journal`: what an fsync answered while the store was down.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holdfast_csi_proto::csi::Volume;

use crate::common::eventually;
use crate::site::{Node, Site};
use crate::{write, writer};

const JOURNAL: [(&str, &str); 1] = [("durability", "journal")];

fn block(byte: u8) -> Vec<u8> {
    vec![byte; 4096]
}

/// Overwrites the block that a file consists of, in place, and waits until it is durable.
fn overwrite(file: &Path, byte: u8) -> io::Result<()> {
    let file = File::options().write(true).open(file)?;
    file.write_all_at(&block(byte), 0)?;
    file.sync_data()
}

async fn overwrite_soon(file: &Path, byte: u8) {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || overwrite(&file, byte)).await.unwrap().unwrap();
}

fn holds(file: &Path) -> u8 {
    let found = std::fs::read(file).unwrap();
    assert!(found == block(found[0]), "the file is torn");
    found[0]
}

/// Attaches a volume and publishes it; the file in it that is overwritten.
async fn publish(site: &mut Site, node: &mut Node, volume: &Volume) -> PathBuf {
    let context = site.attach(volume, node, &writer()).await.unwrap();
    node.publish(volume, &context, &writer()).await.unwrap().join("file")
}

/// A volume whose newest state is in the journal alone: `2` over `1`, while the store was down.
async fn ahead_of_the_store(site: &mut Site, node: &mut Node, volume: &Volume) -> PathBuf {
    let file = publish(site, node, volume).await;
    write(&file, &String::from_utf8(block(1)).unwrap()).unwrap();
    site.snapshot(volume, "everything is in the store").await.unwrap();
    let down = site.without_store();
    overwrite_soon(&file, 2).await;
    node.lose_power();
    drop(down);
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_fsync_answered_survives_a_loss_of_power_while_the_store_is_down() {
    let mut site = Site::start().await;
    let (mut node, mut other) = (site.node("n1").await, site.node("n2").await);
    let volume = site.create_with("data", None, &JOURNAL).await;
    let file = ahead_of_the_store(&mut site, &mut node, &volume).await;
    node.power_on().await;
    let context = site.attach(&volume, &node, &writer()).await.unwrap();
    node.publish(&volume, &context, &writer()).await.unwrap();
    assert_eq!(holds(&file), 2);

    // Detached in the normal way, everything is in the store.
    overwrite_soon(&file, 3).await;
    node.unpublish(&volume).await.unwrap();
    assert_eq!(node.journals("journal"), 0);
    site.detach(&volume, &node).await;
    let file = publish(&mut site, &mut other, &volume).await;
    assert_eq!(holds(&file), 3);
    other.unpublish(&volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_puts_its_journals_into_the_store_by_itself() {
    let mut site = Site::start().await;
    let (mut node, mut other) = (site.node("n1").await, site.node("n2").await);
    let volume = site.create_with("data", None, &JOURNAL).await;
    ahead_of_the_store(&mut site, &mut node, &volume).await;
    assert_eq!(node.journals("journal"), 1);
    node.power_on().await;
    eventually("the journal is in the store", || node.journals("journal") == 0);
    // Nobody has staged it again; Kubernetes takes it elsewhere.
    site.detach(&volume, &node).await;
    let file = publish(&mut site, &mut other, &volume).await;
    assert_eq!(holds(&file), 2);
    other.unpublish(&volume).await.unwrap();
    assert_eq!(node.journals("lost"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_of_a_volume_that_was_detached_by_force_is_set_aside() {
    let mut site = Site::start().await;
    let (mut node, mut other) = (site.node("n1").await, site.node("n2").await);
    let volume = site.create_with("data", None, &JOURNAL).await;
    ahead_of_the_store(&mut site, &mut node, &volume).await;
    site.detach(&volume, &node).await;
    let file = publish(&mut site, &mut other, &volume).await;
    assert_eq!(holds(&file), 1, "the last state that the store has");
    overwrite_soon(&file, 4).await;
    node.power_on().await;
    eventually("the journal is set aside", || node.journals("lost") == 1);
    assert_eq!(node.journals("journal"), 0);
    assert_eq!(holds(&file), 4);
    other.unpublish(&volume).await.unwrap();
    site.detach(&volume, &other).await;

    let file = publish(&mut site, &mut node, &volume).await;
    assert_eq!(holds(&file), 4);
    node.unpublish(&volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_volume_gets_a_journal_and_leaves_it() {
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let volume = site.create("data", None).await;
    let file = publish(&mut site, &mut node, &volume).await;
    write(&file, &String::from_utf8(block(1)).unwrap()).unwrap();
    assert_eq!(node.journals("journal"), 0);
    let works = format!("holdfast_volume_journal_works{{volume=\"{}\"}}", volume.volume_id);
    assert_eq!(node.find_metric(&works), None);
    for _ in 0..2 {
        site.modify(&volume, "journal").await;
        assert_eq!(node.journals("journal"), 1);
        assert_eq!(node.metric(&works), 1.0);
    }
    let down = site.without_store();
    overwrite_soon(&file, 2).await;
    // The process dies too, and its successor has the buffer and the journal.
    node.process.kill();
    drop(down);
    node.start_again().await;
    node.ready();
    assert_eq!(holds(&file), 2);

    site.modify(&volume, "remote").await;
    assert_eq!(node.find_metric(&works), None);
    overwrite_soon(&file, 3).await;
    node.lose_power();
    node.power_on().await;
    let context = site.attach(&volume, &node, &writer()).await.unwrap();
    node.publish(&volume, &context, &writer()).await.unwrap();
    assert_eq!(holds(&file), 3);
    node.unpublish(&volume).await.unwrap();
    assert_eq!(node.journals("journal"), 0);
}
