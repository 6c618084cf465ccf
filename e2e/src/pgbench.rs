//! PostgreSQL in a directory of this machine, under pgbench.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Error, Result,
    error::Named,
    interrupt::{self, Seen},
    packages,
    process::{Cmd, Daemon},
};

/// Who runs the server: it refuses to run as root.
const USER: &str = "postgres";
const START_LIMIT: Duration = Duration::from_secs(60);
const FILL_LIMIT: Duration = Duration::from_secs(900);

/// A server over a directory. It ends with the value.
#[derive(Debug)]
pub struct Server {
    programs: PathBuf,
    socket: PathBuf,
    _server: Daemon,
    _scratch: tempfile::TempDir,
}

impl Server {
    /// Makes a database in `data`, an empty directory, and starts a server over it.
    pub fn start(data: &Path) -> Result<Self> {
        packages::ensure("measuring a database", &["postgresql"])?;
        let programs = programs()?;
        let scratch = tempfile::Builder::new()
            .prefix("holdfast-postgres-")
            .tempdir()
            .map_err(|source| Error::System { what: "making a temporary directory", source })?;
        let database = data.join("database");
        fs::create_dir(&database).named("create", &database)?;
        for directory in [&database, &scratch.path().to_owned()] {
            Cmd::new("chown").arg(USER).arg(directory).run()?;
        }
        as_user(&programs.join("initdb"))
            .arg("--no-sync")
            .args(["--auth=trust", "--pgdata"])
            .arg(&database)
            .run()?;
        let mut server = as_user(&programs.join("postgres"))
            .arg("-D")
            .arg(&database)
            .arg("-k")
            .arg(scratch.path())
            .args(["-c", "listen_addresses=", "-c", "shared_buffers=128MB", "-c", "max_wal_size=2GB"])
            .spawn("postgres", &scratch.path().join("log"))?;
        let socket = scratch.path().to_owned();
        interrupt::until("PostgreSQL answers", START_LIMIT, Duration::from_millis(100), || {
            server.check()?;
            let output = as_user(&programs.join("pg_isready")).arg("-h").arg(&socket).output()?;
            Ok(if output.status.success() { Seen::Reached(()) } else { Seen::NotYet(output.stdout) })
        })?;
        Ok(Server { programs, socket, _server: server, _scratch: scratch })
    }

    /// Makes pgbench's tables: about 15 MB for each unit of `scale`.
    pub fn fill(&self, scale: u32) -> Result<()> {
        self.pgbench()
            .args(["--initialize", "--quiet", &format!("--scale={scale}")])
            .limit(FILL_LIMIT)
            .run()?;
        as_user(&self.programs.join("psql"))
            .arg("-h")
            .arg(&self.socket)
            .args(["-c", "checkpoint", "postgres"])
            .limit(FILL_LIMIT)
            .run()?;
        Ok(())
    }

    /// Transactions a second of pgbench's own load.
    pub fn bench(&self, clients: u32, seconds: u32) -> Result<f64> {
        let output = self
            .pgbench()
            .args(["--no-vacuum", "--jobs=1", &format!("--client={clients}"), &format!("--time={seconds}")])
            .limit(Duration::from_secs(u64::from(seconds)) + FILL_LIMIT)
            .run()?;
        let tps = output.stdout.lines().find_map(|line| line.strip_prefix("tps = "));
        tps.and_then(|text| text.split(' ').next()?.parse().ok())
            .ok_or_else(|| Error::Answer { from: "pgbench".into(), answer: output.stdout.clone() })
    }

    fn pgbench(&self) -> Cmd {
        as_user(&self.programs.join("pgbench")).arg("-h").arg(&self.socket).arg("postgres")
    }
}

fn as_user(program: &Path) -> Cmd {
    // A directory that everybody may enter, or the programs complain about ours.
    Cmd::new("setpriv")
        .args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--init-groups"])
        .arg(program)
        .dir("/")
}

/// Where Debian keeps the programs of its newest version of PostgreSQL.
fn programs() -> Result<PathBuf> {
    let root = Path::new("/usr/lib/postgresql");
    let versions = fs::read_dir(root).named("list", root)?;
    let newest =
        versions.flatten().max_by_key(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    newest
        .map(|entry| entry.path().join("bin"))
        .ok_or_else(|| Error::Machine("no version of PostgreSQL is installed".into()))
}
