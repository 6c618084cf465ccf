//! What the operator's Jobs run: one action on an archive target each.
//!
//! # Guarantees
//! Every action may be repeated, also after it died half way: an archive run that is done finds its point, an expired
//! point is expired already. What a run that died uploaded is taken over by the next, and never half a
//! point.

mod error;
mod pools;
mod progress;
mod uninstall;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use holdfast_engine::archive::{ArchiveRun, PointSource, archive, expire, list_points, verify};
use holdfast_engine::ids::Handle;

pub use error::JobError;

/// One action on an archive target.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Copies a snapshot to the target.
    Archive(Box<ArchiveArgs>),
    /// Removes a point from the target.
    Expire(ExpireArgs),
    /// Reads points of the target and checks every block.
    Verify(VerifyArgs),
    /// Fails while a volume is attached somewhere: what `helm uninstall` asks first.
    MayUninstall,
}

/// Arguments of `holdfast job archive`.
#[derive(Debug, Args)]
pub struct ArchiveArgs {
    /// Directory with the pools' files.
    #[arg(long)]
    pools_dir: PathBuf,
    /// The target's file.
    #[arg(long)]
    target_file: PathBuf,
    /// Handle of the snapshot to copy.
    #[arg(long)]
    source_handle: Handle,
    /// Name of the point.
    #[arg(long)]
    point: String,
    /// Where the volume comes from, as JSON: clusterUID, namespace, claimName, volumeMode, fsType.
    #[arg(long, value_parser = parse_source)]
    source_json: PointSource,
    /// Time of the snapshot's contents, RFC 3339.
    #[arg(long)]
    point_in_time: jiff::Timestamp,
    /// When the point may be removed, RFC 3339.
    #[arg(long)]
    expires_at: Option<jiff::Timestamp>,
    /// Where to serve the progress.
    #[arg(long)]
    progress_addr: Option<std::net::SocketAddr>,
    /// Bytes per second at most; 0: no limit.
    #[arg(long, env = "HOLDFAST_BYTES_PER_SECOND", default_value_t = 0)]
    bytes_per_second: u64,
}

/// Arguments of `holdfast job expire`.
#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// The target's file.
    #[arg(long)]
    target_file: PathBuf,
    /// Handle of the point.
    #[arg(long)]
    handle: Handle,
}

/// Arguments of `holdfast job verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The target's file.
    #[arg(long)]
    target_file: PathBuf,
    /// Handle of one point; all points of the target without.
    #[arg(long)]
    handle: Option<Handle>,
    /// Where to serve the progress.
    #[arg(long)]
    progress_addr: Option<std::net::SocketAddr>,
}

fn parse_source(text: &str) -> Result<PointSource, serde_json::Error> {
    serde_json::from_str(text)
}

/// Runs a Job's action; its result goes to standard output, as JSON.
pub async fn run(command: JobCommand) -> Result<(), JobError> {
    match command {
        JobCommand::Archive(args) => run_archive(*args).await,
        JobCommand::Expire(ExpireArgs { target_file, handle }) => {
            let (host, target) = pools::open(None, &target_file, None).await?;
            expire(&host, &target, handle).await?;
            println!("{}", serde_json::json!({"expired": handle.to_string()}));
            Ok(())
        }
        JobCommand::Verify(args) => run_verify(args).await,
        JobCommand::MayUninstall => uninstall::may_uninstall().await,
    }
}

async fn run_archive(args: ArchiveArgs) -> Result<(), JobError> {
    let (host, target) =
        pools::open(Some(&args.pools_dir), &args.target_file, Some(args.source_handle)).await?;
    let run = ArchiveRun {
        source: args.source_handle,
        point: args.point,
        origin: args.source_json,
        point_in_time: args.point_in_time.to_string(),
        expires_at: args.expires_at.map(|at| at.to_string()),
        bytes_per_second: args.bytes_per_second,
    };
    let progress = progress::serve(args.progress_addr).await?;
    let handle = archive(&host, &target, &run, &progress).await?;
    let moved = *progress.borrow();
    let result = serde_json::json!({
        "handle": handle.to_string(),
        "changedBytes": moved.changed_bytes,
        "transferredBytes": moved.transferred_bytes,
    });
    println!("{result}");
    Ok(())
}

async fn run_verify(args: VerifyArgs) -> Result<(), JobError> {
    let (host, target) = pools::open(None, &args.target_file, None).await?;
    let progress = progress::serve(args.progress_addr).await?;
    let handles = match args.handle {
        Some(handle) => vec![handle],
        None => list_points(&host, &target).await?.into_iter().map(|point| point.handle).collect(),
    };
    let mut damaged = 0;
    for handle in handles {
        let verified = verify(&host, &target, handle, &progress).await?;
        damaged += usize::from(!verified.damaged.is_empty());
        let ranges: Vec<_> = verified
            .damaged
            .iter()
            .map(|damage| serde_json::json!({"offset": damage.offset, "len": damage.len, "reason": damage.reason}))
            .collect();
        let result = serde_json::json!({
            "handle": handle.to_string(),
            "goodBytes": verified.good_bytes,
            "damaged": ranges,
        });
        println!("{result}");
    }
    if damaged > 0 { Err(JobError::Damaged { points: damaged }) } else { Ok(()) }
}
