//! Ceph with its S3 gateway: one monitor, one manager, three OSDs that replicate, one RGW; no systemd, no
//! containers, from Debian's packages.
//!
//! The OSDs keep their data in sparse files of the store's temporary directory.

mod configuration;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    Error, Result,
    error::Named,
    interrupt::{self, Seen},
    packages,
    process::{Cmd, Daemon},
};

use super::{BUCKET, Location, Store, free_port, http, scratch};
use configuration::Configuration;

const KEY: &str = "test";
const SECRET: &str = "testtest";
const OSDS: usize = 3;
const MONITOR_LIMIT: Duration = Duration::from_secs(60);
const HEALTHY_LIMIT: Duration = Duration::from_secs(180);
const GATEWAY_LIMIT: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const PACKAGES: [&str; 5] = ["ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "ceph-common"];

/// A running Ceph cluster. Its fields end in this order: first who asks, last who answers.
#[derive(Debug)]
pub struct Ceph {
    gateway: Option<Daemon>,
    osds: [Option<Daemon>; OSDS],
    _manager: Daemon,
    _monitor: Daemon,
    port: u16,
    also_on: Option<IpAddr>,
    scratch: TempDir,
}

impl Ceph {
    /// Starts one that only this machine reaches.
    pub fn start() -> Result<Self> {
        Ceph::start_on(None)
    }

    /// Starts one whose gateway listens on a further address of this machine too: that by which the nodes of a
    /// running cluster reach it.
    pub fn start_on(also_on: Option<IpAddr>) -> Result<Self> {
        packages::ensure("Ceph", &PACKAGES)?;
        let scratch = scratch()?;
        let root = &scratch.path().to_path_buf();
        for name in ["mon", "mgr", "osd0", "osd1", "osd2", "rgw", "log", "run"] {
            let directory = root.join(name);
            fs::create_dir(&directory).named("create", &directory)?;
        }
        let port = free_port()?;
        let configuration = Configuration {
            root,
            cluster: uuid()?,
            monitor_port: free_port()?,
            gateway_port: port,
            gateway_addresses: [IpAddr::V4(Ipv4Addr::LOCALHOST)].into_iter().chain(also_on).collect(),
        };
        let file = root.join("ceph.conf");
        fs::write(&file, configuration.to_string()).named("write", &file)?;

        make_keys(root)?;
        let monitor = start_monitor(root, &configuration)?;
        let manager = daemon(root, "ceph-mgr", "mgr", &["-i", "x"])?;
        let osds = start_osds(root)?.map(Some);
        wait_until_healthy(root)?;
        let mut ceph =
            Ceph { gateway: None, osds, _manager: manager, _monitor: monitor, port, also_on, scratch };
        ceph.start_gateway()?;
        program("radosgw-admin", root)
            .args(["user", "create", "--uid=test", "--display-name=test"])
            .args([format!("--access-key={KEY}"), format!("--secret-key={SECRET}")])
            .run()?;
        http::create_bucket(&ceph.endpoint(IpAddr::V4(Ipv4Addr::LOCALHOST)), BUCKET, KEY, SECRET)?;
        Ok(ceph)
    }

    /// Where a pool can be, as the nodes of the cluster see it. Like [`Store::location`] without such an address.
    pub fn location_for_nodes(&self, prefix: &str) -> Location {
        let address = self.also_on.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Location::s3(self.endpoint(address), prefix, KEY, SECRET)
    }

    /// The address of the gateway, and the two halves of the credentials of its only user.
    pub fn gateway(&self) -> (String, &'static str, &'static str) {
        (self.endpoint(IpAddr::V4(Ipv4Addr::LOCALHOST)), KEY, SECRET)
    }

    /// What Ceph's own clients read to find the cluster and their key.
    pub fn configuration(&self) -> PathBuf {
        self.scratch.path().join("ceph.conf")
    }

    /// Makes a pool of block devices with one image of this size, which takes no space yet. A pool of that name goes,
    /// with everything in it.
    pub fn recreate_image(&self, pool: &str, image: &str, size_bytes: u64) -> Result<()> {
        let root = self.scratch.path();
        let remove = ["osd", "pool", "rm", pool, pool, "--yes-i-really-really-mean-it"];
        ceph(root).args(remove).run()?;
        ceph(root).args(["osd", "pool", "create", pool, "8"]).run()?;
        program("rbd", root).args(["pool", "init", pool]).run()?;
        let size = format!("{size_bytes}B");
        program("rbd", root).args(["create", "--size", &size, &format!("{pool}/{image}")]).run()?;
        Ok(())
    }

    /// Kills an OSD.
    pub fn kill_osd(&mut self, osd: usize) {
        if let Some(daemon) = self.osds[osd].take() {
            daemon.kill();
        }
    }

    /// Starts a killed OSD again.
    pub fn start_osd(&mut self, osd: usize) -> Result<()> {
        self.osds[osd] = Some(start_osd(self.scratch.path(), osd)?);
        Ok(())
    }

    /// Stops an OSD, as a machine that hangs: its connections stay and nothing answers.
    pub fn freeze_osd(&self, osd: usize) -> Result<()> {
        self.osds[osd].as_ref().map_or(Ok(()), |daemon| daemon.signal(Signal::STOP))
    }

    /// Lets a frozen OSD go on.
    pub fn thaw_osd(&self, osd: usize) -> Result<()> {
        self.osds[osd].as_ref().map_or(Ok(()), |daemon| daemon.signal(Signal::CONT))
    }

    /// Kills the gateway: every connection breaks, new ones are refused.
    pub fn kill_gateway(&mut self) {
        if let Some(daemon) = self.gateway.take() {
            daemon.kill();
        }
    }

    /// Starts a killed gateway again and waits until it answers.
    pub fn start_gateway(&mut self) -> Result<()> {
        let mut gateway = daemon(self.scratch.path(), "radosgw", "rgw", &["-n", "client.rgw.a"])?;
        http::answers(&self.endpoint(IpAddr::V4(Ipv4Addr::LOCALHOST)), &mut gateway, GATEWAY_LIMIT)?;
        self.gateway = Some(gateway);
        Ok(())
    }

    /// Waits until all OSDs are up and every object has all its copies.
    pub fn wait_until_healthy(&self) -> Result<()> {
        wait_until_healthy(self.scratch.path())
    }

    fn endpoint(&self, address: IpAddr) -> String {
        format!("http://{}", std::net::SocketAddr::new(address, self.port))
    }
}

impl Store for Ceph {
    fn name(&self) -> &'static str {
        "ceph"
    }

    fn location(&self, prefix: &str) -> Location {
        Location::s3(self.endpoint(IpAddr::V4(Ipv4Addr::LOCALHOST)), prefix, KEY, SECRET)
    }
}

fn make_keys(root: &Path) -> Result<()> {
    let keyring = root.join("keyring");
    let make = |name: &str, is_first: bool, capabilities: &[(&str, &str)]| -> Result<()> {
        let mut command = Cmd::new("ceph-authtool").arg(&keyring).args(["--gen-key", "-n", name]);
        if is_first {
            command = command.arg("--create-keyring");
        }
        for (service, capability) in capabilities {
            command = command.args(["--cap", service, capability]);
        }
        command.run().map(drop)
    };
    make("mon.", true, &[("mon", "allow *")])?;
    make("client.admin", false, &[("mon", "allow *"), ("osd", "allow *"), ("mgr", "allow *")])?;
    make("mgr.x", false, &[("mon", "allow profile mgr"), ("osd", "allow *")])?;
    make("client.rgw.a", false, &[("mon", "allow rw"), ("osd", "allow rwx"), ("mgr", "allow rw")])?;
    for osd in 0..OSDS {
        let capabilities = [("mon", "allow profile osd"), ("osd", "allow *"), ("mgr", "allow profile osd")];
        make(&format!("osd.{osd}"), false, &capabilities)?;
    }
    Ok(())
}

fn start_monitor(root: &Path, configuration: &Configuration<'_>) -> Result<Daemon> {
    let map = root.join("monmap");
    Cmd::new("monmaptool")
        .args(["--create", "--clobber", "--set-min-mon-release", "16", "--fsid", &configuration.cluster])
        .args(["--addv", "a", &configuration.monitor_address()])
        .arg(&map)
        .run()?;
    program("ceph-mon", root)
        .args(["-i", "a", "--mkfs", "--monmap"])
        .arg(&map)
        .arg("--keyring")
        .arg(root.join("keyring"))
        .run()?;
    let monitor = daemon(root, "ceph-mon", "mon", &["-i", "a"])?;
    ceph(root).args(["--connect-timeout", "60", "status"]).limit(MONITOR_LIMIT).run()?;
    Ok(monitor)
}

/// Makes and starts all OSDs at once: making one is mostly waiting for the disk.
fn start_osds(root: &Path) -> Result<[Daemon; OSDS]> {
    let make = |osd: usize| -> Result<Daemon> {
        let id = uuid()?;
        ceph(root).args(["osd", "new", &id, &osd.to_string()]).run()?;
        program("ceph-osd", root).args(["-i", &osd.to_string(), "--mkfs", "--osd-uuid", &id]).run()?;
        start_osd(root, osd)
    };
    std::thread::scope(|scope| {
        let threads = [0, 1, 2].map(|osd| scope.spawn(move || make(osd)));
        let [first, second, third] =
            threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Ok([first?, second?, third?])
    })
}

fn start_osd(root: &Path, osd: usize) -> Result<Daemon> {
    daemon(root, "ceph-osd", &format!("osd{osd}"), &["-i", &osd.to_string()])
}

fn wait_until_healthy(root: &Path) -> Result<()> {
    interrupt::until("Ceph is healthy", HEALTHY_LIMIT, LOOK_EVERY, || {
        let health = ceph(root).arg("health").output()?.stdout;
        let osds = ceph(root).args(["osd", "stat"]).output()?.stdout;
        let is_healthy = health.starts_with("HEALTH_OK") && osds.contains(&format!("{OSDS} up"));
        let last = || format!("{} / {}", health.trim(), osds.trim());
        Ok(if is_healthy { Seen::Reached(()) } else { Seen::NotYet(last()) })
    })
}

fn ceph(root: &Path) -> Cmd {
    program("ceph", root)
}

fn program(name: &str, root: &Path) -> Cmd {
    Cmd::new(name).arg("-c").arg(root.join("ceph.conf"))
}

fn daemon(root: &Path, name: &str, log: &str, arguments: &[&str]) -> Result<Daemon> {
    program(name, root).arg("-f").args(arguments).spawn(name, &root.join("log").join(format!("{log}.out")))
}

fn uuid() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    let text = fs::read_to_string(path).named("read", path)?;
    if text.trim().is_empty() {
        return Err(Error::Answer { from: path.into(), answer: text });
    }
    Ok(text.trim().into())
}
