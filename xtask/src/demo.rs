//! `cargo xtask demo`: what Holdfast is for, on a real cluster, in one go.
//!
//! A database on a volume, protected by a policy; its node plugin killed under load; its namespace, snapshots and
//! volume destroyed; the database back from the archive before its data have been copied. Each step tells its time.

mod disaster;

use std::{process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use holdfast_e2e::{
    Error, Result,
    deployment::{self, Pool, Process},
    images::{self, Profile},
    interrupt,
    kind::{Cluster, POOL_ON_NODES},
    plugin::Plugin,
    report,
    stores::{Ceph, Location},
    workload::{Postgres, Protection},
};

const CLUSTER: &str = "holdfast-demo";
/// Where the database runs.
const NAMESPACE: &str = "shop";
/// The archive.
const TARGET: &str = "offsite";
const VOLUME: &str = "2Gi";
/// About 300 MB of tables.
const SCALE: u32 = 20;
const READY_LIMIT: Duration = Duration::from_secs(300);

/// How to show it.
#[derive(Args)]
pub struct Options {
    /// Leave the cluster running at the end
    #[arg(long)]
    keep: bool,
    /// Where volumes and archives are kept
    #[arg(long, value_enum, default_value = "file")]
    pool: Kind,
    /// Build unoptimised programs
    #[arg(long)]
    dev: bool,
}

/// A kind of pool.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A directory that the nodes share
    File,
    /// Ceph with its S3 gateway, on this machine
    S3,
}

/// The pool and the archive, and the store that they are in if it is not a directory.
struct Places {
    pool: Pool,
    archive: Location,
    store: Option<Ceph>,
}

/// Shows everything, and cleans up unless the cluster is to be kept.
pub fn run(options: &Options) -> Result<ExitCode> {
    println!("1. A cluster");
    let cluster = Cluster::up(CLUSTER)?;
    let places = places(options.pool, &cluster)?;
    let shown = show(&cluster, &places, if options.dev { Profile::Dev } else { Profile::Release });
    if let Err(error) = &shown
        && !matches!(error, Error::Interrupted)
    {
        eprintln!("{}", cluster.diagnosis());
    }
    if !options.keep {
        println!("7. Cleaning up");
        drop(cluster);
        return shown.map(|()| ExitCode::SUCCESS);
    }
    println!(
        "The cluster stays: `cargo xtask cluster shell {CLUSTER}`, `cargo xtask cluster down {CLUSTER}`"
    );
    cluster.keep();
    if places.store.is_some() {
        println!("Ceph runs until Ctrl-C");
        while interrupt::pause(Duration::from_secs(3600)).is_ok() {}
    }
    shown.map(|()| ExitCode::SUCCESS)
}

fn places(kind: Kind, cluster: &Cluster) -> Result<Places> {
    match kind {
        Kind::File => Ok(Places {
            pool: Pool::Directory,
            archive: Location::directory(&format!("{POOL_ON_NODES}/archive")),
            store: None,
        }),
        Kind::S3 => {
            let gateway = cluster.gateway()?;
            let ceph = report::step("Ceph with its S3 gateway", || Ceph::start_on(Some(gateway)))?;
            Ok(Places {
                pool: Pool::Store(ceph.location_for_nodes("volumes")),
                archive: ceph.location_for_nodes("archive"),
                store: Some(ceph),
            })
        }
    }
}

fn show(cluster: &Cluster, places: &Places, profile: Profile) -> Result<()> {
    println!("2. Holdfast");
    let postgres_image = images::postgres(cluster.engine())?;
    cluster.load(&[&postgres_image])?;
    deployment::install(cluster, profile, &places.pool)?;

    println!("3. A database");
    let database = Postgres::new(cluster, NAMESPACE);
    report::step("PostgreSQL on a volume of class holdfast", || {
        database.deploy(VOLUME)?;
        database.wait_until_ready(READY_LIMIT)
    })?;
    report::step(&format!("pgbench fills it (scale {SCALE})"), || database.fill(SCALE))?;

    println!("4. Protection");
    let protection = report::step("kubectl apply: an encrypted ArchiveTarget and a SnapshotPolicy", || {
        Protection::apply(cluster, NAMESPACE, "pg", TARGET, &places.archive)
    })?;
    let first = report::step("the first archived point", || protection.archived_after(""))?;
    report::step("pgbench changes a little", || database.bench(2, 5))?;
    let second = report::step("the second archived point", || protection.archived_after(&first.time))?;
    report::note(&format!("first archive: {first}"));
    report::note(&format!("second archive, only what changed: {second}"));
    show_status(cluster, &Plugin::build(profile)?)?;

    println!("5. The node plugin is killed");
    kill_under_load(cluster, &database)?;

    println!("6. Disaster");
    disaster::strike_and_restore(cluster, &database, &protection)
}

/// Prints what a user asks first: is it safe?
fn show_status(cluster: &Cluster, plugin: &Plugin) -> Result<()> {
    println!("\n$ kubectl holdfast status --namespace {NAMESPACE}");
    println!("{}", plugin.command(cluster).args(["status", "--namespace", NAMESPACE]).read()?);
    let arguments = ["get", "archivetargets,archivedsnapshots"];
    println!("\n$ kubectl {}\n{}\n", arguments.join(" "), cluster.kubectl().args(arguments).read()?);
    Ok(())
}

/// Sends SIGKILL to the node plugin while pgbench runs on its volume.
fn kill_under_load(cluster: &Cluster, database: &Postgres<'_>) -> Result<()> {
    let node = database.node()?;
    let bench = report::step("SIGKILL to the node plugin while pgbench runs", || {
        std::thread::scope(|scope| {
            let load = scope.spawn(|| database.bench(4, 20));
            interrupt::pause(Duration::from_secs(6))?;
            Process::NodePlugin.kill_running(cluster, &node)?;
            load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    report::note(&format!(
        "{} transactions, {:.0} a second, no error; the longest took {:.0} ms",
        bench.transactions,
        bench.per_second,
        bench.longest.as_secs_f64() * 1000.0
    ));
    deployment::wait_for_rollout(cluster, "daemonset/holdfast-node")
}
