//! PostgreSQL under pgbench, on ext4 over a volume and on the raw disk's own file system.

use holdfast_e2e::{Result, csi::Shape, pgbench::Server};

use super::{
    engine::scratch,
    ground::{DIRECTORY, Ground},
    line::{Goal, Line, Seen, Unit},
};

const CLIENTS: u32 = 8;
const VOLUME_BYTES: u64 = 8 << 30;

pub const LINES: [Line; 2] = [
    Line {
        what: "pgbench, 8 clients, directory, `remote`",
        against: "ext4 on the raw disk",
        unit: Unit::PerSecond,
        goal: Goal::RatioAtLeast(0.4),
        cause: "A commit's fsync is one put; a put into a directory is a file, two syncs and a link.",
    },
    Line {
        what: "pgbench, 8 clients, directory, `journal`",
        against: "ext4 on the raw disk",
        unit: Unit::PerSecond,
        goal: Goal::RatioAtLeast(0.7),
        cause: "The uploads of the journal's tail share the disk and the processors with the database.",
    },
];

/// The raw disk and both durabilities.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    let theirs = {
        let directory = scratch()?;
        open_up(directory.path())?;
        load(ground, directory.path())?
    };
    [&[][..], &[("durability", "journal")][..]]
        .into_iter()
        .map(|parameters| {
            let volume = match ground.create(DIRECTORY, VOLUME_BYTES, parameters) {
                Ok(volume) => volume,
                Err(error) => return Ok(Seen::Nothing(error.to_string())),
            };
            let published = ground.client.publish(&volume, Shape::Filesystem)?;
            let ours = load(ground, &published.path)?;
            ground.client.unpublish(&published)?;
            ground.client.delete(&volume)?;
            Ok(Seen::Numbers(ours, Some(theirs)))
        })
        .collect()
}

fn load(ground: &Ground, directory: &std::path::Path) -> Result<f64> {
    let server = Server::start(directory)?;
    server.fill(ground.scale.pgbench)?;
    server.bench(CLIENTS, 2 * ground.scale.seconds)
}

/// The database's user has to get into it.
fn open_up(directory: &std::path::Path) -> Result<()> {
    holdfast_e2e::process::Cmd::new("chmod").arg("711").arg(directory).run().map(drop)
}
