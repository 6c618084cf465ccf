//! Snapshots and clones of volumes of several sizes, asked for by CSI.

use std::time::Instant;

use holdfast_e2e::{
    Result,
    fio::{self, End, Load},
};

use super::{
    ground::{DIRECTORY, Ground},
    line::{Goal, Line, Seen, Unit},
};

const SIZES_GIB: [u64; 3] = [1, 100, 10_240];
/// What is written before a snapshot, and is in the store by then.
const WRITTEN_MIB: u64 = 64;

const fn snapshot(what: &'static str) -> Line {
    let cause = "A snapshot is one record and one checkpoint, and each is a put that the store syncs.";
    Line { what, against: "", unit: Unit::Seconds, goal: Goal::AtMost(0.1), cause }
}

const fn clone(what: &'static str) -> Line {
    let cause = "A clone is a name, a description, a pin and a record, each a put that the store syncs.";
    Line { what, against: "", unit: Unit::Seconds, goal: Goal::AtMost(0.2), cause }
}

pub const LINES: [Line; 6] = [
    snapshot("snapshot of an attached volume of 1 GiB"),
    clone("clone of a snapshot of 1 GiB"),
    snapshot("snapshot of an attached volume of 100 GiB"),
    clone("clone of a snapshot of 100 GiB"),
    snapshot("snapshot of an attached volume of 10 TiB"),
    clone("clone of a snapshot of 10 TiB"),
];

/// Each size. What was written is flushed before: the drain is the store's time, not the snapshot's.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for gib in SIZES_GIB {
        let device = ground.device(DIRECTORY, gib << 30, &[])?;
        let load = Load { end: End::Mib(WRITTEN_MIB), ..Load::random("randwrite", 8, gib << 10, 0) };
        fio::run(&device.target(), &load)?;
        let name = format!("snapshot-of-{}", device.volume());
        let begun = Instant::now();
        let snapshot = ground.client.snapshot(device.volume(), &name)?;
        seen.push(Seen::Numbers(begun.elapsed().as_secs_f64(), None));
        let begun = Instant::now();
        let clone = ground.client.create(
            &format!("clone-{name}"),
            gib << 30,
            &[("pool", DIRECTORY)],
            Some(&snapshot),
        )?;
        seen.push(Seen::Numbers(begun.elapsed().as_secs_f64(), None));
        ground.client.delete(&clone)?;
        ground.client.delete_snapshot(&snapshot)?;
        ground.remove(&device)?;
    }
    Ok(seen)
}
