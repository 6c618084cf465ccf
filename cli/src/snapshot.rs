//! `holdfast snapshot`.

use std::collections::BTreeSet;

use clap::Subcommand;
use holdfast_api::ByteQuantity;
use holdfast_engine::control::ControlError;
use holdfast_engine::ids::{Handle, VolumeId};
use holdfast_engine::log::Control;
use holdfast_engine::pool::{Access, Pool};
use serde::Serialize;

use crate::error::{CliError, confirmed};
use crate::output::{self, Format, Row, working};
use crate::reach::{Reach, Reached};

/// Names asked for at once.
const PAGE: usize = 500;

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a snapshot of a volume that is not open anywhere, or find the one that has the name
    Create {
        /// The volume's handle or name
        volume: String,
        /// The snapshot's name, unique in its pool
        name: String,
        /// The pool that the volume's name is looked for in
        #[arg(long)]
        pool: Option<String>,
    },
    /// List snapshots
    List {
        /// The handle or name of a volume; all snapshots of the pool if none is given
        volume: Option<String>,
        /// The pool; may be left out if only one is configured
        #[arg(long)]
        pool: Option<String>,
    },
    /// Delete a snapshot of a volume that is not open anywhere
    Delete {
        /// Its handle
        handle: String,
        /// Confirm
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotRow {
    name: String,
    handle: Handle,
    taken: String,
    size_bytes: u64,
    /// Whether it can be read and cloned.
    ready: bool,
}

impl Row for SnapshotRow {
    const HEADS: &'static [&'static str] = &["NAME", "TAKEN", "SIZE", "READY", "HANDLE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.taken.clone(),
            ByteQuantity::from_bytes(self.size_bytes).to_string(),
            if self.ready { "yes" } else { "no" }.to_owned(),
            self.handle.to_string(),
        ]
    }
}

#[derive(Serialize)]
struct Named {
    handle: Handle,
}

/// Does it.
pub async fn run(reach: &Reach, format: Format, command: Command) -> Result<(), CliError> {
    match command {
        Command::Create { volume, name, pool } => {
            let reached = reach.open(Access::ReadWrite).await?;
            let (pool, id) = reached.volume(&volume, pool.as_deref()).await?;
            let snapshot = {
                let _working = working(format!("taking {name}"));
                reached.host.create_snapshot(&pool, id, &name, reached.deadline()).await?
            };
            let handle = Handle { pool: pool.id(), volume: id, snapshot: Some(snapshot) };
            output::done(format, &Named { handle }, &handle.to_string())
        }
        Command::List { volume: Some(volume), pool } => {
            let reached = reach.open(Access::ReadOnly).await?;
            let (pool, id) = reached.volume(&volume, pool.as_deref()).await?;
            output::list(format, &of_volume(&reached, &pool, id).await?)
        }
        Command::List { volume: None, pool } => {
            let reached = reach.open(Access::ReadOnly).await?;
            let pool = reached.pool(pool.as_deref())?;
            output::list(format, &of_pool(&reached, &pool).await?)
        }
        Command::Delete { handle, yes } => {
            confirmed(yes, "the snapshot will be deleted")?;
            let reached = reach.open(Access::ReadWrite).await?;
            let (pool, volume, snapshot) = reached.snapshot(&handle)?;
            if reached.is_archived_point(&pool, volume, snapshot).await? {
                let handle = Handle { pool: pool.id(), volume, snapshot: Some(snapshot) };
                return Err(CliError::ArchivedPoint { handle });
            }
            reached.host.delete_snapshot(&pool, volume, snapshot, reached.deadline()).await?;
            let named = Named { handle: Handle { pool: pool.id(), volume, snapshot: Some(snapshot) } };
            output::done(format, &named, &format!("{handle} is deleted"))
        }
    }
}

async fn of_volume(reached: &Reached, pool: &Pool, volume: VolumeId) -> Result<Vec<SnapshotRow>, CliError> {
    let (_, control) = reached.host.describe(pool, volume, reached.deadline()).await?;
    Ok(rows(pool, volume, &control))
}

/// All snapshots in a pool, also those of volumes that are deleted.
async fn of_pool(reached: &Reached, pool: &Pool) -> Result<Vec<SnapshotRow>, CliError> {
    let mut volumes = BTreeSet::new();
    let mut from = None;
    loop {
        let page = pool.list_snapshot_names(from.as_deref(), PAGE, reached.deadline()).await?;
        volumes.extend(page.items.into_iter().map(|named| named.volume));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let mut found = Vec::new();
    for volume in volumes {
        match of_volume(reached, pool, volume).await {
            Ok(rows) => found.extend(rows),
            // Its last snapshot has gone meanwhile.
            Err(CliError::Control(ControlError::NoSuchVolume { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by(|a, b| (&a.taken, &a.name).cmp(&(&b.taken, &b.name)));
    Ok(found)
}

fn rows(pool: &Pool, volume: VolumeId, control: &Control) -> Vec<SnapshotRow> {
    let live = control.snapshots.iter().filter(|(_, snapshot)| !snapshot.deleted);
    live.map(|(id, snapshot)| SnapshotRow {
        name: snapshot.name.clone(),
        handle: Handle { pool: pool.id(), volume, snapshot: Some(*id) },
        taken: output::time(snapshot.time_ms),
        size_bytes: snapshot.size_bytes,
        ready: snapshot.map.is_some(),
    })
    .collect()
}
