//! `holdfast volume scrub`, `repair` and `rebuild`: what is damaged, putting it back, and a new volume of what is left.

use clap::Subcommand;
use holdfast_engine::ids::Handle;
use holdfast_engine::pool::Access;
use holdfast_engine::salvage::{Rebuilding, Repaired, Scope, Scrubbed, Scrubbing};
use serde::Serialize;

use crate::error::CliError;
use crate::output::{self, Format, progress};
use crate::reach::Reach;

/// What to do when a volume may be damaged.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read and check everything that a volume and its snapshots need; fails if anything is damaged
    Scrub {
        /// Its handle or its name
        volume: String,
        /// The pool that the name is looked for in
        #[arg(long)]
        pool: Option<String>,
    },
    /// Put damaged blocks of a volume back from an archived point that has the same; fails if some are left
    Repair {
        /// Its handle or its name; it must not be attached
        volume: String,
        /// The handle of a point that was archived of the volume
        #[arg(long, value_name = "HANDLE")]
        from: String,
        /// The pool that the name is looked for in
        #[arg(long)]
        pool: Option<String>,
    },
    /// Make a new volume of what is left of a damaged one, which stays as it is; fails if that is not everything
    Rebuild {
        /// The damaged volume's handle or name; it must not be attached
        volume: String,
        /// The new volume's name, in the same pool
        name: String,
        /// The pool that the damaged volume's name is looked for in
        #[arg(long)]
        pool: Option<String>,
    },
}

#[derive(Serialize)]
struct RepairShown {
    handle: Handle,
    #[serde(flatten)]
    repaired: Repaired,
}

#[derive(Serialize)]
struct ScrubShown {
    handle: Handle,
    #[serde(flatten)]
    scrubbed: Scrubbed,
}

/// Does it.
pub async fn run(reach: &Reach, format: Format, command: Command) -> Result<(), CliError> {
    match command {
        Command::Scrub { volume, pool } => scrub(reach, format, &volume, pool.as_deref()).await,
        Command::Repair { volume, from, pool } => {
            repair(reach, format, &volume, &from, pool.as_deref()).await
        }
        Command::Rebuild { volume, name, pool } => {
            rebuild(reach, format, &volume, &name, pool.as_deref()).await
        }
    }
}

async fn scrub(reach: &Reach, format: Format, text: &str, pool: Option<&str>) -> Result<(), CliError> {
    let reached = reach.open(Access::ReadOnly).await?;
    let (pool, volume) = reached.volume(text, pool).await?;
    let handle = Handle { pool: pool.id(), volume, snapshot: None };
    let scrubbed = {
        let bar = progress("reading");
        let tell = |seen: Scrubbing| bar.set(seen.read_bytes, seen.total_bytes);
        reached.host.scrub(&pool, volume, Scope::Volume, &tell).await?
    };
    let (sound, objects) = (scrubbed.is_sound(), scrubbed.damage.len());
    output::one(format, &ScrubShown { handle, scrubbed })?;
    if sound { Ok(()) } else { Err(CliError::VolumeDamaged { handle, objects }) }
}

async fn repair(
    reach: &Reach,
    format: Format,
    text: &str,
    from: &str,
    pool: Option<&str>,
) -> Result<(), CliError> {
    let reached = reach.open(Access::ReadWrite).await?;
    let (home, source, snapshot) = reached.snapshot(from)?;
    let source = Handle { pool: home.id(), volume: source, snapshot: Some(snapshot) };
    let (pool, volume) = reached.volume(text, pool).await?;
    let handle = Handle { pool: pool.id(), volume, snapshot: None };
    let repaired = {
        let bar = progress("reading");
        let tell = |seen: Scrubbing| bar.set(seen.read_bytes, seen.total_bytes);
        reached.host.repair(&pool, volume, source, &tell).await?
    };
    let ranges = repaired.left.len();
    output::one(format, &RepairShown { handle, repaired })?;
    if ranges == 0 { Ok(()) } else { Err(CliError::Damaged { handle, ranges }) }
}

async fn rebuild(
    reach: &Reach,
    format: Format,
    text: &str,
    name: &str,
    pool: Option<&str>,
) -> Result<(), CliError> {
    let reached = reach.open(Access::ReadWrite).await?;
    let (pool, volume) = reached.volume(text, pool).await?;
    let rebuilt = {
        let bar = progress("copying");
        let tell = |seen: Rebuilding| bar.set(seen.done_bytes, seen.total_bytes);
        reached.host.rebuild(&pool, volume, name, &tell).await?
    };
    output::one(format, &rebuilt)?;
    if rebuilt.is_whole() {
        return Ok(());
    }
    let (ranges, objects) = (rebuilt.lost.len(), rebuilt.unreadable.len());
    Err(CliError::NotWhole { handle: rebuilt.handle, ranges, objects })
}
