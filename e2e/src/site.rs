//! The driver on this machine without Kubernetes: a controller, a node plugin and a keeper on Unix sockets, and real
//! mounts.
//!
//! # Guarantees
//! When a [`Site`] is dropped its processes have ended, and nothing of it is mounted or attached any more.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    Error, Result, certificates,
    error::Named,
    interrupt::{self, Seen},
    packages,
    process::{Cmd, Daemon},
    stores::free_port,
};

const START_LIMIT: Duration = Duration::from_secs(30);
const CLEANUP_LIMIT: Duration = Duration::from_secs(30);
/// The name of the only node.
pub const NODE: &str = "node";

/// The driver's processes and their directories. The processes end before the directories go.
#[derive(Debug)]
pub struct Site {
    node: Option<Daemon>,
    _controller: Daemon,
    _keeper: Daemon,
    driver: PathBuf,
    node_arguments: Vec<String>,
    metrics_port: u16,
    scratch: TempDir,
}

impl Site {
    /// Starts the driver over these pools: names and pool files. A pool `file:///…` may lie anywhere. `node_arguments`
    /// are added to the node plugin's.
    pub fn start(driver: &Path, pools: &[(&str, String)], node_arguments: &[&str]) -> Result<Self> {
        packages::ensure("mounting volumes", &["e2fsprogs", "xfsprogs", "util-linux", "mount"])?;
        let scratch = tempfile::Builder::new()
            .prefix("holdfast-site-")
            .tempdir()
            .map_err(|source| Error::System { what: "making a temporary directory", source })?;
        let root = scratch.path().to_owned();
        // Who uses a volume may be another user, and must get there.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).named("open up", &root)?;
        for name in ["pools", "targets", "kubelet/plugins_registry", "state", "run", "log"] {
            let directory = root.join(name);
            fs::create_dir_all(&directory).named("create", &directory)?;
        }
        for (name, pool_file) in pools {
            let path = root.join("pools").join(format!("{name}.yaml"));
            fs::write(&path, pool_file).named("write", &path)?;
        }
        certificates::write(&root.join("tls-controller"), &root.join("tls-node"))?;

        let start = |role: &str, arguments: &[String]| -> Result<Daemon> {
            Cmd::new(driver).arg(role).args(arguments).spawn(role, &root.join("log").join(role))
        };
        let keeper_socket = root.join("run/keeper.sock");
        let mut keeper = start("keeper", &[format!("--socket={}", keeper_socket.display())])?;
        listens(&keeper_socket, &mut keeper)?;
        let shared = |name: &str, tls: &str, metrics_port: u16| {
            vec![
                format!("--endpoint=unix://{}", root.join(name).display()),
                format!("--pools-dir={}", root.join("pools").display()),
                format!("--targets-dir={}", root.join("targets").display()),
                format!("--tls-dir={}", root.join(tls).display()),
                "--health-addr=127.0.0.1:0".to_owned(),
                format!("--metrics-addr=127.0.0.1:{metrics_port}"),
            ]
        };
        let mut controller = start("controller", &shared("controller.sock", "tls-controller", 0))?;
        let metrics_port = free_port()?;
        let mut arguments = shared("node.sock", "tls-node", metrics_port);
        arguments.extend([
            format!("--node-id={NODE}"),
            format!("--node-addr=127.0.0.1:{}", free_port()?),
            format!("--kubelet-dir={}", root.join("kubelet").display()),
            format!("--state-dir={}", root.join("state").display()),
            format!("--keeper-socket={}", keeper_socket.display()),
        ]);
        arguments.extend(node_arguments.iter().map(|&argument| argument.to_owned()));
        listens(&root.join("controller.sock"), &mut controller)?;
        let mut site = Site {
            node: None,
            _controller: controller,
            _keeper: keeper,
            driver: driver.to_owned(),
            node_arguments: arguments,
            metrics_port,
            scratch,
        };
        site.start_node()?;
        Ok(site)
    }

    /// The directory of everything here; each caller names its own files in it.
    pub fn root(&self) -> &Path {
        self.scratch.path()
    }

    /// The controller's CSI socket.
    pub fn controller_socket(&self) -> PathBuf {
        self.root().join("controller.sock")
    }

    /// The node plugin's CSI socket.
    pub fn node_socket(&self) -> PathBuf {
        self.root().join("node.sock")
    }

    /// The node plugin's process id, while it runs.
    pub fn node_pid(&self) -> Option<u32> {
        self.node.as_ref().map(Daemon::pid)
    }

    /// SIGKILL for the node plugin.
    pub fn kill_node(&mut self) {
        if let Some(node) = self.node.take() {
            node.kill();
        }
    }

    /// Starts the node plugin, and waits until it answers.
    pub fn start_node(&mut self) -> Result<()> {
        let log = self.root().join("log/node");
        let node = Cmd::new(&self.driver).arg("node").args(&self.node_arguments).spawn("node", &log)?;
        listens(&self.node_socket(), self.node.insert(node))
    }

    /// The sum of a counter of the node plugin over all its series whose labels contain `labels`.
    pub fn counter(&self, name: &str, labels: &str) -> Result<u64> {
        let text = self.metrics()?;
        let mut sum = 0.0;
        for line in text.lines().filter(|line| line.starts_with(&format!("{name}{{"))) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            if series.contains(labels) {
                let answer = || Error::Answer { from: "the node's metrics".into(), answer: line.into() };
                sum += value.parse::<f64>().map_err(|_| answer())?;
            }
        }
        Ok(sum as u64)
    }

    fn metrics(&self) -> Result<String> {
        let failed = |source| Error::System { what: "reading the node's metrics", source };
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics_port)).map_err(failed)?;
        stream.set_read_timeout(Some(START_LIMIT)).map_err(failed)?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            .map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        Ok(answer)
    }

    /// Takes away what is still mounted or attached. It never waits for a volume: the connections are broken first.
    fn clean_up(&self) {
        let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return };
        let root = self.root().display().to_string();
        let mut mounts: Vec<(&str, bool)> = table
            .lines()
            .filter_map(|line| Some((line.split(' ').nth(4)?, line.contains(" - fuse.holdfast "))))
            .filter(|(place, _)| place.starts_with(&root))
            .collect();
        mounts.sort_by_key(|(_, is_fuse)| !is_fuse);
        for (place, is_fuse) in &mounts {
            // What is gone meanwhile needs no unmounting.
            let force: &[&str] = if *is_fuse { &["--force", "--lazy"] } else { &["--lazy"] };
            let _ = Cmd::new("umount").args(force).arg(place).limit(CLEANUP_LIMIT).cleanup().output();
        }
        let Ok(devices) = fs::read_dir("/sys/block") else { return };
        for device in devices.flatten() {
            let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            if backing.starts_with(&root) {
                let path = Path::new("/dev").join(device.file_name());
                let _ = Cmd::new("losetup").arg("--detach").arg(path).limit(CLEANUP_LIMIT).cleanup().output();
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.clean_up();
    }
}

/// Waits until a process accepts connections on its socket.
fn listens(socket: &Path, server: &mut Daemon) -> Result<()> {
    let what = format!("{} accepts connections", socket.display());
    interrupt::until(&what, START_LIMIT, Duration::from_millis(5), || {
        server.check()?;
        Ok(match std::os::unix::net::UnixStream::connect(socket) {
            Ok(_) => Seen::Reached(()),
            // The keeper speaks in packets: it listens, and refuses a stream.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error()) => {
                Seen::Reached(())
            }
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
}
