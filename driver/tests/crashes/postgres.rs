//! A PostgreSQL server from Debian's package, on a directory of a volume.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to recover.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// The programs of PostgreSQL, and who runs them: it refuses to run as root.
#[derive(Clone)]
pub struct Programs {
    directory: PathBuf,
    user: u32,
    group: u32,
}

impl Programs {
    pub fn find() -> Self {
        let directory = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .map(|version| version.unwrap().path().join("bin"))
            .find(|bin| bin.join("initdb").exists())
            .expect("PostgreSQL is missing: apt-get install postgresql");
        let id = |which: &str| {
            let output = Command::new("id").args([which, "postgres"]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().parse().expect("the user postgres is missing")
        };
        Self { directory, user: id("-u"), group: id("-g") }
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.directory.join(name));
        command.uid(self.user).gid(self.group).current_dir("/").stdin(Stdio::null());
        command
    }

    /// Makes an empty cluster in `directory`, which is made.
    pub fn init(&self, directory: &Path) {
        fs::create_dir(directory).unwrap();
        self.give(directory);
        let mut init = self.command("initdb");
        init.args(["--username=postgres", "--auth=trust", "--data-checksums", "--pgdata"]).arg(directory);
        success("initdb", init.output().unwrap());
    }

    /// Makes `directory` the server's.
    pub fn give(&self, directory: &Path) {
        chown(directory, Some(self.user), Some(self.group)).unwrap();
    }
}

fn success(what: &str, output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what} ended with {}: {out}{err}", output.status);
    out.into_owned()
}

/// A server that runs. Dropping it kills it.
pub struct Server {
    programs: Programs,
    run: PathBuf,
    child: Child,
}

impl Server {
    /// Starts a server on the cluster in `data`, with its socket and log in `run`, and waits until it has recovered and
    /// answers.
    pub fn start(programs: &Programs, data: &Path, run: &Path) -> Self {
        fs::create_dir_all(run).unwrap();
        programs.give(run);
        let log = File::options().create(true).append(true).open(run.join("log")).unwrap();
        let child = programs
            .command("postgres")
            .arg("-D")
            .arg(data)
            .arg("-k")
            .arg(run)
            .args(["-c", "listen_addresses=", "-c", "shared_buffers=32MB", "-c", "max_wal_size=128MB"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { programs: programs.clone(), run: run.into(), child };
        let started = Instant::now();
        while !server.client("pg_isready").output().unwrap().status.success() {
            let log = || fs::read_to_string(run.join("log")).unwrap_or_default();
            assert!(server.child.try_wait().unwrap().is_none(), "PostgreSQL has ended: {}", log());
            assert!(started.elapsed() < READY_LIMIT, "PostgreSQL is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// A client program that talks to this server as its administrator.
    pub fn client(&self, name: &str) -> Command {
        let mut command = self.programs.command(name);
        command.arg("--host").arg(&self.run).arg("--username=postgres");
        command
    }

    /// The lines that a query answers, columns divided by `|`.
    pub fn query(&self, sql: &str) -> Vec<String> {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", sql]);
        success(sql, psql.output().unwrap()).lines().map(str::to_owned).collect()
    }

    /// Runs a client program to its end.
    pub fn run(&self, name: &str, arguments: &[&str]) {
        let mut command = self.client(name);
        success(name, command.args(arguments).output().unwrap());
    }

    /// Has it end in good order.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "PostgreSQL ended with {ended}");
    }

    /// SIGKILL. Its backends end when they see that it is gone.
    pub fn kill(&mut self) {
        // One that has ended by itself has been waited for, and is left alone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
