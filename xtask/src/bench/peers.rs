//! Others that put a block device or a file on this disk or on this Ceph, under the same loads.

mod mounted;

use holdfast_e2e::{
    Result,
    fio::{self, Load, Target},
};

use super::{
    ground::{CEPH, DIRECTORY, Ground},
    line::{Goal, Line, Seen, Unit},
};
use mounted::Mounted;

/// Somebody else: with what pool of ours they are compared, and how they start.
struct Peer {
    pool: &'static str,
    start: fn(&Ground) -> Result<Mounted>,
}

const PEERS: [Peer; 6] = [
    Peer { pool: DIRECTORY, start: mounted::loop_file },
    Peer { pool: CEPH, start: mounted::librbd },
    Peer { pool: CEPH, start: mounted::rbd_fuse },
    Peer { pool: CEPH, start: mounted::s3backer },
    Peer { pool: CEPH, start: mounted::juicefs },
    Peer { pool: CEPH, start: mounted::zerofs },
];

/// For each of [`PEERS`], for each load of [`loads`].
pub static LINES: [[Line; 3]; PEERS.len()] = [
    on_directory("loop device on a file of the raw disk"),
    on_ceph("RBD, by librbd in fio"),
    on_ceph("rbd-fuse"),
    on_ceph("s3backer"),
    on_ceph("JuiceFS"),
    on_ceph("ZeroFS"),
];

const fn on_directory(against: &'static str) -> [Line; 3] {
    [
        line("4 KiB random write, QD 32, directory", against, Unit::PerSecond),
        line("4 KiB writes with fsync, directory", against, Unit::PerSecond),
        line("1 MiB sequential write, directory", against, Unit::BytesPerSecond),
    ]
}

const fn on_ceph(against: &'static str) -> [Line; 3] {
    [
        line("4 KiB random write, QD 32, Ceph", against, Unit::PerSecond),
        line("4 KiB writes with fsync, Ceph", against, Unit::PerSecond),
        line("1 MiB sequential write, Ceph", against, Unit::BytesPerSecond),
    ]
}

const fn line(what: &'static str, against: &'static str, unit: Unit) -> Line {
    Line { what, against, unit, goal: Goal::None, cause: "" }
}

fn loads(ground: &Ground) -> [Load; 3] {
    let (mib, seconds) = (ground.scale.ceph_mib, ground.scale.seconds);
    [
        Load::random("randwrite", 32, mib, seconds),
        Load { fsync: true, ..Load::random("randwrite", 1, mib, seconds) },
        Load::sequential("write", mib),
    ]
}

/// What each load reaches on a target.
fn reached(target: &Target, loads: &[Load; 3]) -> Result<[f64; 3]> {
    let [random, sync, stream] = loads.each_ref().map(|load| fio::run(target, load));
    Ok([random?.iops, sync?.iops, stream?.bytes_per_s])
}

/// Ours once on each store, then everybody else.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    let loads = loads(ground);
    let mut ours = Vec::new();
    for pool in [DIRECTORY, CEPH] {
        if ground.has(pool).is_ok() {
            let device = ground.device(pool, ground.scale.ceph_mib << 20, &[])?;
            ours.push((pool, reached(&device.target(), &loads)?));
            ground.remove(&device)?;
        }
    }
    let mut seen = Vec::new();
    for Peer { pool, start } in &PEERS {
        let found = ground.has(pool).map_err(holdfast_e2e::Error::Machine).and_then(|()| {
            let peer = start(ground)?;
            reached(&peer.target, &loads)
        });
        let ours = ours.iter().find(|(of, _)| of == pool).map(|(_, numbers)| *numbers);
        match (found, ours) {
            (Err(holdfast_e2e::Error::Interrupted), _) => return Err(holdfast_e2e::Error::Interrupted),
            (Ok(theirs), Some(ours)) => {
                let both = ours.into_iter().zip(theirs);
                seen.extend(both.map(|(ours, theirs)| Seen::Numbers(ours, Some(theirs))));
            }
            (Err(error), _) => {
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                seen.extend(std::iter::repeat_n(Seen::Nothing(reason), loads.len()));
            }
            (Ok(_), None) => unreachable!("a store that a peer ran on has a pool of ours"),
        }
    }
    Ok(seen)
}
