//! `holdfast volume scrub` and `rebuild`: what is damaged, and a new volume of what is left.

use clap::Subcommand;
use holdfast_engine::ids::Handle;
use holdfast_engine::pool::Access;
use holdfast_engine::salvage::{Scope, Scrubbed};
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
struct Shown {
    handle: Handle,
    #[serde(flatten)]
    scrubbed: Scrubbed,
}

/// Does it.
pub async fn run(reach: &Reach, format: Format, command: Command) -> Result<(), CliError> {
    match command {
        Command::Scrub { volume, pool } => scrub(reach, format, &volume, pool.as_deref()).await,
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
        let tell = |seen: holdfast_engine::salvage::Scrubbing| bar.set(seen.read_bytes, seen.total_bytes);
        reached.host.scrub(&pool, volume, Scope::Volume, &tell).await?
    };
    let (sound, objects) = (scrubbed.is_sound(), scrubbed.damage.len());
    output::one(format, &Shown { handle, scrubbed })?;
    if sound { Ok(()) } else { Err(CliError::VolumeDamaged { handle, objects }) }
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
        let tell = |seen: holdfast_engine::salvage::Rebuilding| bar.set(seen.done_bytes, seen.total_bytes);
        reached.host.rebuild(&pool, volume, name, &tell).await?
    };
    output::one(format, &rebuilt)?;
    if rebuilt.is_whole() {
        return Ok(());
    }
    let (ranges, objects) = (rebuilt.lost.len(), rebuilt.unreadable.len());
    Err(CliError::NotWhole { handle: rebuilt.handle, ranges, objects })
}
