//! `holdfast volume`.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::{Subcommand, ValueEnum};
use futures::{StreamExt, TryStreamExt, stream};
use holdfast_api::ByteQuantity;
use holdfast_engine::codec::Codec;
use holdfast_engine::control::{self, ControlError, CreateVolume, SourceSnapshot};
use holdfast_engine::ids::{Handle, VolumeId};
use holdfast_engine::log::{Control, GrantMode};
use holdfast_engine::pool::{Access, NamedVolume, Pool};
use serde::Serialize;

use crate::error::{CliError, confirmed};
use crate::output::{self, Format, Row, working};
use crate::reach::{Reach, Reached};
use crate::salvage;

/// Volumes whose logs are read at once.
const PARALLEL: usize = 8;
/// Names asked for at once.
const PAGE: usize = 500;

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a volume, or find the one that has the name
    Create {
        /// Its name, unique in its pool
        name: String,
        /// Its size: a number of bytes, or with a suffix such as Gi; a clone's default is its source's
        #[arg(long, required_unless_present = "from")]
        size: Option<ByteQuantity>,
        /// The pool; may be left out if only one is configured
        #[arg(long)]
        pool: Option<String>,
        /// How its data are compressed
        #[arg(long, value_enum, default_value_t)]
        codec: CodecName,
        /// The handle of a snapshot or an archived point to clone
        #[arg(long, value_name = "HANDLE")]
        from: Option<String>,
    },
    /// List volumes
    List {
        /// The pool; all if none is named
        #[arg(long)]
        pool: Option<String>,
    },
    /// Show a volume
    Show {
        /// Its handle or its name
        volume: String,
        /// The pool that the name is looked for in
        #[arg(long)]
        pool: Option<String>,
    },
    /// Grow a volume that is not open anywhere
    Resize {
        /// Its handle or its name
        volume: String,
        /// Its new size
        size: ByteQuantity,
        /// The pool that the name is looked for in
        #[arg(long)]
        pool: Option<String>,
    },
    /// Delete a volume that no node holds; its snapshots stay
    Delete {
        /// Its handle or its name
        volume: String,
        /// The pool that the name is looked for in
        #[arg(long)]
        pool: Option<String>,
        /// Confirm
        #[arg(long)]
        yes: bool,
    },
    /// Take a volume back from the node that holds it, dead or alive: what it has not written to the store is lost
    Release {
        /// Its handle or its name
        volume: String,
        /// The pool that the name is looked for in
        #[arg(long)]
        pool: Option<String>,
        /// Confirm
        #[arg(long)]
        yes: bool,
    },
    #[command(flatten)]
    Salvage(salvage::Command),
}

/// How data can be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CodecName {
    /// Fast
    #[default]
    Lz4,
    /// Smaller
    Zstd,
    /// Not at all
    Raw,
}

impl From<CodecName> for Codec {
    fn from(name: CodecName) -> Self {
        match name {
            CodecName::Lz4 => Self::Lz4,
            CodecName::Zstd => Self::Zstd,
            CodecName::Raw => Self::Raw,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeRow {
    name: String,
    pool: String,
    handle: Handle,
    size_bytes: u64,
    snapshots: usize,
    /// The nodes that hold it.
    nodes: Vec<String>,
    open: bool,
}

impl VolumeRow {
    fn new(pool: &Pool, named: NamedVolume, control: &Control) -> Self {
        Self {
            name: named.name,
            pool: pool.name().to_owned(),
            handle: handle(pool, named.volume),
            size_bytes: control.size_bytes,
            snapshots: control.snapshots.values().filter(|snapshot| !snapshot.deleted).count(),
            nodes: holders(control),
            open: control.session.is_some(),
        }
    }
}

impl Row for VolumeRow {
    const HEADS: &'static [&'static str] = &["NAME", "POOL", "SIZE", "SNAPSHOTS", "NODE", "HANDLE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.pool.clone(),
            ByteQuantity::from_bytes(self.size_bytes).to_string(),
            self.snapshots.to_string(),
            self.nodes.join(","),
            self.handle.to_string(),
        ]
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeShown {
    #[serde(flatten)]
    row: VolumeRow,
    created: String,
    codec: Codec,
    encrypted: bool,
    /// What it was cloned from.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Handle>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<String, String>,
    deleted: bool,
}

#[derive(Serialize)]
struct Named {
    handle: Handle,
}

fn handle(pool: &Pool, volume: VolumeId) -> Handle {
    Handle { pool: pool.id(), volume, snapshot: None }
}

fn holders(control: &Control) -> Vec<String> {
    let writer = control.grant.iter().filter(|grant| grant.mode == GrantMode::ReadWrite);
    let readers = control.readers.iter().map(|reader| reader.node.clone());
    writer.map(|grant| grant.node.clone()).chain(readers).collect()
}

/// Does it.
pub async fn run(reach: &Reach, format: Format, command: Command) -> Result<(), CliError> {
    match command {
        Command::Create { name, size, pool, codec, from } => {
            let reached = reach.open(Access::ReadWrite).await?;
            create(&reached, format, name, size, pool, codec, from).await
        }
        Command::List { pool } => {
            let reached = reach.open(Access::ReadOnly).await?;
            output::list(format, &rows(&reached, pool.as_deref()).await?)
        }
        Command::Show { volume, pool } => {
            let reached = reach.open(Access::ReadOnly).await?;
            show(&reached, format, &volume, pool.as_deref()).await
        }
        Command::Resize { volume, size, pool } => {
            let reached = reach.open(Access::ReadWrite).await?;
            let (pool, id) = reached.volume(&volume, pool.as_deref()).await?;
            let (log, _) = reached.host.describe(&pool, id, reached.deadline()).await?;
            control::resize_detached(&log, size.bytes(), reached.deadline()).await?;
            output::done(format, &Named { handle: handle(&pool, id) }, &format!("{volume} has {size} now"))
        }
        Command::Delete { volume, pool, yes } => {
            confirmed(yes, "the volume and its data will be deleted")?;
            let reached = reach.open(Access::ReadWrite).await?;
            let (pool, id) = reached.volume(&volume, pool.as_deref()).await?;
            reached.host.delete_volume(&pool, id, reached.deadline()).await?;
            output::done(format, &Named { handle: handle(&pool, id) }, &format!("{volume} is deleted"))
        }
        Command::Release { volume, pool, yes } => {
            confirmed(
                yes,
                "the node that holds the volume will get I/O errors and lose what it has not flushed",
            )?;
            let reached = reach.open(Access::ReadWrite).await?;
            let (pool, id) = reached.volume(&volume, pool.as_deref()).await?;
            let (log, _) = reached.host.describe(&pool, id, reached.deadline()).await?;
            control::release(&log, reached.deadline()).await?;
            output::done(format, &Named { handle: handle(&pool, id) }, &format!("no node holds {volume} now"))
        }
        Command::Salvage(command) => salvage::run(reach, format, command).await,
    }
}

async fn create(
    reached: &Reached,
    format: Format,
    name: String,
    size: Option<ByteQuantity>,
    pool: Option<String>,
    codec: CodecName,
    from: Option<String>,
) -> Result<(), CliError> {
    let source = match from {
        Some(text) => {
            let (pool, volume, snapshot) = reached.snapshot(&text)?;
            Some(SourceSnapshot { pool, volume, snapshot })
        }
        None => None,
    };
    let size_bytes = match (size, &source) {
        (Some(size), _) => size.bytes(),
        (None, Some(source)) => {
            let (_, control) = reached.host.describe(&source.pool, source.volume, reached.deadline()).await?;
            let (volume, snapshot) = (source.volume, source.snapshot);
            let found = control.live_snapshot(snapshot);
            found.map_err(|_| ControlError::NoSuchSnapshot { volume, snapshot })?.size_bytes
        }
        (None, None) => return Err(CliError::NoSize),
    };
    let pool = reached.pool(pool.as_deref())?;
    let new = CreateVolume { name, size_bytes, source, codec: codec.into(), parameters: BTreeMap::new() };
    let volume = {
        let _working = working(format!("creating {}", new.name));
        reached.host.create_volume(&pool, &new, reached.deadline()).await?
    };
    let handle = handle(&pool, volume);
    output::done(format, &Named { handle }, &handle.to_string())
}

async fn rows(reached: &Reached, pool: Option<&str>) -> Result<Vec<VolumeRow>, CliError> {
    let pools: Vec<Arc<Pool>> = match pool {
        Some(_) => vec![reached.pool(pool)?],
        None => reached.entries().into_iter().map(|entry| entry.pool).collect::<Result<_, _>>()?,
    };
    let mut rows = Vec::new();
    for pool in pools {
        let mut from = None;
        loop {
            let page = pool.list_volumes(from.as_deref(), PAGE, reached.deadline()).await?;
            let described = stream::iter(page.items).map(|named| describe(reached, &pool, named));
            let described: Vec<Option<VolumeRow>> = described.buffered(PARALLEL).try_collect().await?;
            rows.extend(described.into_iter().flatten());
            from = page.next;
            if from.is_none() {
                break;
            }
        }
    }
    rows.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
    Ok(rows)
}

/// A row of the list; none for a name whose volume is only just being made, or is gone.
async fn describe(reached: &Reached, pool: &Pool, named: NamedVolume) -> Result<Option<VolumeRow>, CliError> {
    match reached.host.describe(pool, named.volume, reached.deadline()).await {
        Ok((_, control)) if control.dead => Ok(None),
        Ok((_, control)) => Ok(Some(VolumeRow::new(pool, named, &control))),
        Err(ControlError::NoSuchVolume { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn show(reached: &Reached, format: Format, text: &str, pool: Option<&str>) -> Result<(), CliError> {
    let (pool, volume) = reached.volume(text, pool).await?;
    let (_, control) = reached.host.describe(&pool, volume, reached.deadline()).await?;
    let json = pool.volume_json(volume, reached.deadline()).await?;
    let parameters = pool.parameters(&json, reached.deadline()).await?;
    let shown = VolumeShown {
        row: VolumeRow::new(&pool, NamedVolume { name: json.name, volume }, &control),
        created: output::time(json.created_ms),
        codec: json.codec,
        encrypted: pool.is_encrypted(),
        source: json.parents.first().map(|parent| Handle {
            pool: parent.pool,
            volume: parent.volume,
            snapshot: Some(parent.snapshot),
        }),
        parameters,
        deleted: control.dead,
    };
    output::one(format, &shown)
}
