//! An fsync after each write of 4 KiB.

use holdfast_e2e::{
    Result,
    fio::{self, Load},
};

use super::{
    ground::{CEPH, DIRECTORY, Ground, number},
    line::{Goal, Line, Seen, Unit},
};

/// Puts that the store is asked for, one after the other, before and after what they are compared with: what a put takes
/// on one disk doubles and halves within seconds.
const PUTS: &str = "500";

pub const LINES: [Line; 3] = [
    Line {
        what: "4 KiB write with fsync, directory, `remote`",
        against: "one put to that store",
        unit: Unit::Seconds,
        goal: Goal::RatioAtMost(1.3),
        cause: "The write and the fsync are two requests that cross the loop device and FUSE before the put begins; and where ext4 has no journal, making the put's file steps over each inode that was deleted near it in the last minutes.",
    },
    Line {
        what: "4 KiB write with fsync, Ceph, `remote`",
        against: "one put to that store",
        unit: Unit::Seconds,
        goal: Goal::RatioAtMost(1.3),
        cause: "",
    },
    Line {
        what: "4 KiB writes with fsync, `journal`",
        against: "raw disk",
        unit: Unit::PerSecond,
        goal: Goal::AtLeast(2500.0),
        cause: "An fsync of the journal is one of the disk.",
    },
];

/// The three of them.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    Ok(vec![remote(ground, DIRECTORY)?, remote(ground, CEPH)?, journal(ground)?])
}

fn load(ground: &Ground) -> Load {
    Load { fsync: true, ..Load::random("randwrite", 1, 64, ground.scale.seconds) }
}

fn remote(ground: &mut Ground, pool: &str) -> Result<Seen> {
    if let Err(reason) = ground.has(pool) {
        return Ok(Seen::Nothing(reason));
    }
    let device = ground.device(pool, 64 << 20, &[])?;
    let before = put(ground, pool)?;
    let measured = fio::run(&device.target(), &load(ground))?;
    let after = put(ground, pool)?;
    ground.remove(&device)?;
    let ours = (measured.p50 + measured.sync_p50).as_secs_f64();
    Ok(Seen::Numbers(ours, Some((before + after) / 2.0)))
}

/// Seconds that half of the puts take at most.
fn put(ground: &Ground, pool: &str) -> Result<f64> {
    Ok(number(&ground.engine(&["put", &ground.pool_file(pool), PUTS])?, "put_p50_us")? / 1e6)
}

fn journal(ground: &mut Ground) -> Result<Seen> {
    let raw = fio::Target::path(&ground.raw_file(ground.scale.mib)?);
    let theirs = fio::run(&raw, &load(ground))?.iops;
    let device = match ground.device(DIRECTORY, 64 << 20, &[("durability", "journal")]) {
        Ok(device) => device,
        Err(error) => return Ok(Seen::Nothing(error.to_string())),
    };
    let ours = fio::run(&device.target(), &load(ground))?.iops;
    ground.remove(&device)?;
    Ok(Seen::Numbers(ours, Some(theirs)))
}
