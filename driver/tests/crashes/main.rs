//! Real loads through real crashes: fio with verification, a ledger of acknowledged blocks, and PostgreSQL, while node
//! plugin and keeper are killed, the store goes away, local disks are full, and memory is short.
//!
//! These tests need root, /dev/fuse, /dev/loop-control, and Debian's packages e2fsprogs, fio, mount, postgresql and
//! util-linux; what is missing fails them by name. They run one after the other, since they measure stalls.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../csi/certificates.rs"]
mod certificates;
#[path = "../common/mod.rs"]
mod common;
mod crowd;
mod fio;
mod kills;
mod ledger;
mod load;
mod outages;
mod postgres;
mod pressure;
mod real_store;
mod restores;
#[path = "../csi/site.rs"]
mod site;
mod transactions;

use std::time::Duration;

/// One test at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Lets a load run: a crash must come at an arbitrary moment.
async fn for_a_while(number: usize) {
    // Spread over half a second, the same in every run.
    let pause_ms = 80 + (number as u64).wrapping_mul(0x9e37_79b9) % 400;
    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
}
