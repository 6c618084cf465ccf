//! `holdfast pool`.

use std::path::PathBuf;

use clap::Subcommand;
use holdfast_engine::pool::{Access, PoolEntry, PoolKind};
use holdfast_engine::store::parse_key;
use serde::Serialize;

use crate::error::{CliError, confirmed};
use crate::output::{self, Format, Row, working};
use crate::reach::Reach;

/// What to do with pools.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the configured pools, and say which cannot be used
    List,
    /// Test the stores of pools as a driver does before it uses them; makes pools that do not exist yet
    Check {
        /// The pool; all if none is named
        name: Option<String>,
    },
    /// Show a pool
    Show {
        /// The pool; may be left out if only one is configured
        name: Option<String>,
    },
    /// Let another key open an encrypted pool, beside the present one; no data is written again
    RotateKey {
        /// The pool
        name: String,
        /// A file with the new key: 32 bytes in base64 or hexadecimal
        #[arg(long, value_name = "FILE")]
        new_key_file: PathBuf,
    },
    /// Let only the newest key open an encrypted pool, once every host has it
    RetireKeys {
        /// The pool
        name: String,
        /// Confirm: hosts that still have an older key can no longer open the pool
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolRow {
    name: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<PoolEntry> for PoolRow {
    fn from(entry: PoolEntry) -> Self {
        let kind = match entry.kind {
            PoolKind::Pool => "pool",
            PoolKind::Target => "target",
        };
        let (open, error) = match entry.pool {
            Ok(pool) => (Some(pool), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self {
            name: entry.name,
            kind,
            id: open.as_ref().map(|pool| pool.id().to_string()),
            url: open.as_ref().map(|pool| pool.url()),
            encrypted: open.as_ref().map(|pool| pool.is_encrypted()),
            error,
        }
    }
}

impl Row for PoolRow {
    const HEADS: &'static [&'static str] = &["NAME", "KIND", "ID", "URL", "ENCRYPTED", "STATUS"];

    fn cells(&self) -> Vec<String> {
        let encrypted = self.encrypted.map(|yes| if yes { "yes" } else { "no" }.to_owned());
        vec![
            self.name.clone(),
            self.kind.to_owned(),
            self.id.clone().unwrap_or_default(),
            self.url.clone().unwrap_or_default(),
            encrypted.unwrap_or_default(),
            self.error.clone().unwrap_or_else(|| "ok".into()),
        ]
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolShown {
    name: String,
    id: String,
    url: String,
    encrypted: bool,
    nodes: Vec<String>,
}

#[derive(Serialize)]
struct Rotated {
    generation: u64,
}

/// Does it.
pub async fn run(reach: &Reach, format: Format, command: Command) -> Result<(), CliError> {
    match command {
        Command::List => {
            let entries = reach.open(Access::ReadOnly).await?.entries();
            output::list(format, &entries.into_iter().map(PoolRow::from).collect::<Vec<_>>())
        }
        Command::Check { name } => check(reach, format, name).await,
        Command::Show { name } => {
            let reached = reach.open(Access::ReadOnly).await?;
            let pool = reached.pool(name.as_deref())?;
            let shown = PoolShown {
                name: pool.name().to_owned(),
                id: pool.id().to_string(),
                url: pool.url(),
                encrypted: pool.is_encrypted(),
                nodes: pool.nodes(reached.deadline()).await?,
            };
            output::one(format, &shown)
        }
        Command::RotateKey { name, new_key_file } => {
            let text = std::fs::read_to_string(&new_key_file)
                .map_err(|source| CliError::File { path: new_key_file, source })?;
            let key = parse_key(&text)?;
            let reached = reach.open(Access::ReadWrite).await?;
            let generation = reached.pool(Some(&name))?.rotate_key(&key, reached.deadline()).await?;
            let next = "configure it everywhere, then run `holdfast pool retire-keys`";
            let sentence = format!("pool {name}: the new key opens it too (generation {generation}); {next}");
            output::done(format, &Rotated { generation }, &sentence)
        }
        Command::RetireKeys { name, yes } => {
            confirmed(yes, "hosts that still have an older key will no longer open the pool")?;
            let reached = reach.open(Access::ReadWrite).await?;
            reached.pool(Some(&name))?.retire_keys(reached.deadline()).await?;
            output::done(
                format,
                &serde_json::json!({}),
                &format!("pool {name}: only the newest key opens it now"),
            )
        }
    }
}

async fn check(reach: &Reach, format: Format, name: Option<String>) -> Result<(), CliError> {
    let entries = {
        let _working = working("testing stores");
        reach.open(Access::ReadWrite).await?.entries()
    };
    let wanted = |entry: &PoolEntry| name.as_ref().is_none_or(|name| *name == entry.name);
    let rows: Vec<PoolRow> = entries.into_iter().filter(wanted).map(PoolRow::from).collect();
    let failed = rows.iter().filter(|row| row.error.is_some()).count();
    output::list(format, &rows)?;
    match (rows.len(), failed) {
        (0, _) => Err(CliError::NoPools),
        (_, 0) => Ok(()),
        (checked, failed) => Err(CliError::UnfitPools { failed, checked }),
    }
}
