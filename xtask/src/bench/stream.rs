//! Sequential writes that end in the store, and reads that come from it.

use holdfast_e2e::{
    Result,
    fio::{self, Load},
};

use super::{
    ground::{self, CEPH, DIRECTORY, Ground, number},
    line::{Goal, Line, Seen, Unit},
};

/// Puts and gets that the store is given at once.
const PARALLEL: &str = "8";
const SEGMENT_MIB: u64 = 8;

const WRITE_CAUSE: &str = "Each byte is made by fio, copied from the loop device to FUSE, into the dirty buffer and into \
                           its segment, and checked twice, by the processors that the puts beside have for \
                           themselves.";
const READ_CAUSE: &str = "What is read ahead is copied into the cache, and from there by FUSE.";

pub const LINES: [Line; 4] = [
    Line {
        what: "sequential write, directory",
        against: "parallel puts of 8 MiB",
        unit: Unit::BytesPerSecond,
        goal: Goal::RatioAtLeast(0.9),
        cause: WRITE_CAUSE,
    },
    Line {
        what: "sequential read, directory",
        against: "parallel gets of 8 MiB",
        unit: Unit::BytesPerSecond,
        goal: Goal::RatioAtLeast(0.9),
        cause: READ_CAUSE,
    },
    Line {
        what: "sequential write, Ceph",
        against: "parallel puts of 8 MiB",
        unit: Unit::BytesPerSecond,
        goal: Goal::RatioAtLeast(0.9),
        cause: WRITE_CAUSE,
    },
    Line {
        what: "sequential read, Ceph",
        against: "parallel gets of 8 MiB",
        unit: Unit::BytesPerSecond,
        goal: Goal::RatioAtLeast(0.9),
        cause: READ_CAUSE,
    },
];

/// Both stores.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for (pool, mib) in [(DIRECTORY, ground.scale.mib), (CEPH, ground.scale.ceph_mib)] {
        if let Err(reason) = ground.has(pool) {
            seen.extend([Seen::Nothing(reason.clone()), Seen::Nothing(reason)]);
            continue;
        }
        let objects = (mib / SEGMENT_MIB).to_string();
        let raw = ground.engine(&["bulk", &ground.pool_file(pool), &objects, PARALLEL])?;
        let (written, read) = through_a_device(ground, pool, mib)?;
        seen.push(Seen::Numbers(written, Some(number(&raw, "put_bytes_per_s")?)));
        seen.push(Seen::Numbers(read, Some(number(&raw, "get_bytes_per_s")?)));
    }
    Ok(seen)
}

fn through_a_device(ground: &mut Ground, pool: &str, mib: u64) -> Result<(f64, f64)> {
    let device = ground.device(pool, mib << 20, &[])?;
    let written = fio::run(&device.target(), &Load::sequential("write", mib))?.bytes_per_s;
    ground.cool()?;
    let read = fio::run(&device.target(), &Load::sequential("read", mib))?.bytes_per_s;
    ground.remove(&device)?;
    Ok((written, read))
}

pub const SEALED: [Line; 2] = [
    Line {
        what: "sequential write with LZ4 and AES",
        against: "with checksums only",
        unit: Unit::BytesPerSecond,
        goal: Goal::RatioAtLeast(0.75),
        cause: "Compressing and sealing take time of the processors that the copies of the stream need too.",
    },
    Line {
        what: "sequential read with LZ4 and AES",
        against: "with checksums only",
        unit: Unit::BytesPerSecond,
        goal: Goal::RatioAtLeast(0.75),
        cause: "",
    },
];

/// The same stream into two pools in one directory: encrypted and compressed, and neither.
pub fn sealed(ground: &mut Ground) -> Result<Vec<Seen>> {
    let mib = ground.scale.mib;
    let mut rates = Vec::new();
    for (pool, codec) in [(DIRECTORY, "raw"), (ground::SEALED, "lz4")] {
        let device = ground.device(pool, mib << 20, &[("codec", codec)])?;
        let written = fio::run(&device.target(), &Load::sequential("write", mib))?.bytes_per_s;
        ground.cool()?;
        let read = fio::run(&device.target(), &Load::sequential("read", mib))?.bytes_per_s;
        ground.remove(&device)?;
        rates.push((written, read));
    }
    let [plain, sealed] = [rates[0], rates[1]];
    Ok(vec![Seen::Numbers(sealed.0, Some(plain.0)), Seen::Numbers(sealed.1, Some(plain.1))])
}
