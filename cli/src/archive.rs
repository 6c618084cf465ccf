//! `holdfast archive`: the points in archive targets. A point is restored by `holdfast volume create --from`.

use clap::Subcommand;
use holdfast_api::ByteQuantity;
use holdfast_engine::archive::{Point, Progress, expire, list_points, verify};
use holdfast_engine::ids::Handle;
use holdfast_engine::pool::Access;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::sync::watch;

use crate::error::{CliError, confirmed};
use crate::output::{self, Format, Row};
use crate::reach::{Reach, Reached};

/// What to do with archived points.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the points in a target, of every cluster
    List {
        /// The target; may be left out if only one pool is configured
        target: Option<String>,
    },
    /// Read every block of a point or a snapshot and check it
    Verify {
        /// Its handle
        handle: String,
    },
    /// Delete a point before its time; the newest of its volume stays
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
struct PointRow {
    name: String,
    handle: Handle,
    namespace: String,
    claim_name: String,
    #[serde(rename = "clusterUID")]
    cluster_uid: String,
    point_in_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    size_bytes: u64,
    changed_bytes: u64,
}

impl From<Point> for PointRow {
    fn from(point: Point) -> Self {
        let source = point.meta.source;
        Self {
            name: point.name,
            handle: point.handle,
            namespace: source.namespace,
            claim_name: source.claim_name,
            cluster_uid: source.cluster_uid,
            point_in_time: point.meta.point_in_time,
            expires_at: point.meta.expires_at,
            size_bytes: point.size_bytes,
            changed_bytes: point.meta.changed_bytes,
        }
    }
}

impl Row for PointRow {
    const HEADS: &'static [&'static str] =
        &["NAME", "NAMESPACE", "CLAIM", "TIME", "SIZE", "CHANGED", "EXPIRES", "HANDLE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.namespace.clone(),
            self.claim_name.clone(),
            self.point_in_time.clone(),
            ByteQuantity::from_bytes(self.size_bytes).to_string(),
            indicatif::BinaryBytes(self.changed_bytes).to_string(),
            self.expires_at.clone().unwrap_or_else(|| "never".into()),
            self.handle.to_string(),
        ]
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerifiedShown {
    handle: Handle,
    good_bytes: u64,
    damaged: Vec<DamageShown>,
}

#[derive(Serialize)]
struct Deleted {
    handle: Handle,
}

#[derive(Serialize)]
struct DamageShown {
    offset: u64,
    len: u64,
    reason: String,
}

/// Does it.
pub async fn run(reach: &Reach, format: Format, command: Command) -> Result<(), CliError> {
    match command {
        Command::List { target } => {
            let reached = reach.open(Access::ReadOnly).await?;
            let target = reached.pool(target.as_deref())?;
            let points = list_points(&reached.host, &target).await?;
            output::list(format, &points.into_iter().map(PointRow::from).collect::<Vec<_>>())
        }
        Command::Verify { handle } => check(&reach.open(Access::ReadOnly).await?, format, &handle).await,
        Command::Delete { handle, yes } => {
            confirmed(yes, "the point will be deleted")?;
            delete(&reach.open(Access::ReadWrite).await?, format, &handle).await
        }
    }
}

async fn delete(reached: &Reached, format: Format, text: &str) -> Result<(), CliError> {
    let (pool, volume, snapshot) = reached.snapshot(text)?;
    let handle = Handle { pool: pool.id(), volume, snapshot: Some(snapshot) };
    if !reached.is_archived_point(&pool, volume, snapshot).await? {
        return Err(CliError::NoArchivedPoint { handle });
    }
    expire(&reached.host, &pool, handle).await?;
    output::done(format, &Deleted { handle }, &format!("{handle} is deleted"))
}

async fn check(reached: &Reached, format: Format, text: &str) -> Result<(), CliError> {
    let (pool, volume, snapshot) = reached.snapshot(text)?;
    let handle = Handle { pool: pool.id(), volume, snapshot: Some(snapshot) };
    let (progress, seen) = watch::channel(Progress::default());
    let (verified, ()) = tokio::join!(
        async {
            let verified = verify(&reached.host, &pool, handle, &progress).await;
            // The end of the sender is the end of the bar.
            drop(progress);
            verified
        },
        follow(seen)
    );
    let verified = verified?;
    let damage = |found: holdfast_engine::archive::Damage| DamageShown {
        offset: found.offset,
        len: found.len,
        reason: found.reason,
    };
    let damaged: Vec<DamageShown> = verified.damaged.into_iter().map(damage).collect();
    let ranges = damaged.len();
    output::one(format, &VerifiedShown { handle, good_bytes: verified.good_bytes, damaged })?;
    if ranges == 0 { Ok(()) } else { Err(CliError::Damaged { handle, ranges }) }
}

/// Shows on the terminal how much has been read, until the sender is gone.
async fn follow(mut progress: watch::Receiver<Progress>) {
    let style = ProgressStyle::with_template("{spinner} {binary_bytes} verified, {binary_bytes_per_sec}")
        .expect("the template is valid: it never changes");
    let bar = ProgressBar::new_spinner().with_style(style);
    while progress.changed().await.is_ok() {
        bar.set_position(progress.borrow_and_update().transferred_bytes);
    }
    bar.finish_and_clear();
}
