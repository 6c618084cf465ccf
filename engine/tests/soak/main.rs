//! How much room a volume takes, and how much is written for it, after a long time of random overwrites with snapshots
//! held: everything runs as it does on a node, on a store that counts, in virtual time.
//!
//! `HOLDFAST_SOAK_MIB` sets the volume's size (32 if absent). The larger the volume, the more its segments and maps are
//! like those of real ones: `cargo xtask simulate --soak`. Each test prints what it has measured.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod flushes;
mod model;
mod scale;
mod store;
#[path = "../../src/testing.rs"]
mod testing;
mod volume;

// Where the shared file looks for it.
use holdfast_engine::ids;
use model::Pattern;
use volume::{Measured, Soak};

/// What a soak may take, in thousandths: room, of what the head and the snapshots need; and bytes written to the store,
/// of what was written to the volume.
struct Bounds {
    space: u64,
    writes: u64,
}

/// The goals.
const GOALS: Bounds = Bounds { space: 1250, writes: 1500 };

async fn soak(pattern: Pattern, held: usize, bounds: Bounds) {
    let Measured { space, writes, requests } = Soak::new(pattern, held).await.run().await;
    println!(
        "{pattern:?} overwrites, {held} snapshots held: {}.{:03} x what is needed, {}.{:03} x what was written, \
         {requests} requests per MiB written",
        space / 1000,
        space % 1000,
        writes / 1000,
        writes % 1000,
    );
    assert!(space <= bounds.space, "{space} thousandths of what is needed are stored");
    assert!(writes <= bounds.writes, "{writes} thousandths of what was written went to the store");
}

#[tokio::test(start_paused = true)]
async fn skewed_overwrites() {
    soak(Pattern::Skewed, 0, GOALS).await;
}

#[tokio::test(start_paused = true)]
async fn skewed_overwrites_with_10_snapshots() {
    soak(Pattern::Skewed, 10, GOALS).await;
}

#[tokio::test(start_paused = true)]
async fn skewed_overwrites_with_100_snapshots() {
    soak(Pattern::Skewed, 100, GOALS).await;
}

#[tokio::test(start_paused = true)]
async fn uniform_overwrites_with_10_snapshots() {
    soak(Pattern::Uniform, 10, GOALS).await;
}

#[tokio::test(start_paused = true)]
async fn uniform_overwrites_with_100_snapshots() {
    soak(Pattern::Uniform, 100, GOALS).await;
}

/// Where every block is as likely to be overwritten as any other and no snapshot is held, no log can do both: segments
/// that are rewritten when a part `u` of them is live write `1 / (1 - u)`, and take `ln(1 / u) / (1 - u)` of what is
/// live. At 1.25 that is 2.7; the room is the one that is kept.
#[tokio::test(start_paused = true)]
async fn uniform_overwrites() {
    soak(Pattern::Uniform, 0, Bounds { writes: 3500, ..GOALS }).await;
}
