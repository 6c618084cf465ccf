//! Random writes of 4 KiB.

use holdfast_e2e::{
    Result,
    fio::{self, End, Load, Target},
};

use super::{
    ground::{DIRECTORY, Ground},
    line::{Goal, Line, Seen, Unit},
};

pub const LINES: [Line; 2] = [
    Line {
        what: "4 KiB random write, QD 1",
        against: "raw disk",
        unit: Unit::PerSecond,
        goal: Goal::AtLeast(8000.0),
        cause: "Each write crosses the loop device, FUSE and two threads one after the other.",
    },
    Line {
        what: "4 KiB random write, QD 32",
        against: "raw disk",
        unit: Unit::PerSecond,
        goal: Goal::RatioAtLeast(0.5),
        cause: "All requests of a volume share the processors with the uploads of what they have written.",
    },
];

/// Writes that go on for longer than the dirty buffer can take them in.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    let (mib, seconds) = (ground.scale.mib, ground.scale.seconds);
    let raw = Target::path(&ground.raw_file(mib)?);
    let device = ground.filled(DIRECTORY, mib, &[])?;
    let mut seen = Vec::new();
    for depth in [1, 32] {
        let load = Load::random("randwrite", depth, mib, seconds);
        let theirs = fio::run(&raw, &load)?.iops;
        let ours = fio::run(&device.target(), &load)?.iops;
        seen.push(Seen::Numbers(ours, Some(theirs)));
    }
    ground.remove(&device)?;
    Ok(seen)
}

pub const REQUESTS: [Line; 1] = [Line {
    what: "puts for each 8 MiB of 4 KiB random writes",
    against: "",
    unit: Unit::Count,
    goal: Goal::AtMost(1.1),
    cause: "There is a record for each six segments; and checkpoints put packs of pages and roots.",
}];

/// Counts the puts of everything: segments, records, pages and roots.
pub fn requests(ground: &mut Ground) -> Result<Vec<Seen>> {
    let mib = ground.scale.mib;
    let device = ground.device(DIRECTORY, mib << 20, &[])?;
    let puts = |ground: &Ground| ground.site.counter("holdfast_store_requests_total", "kind=\"put\"");
    let before = puts(ground)?;
    let written = mib / 2;
    let load = Load { end: End::Mib(written), ..Load::random("randwrite", 32, mib, 0) };
    fio::run(&device.target(), &load)?;
    let puts = puts(ground)? - before;
    ground.remove(&device)?;
    Ok(vec![Seen::Numbers(puts as f64 / (written as f64 / 8.0), None)])
}
