//! Random reads of 4 KiB of what is in the node's cache.

use holdfast_e2e::{
    Result,
    fio::{self, Load, Target},
};

use super::{
    ground::{DIRECTORY, Ground},
    line::{Goal, Line, Seen, Unit},
};

/// Fits the cache in memory.
const RANGE_MIB: u64 = 64;

pub const LINES: [Line; 2] = [
    Line {
        what: "cached 4 KiB random read, QD 1",
        against: "raw disk",
        unit: Unit::PerSecond,
        goal: Goal::AtLeast(8000.0),
        cause: "Each read crosses the loop device, FUSE and two threads one after the other.",
    },
    Line {
        what: "cached 4 KiB random read, QD 32",
        against: "raw disk",
        unit: Unit::PerSecond,
        goal: Goal::AtLeast(50_000.0),
        cause: "The processors are busy: with fio, the loop device's workers, FUSE and the node plugin's threads.",
    },
];

/// Both depths.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    let raw = Target::path(&ground.raw_file(ground.scale.mib)?);
    let device = ground.filled(DIRECTORY, RANGE_MIB, &[])?;
    fio::run(&device.target(), &Load::sequential("read", RANGE_MIB))?;
    let mut seen = Vec::new();
    for depth in [1, 32] {
        let load = Load::random("randread", depth, RANGE_MIB, ground.scale.seconds);
        let theirs = fio::run(&raw, &load)?.iops;
        let ours = fio::run(&device.target(), &load)?.iops;
        seen.push(Seen::Numbers(ours, Some(theirs)));
    }
    ground.remove(&device)?;
    Ok(seen)
}
