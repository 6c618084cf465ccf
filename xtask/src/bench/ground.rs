//! What everything is measured on: the programs, the driver over its pools, the stores, files on the raw disk.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_e2e::{
    Error, Result,
    csi::{Client, Published, Shape},
    fio::{self, Load, Target},
    process::Cmd,
    report, repository,
    site::Site,
    stores::{Ceph, Directory, Store},
};
use tempfile::TempDir;

const BUILD_LIMIT: Duration = Duration::from_secs(7200);
/// A key that protects nothing: the pool is gone after the run.
const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The pool in a directory.
pub const DIRECTORY: &str = "directory";
/// The same, encrypted.
pub const SEALED: &str = "sealed";
/// The pool in Ceph.
pub const CEPH: &str = "ceph";

/// How long and on how much.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Seconds of each load.
    pub seconds: u32,
    /// MiB that random writes go over, and that streams move on the disk.
    pub mib: u64,
    /// MiB that streams move in Ceph.
    pub ceph_mib: u64,
    /// Extents of the volume that is opened.
    pub extents: u64,
    /// Scale of pgbench's tables.
    pub pgbench: u32,
}

impl Scale {
    /// For numbers.
    pub const FULL: Scale = Scale { seconds: 10, mib: 1024, ceph_mib: 256, extents: 10_000_000, pgbench: 20 };
    /// To see that it works.
    pub const QUICK: Scale = Scale { seconds: 3, mib: 256, ceph_mib: 64, extents: 200_000, pgbench: 3 };
}

/// See the module.
pub struct Ground {
    pub scale: Scale,
    pub client: Client,
    pub site: Site,
    /// The cluster, or why there is none.
    pub ceph: std::result::Result<Ceph, String>,
    measure: PathBuf,
    raw: TempDir,
    volumes: u32,
    _pools: Directory,
}

/// A volume as a block device, for the time of a measurement.
pub struct Device {
    published: Published,
}

impl Device {
    /// For fio.
    pub fn target(&self) -> Target {
        Target::path(&self.published.path)
    }

    /// Its handle.
    pub fn volume(&self) -> &str {
        &self.published.volume
    }
}

impl Ground {
    /// Builds the programs, unless they are in `programs`, and starts everything, Ceph only if it is wanted.
    pub fn prepare(scale: Scale, programs: Option<&Path>, ceph: bool) -> Result<Self> {
        let built = repository().join("target/release");
        let programs = match programs {
            Some(programs) => programs,
            None => {
                build()?;
                &built
            }
        };
        let (driver, measure) = (programs.join("holdfast-driver"), programs.join("examples/measure"));
        let raw = tempfile::Builder::new()
            .prefix("holdfast-raw-")
            .tempdir()
            .map_err(|source| Error::System { what: "making a temporary directory", source })?;
        let kind = Cmd::new("stat").args(["--file-system", "--format=%T"]).arg(raw.path()).read()?;
        if kind == "tmpfs" {
            return Err(Error::Machine(
                "temporary files are in memory here, not on the disk that is to be measured: set TMPDIR"
                    .into(),
            ));
        }
        let pools = Directory::start()?;
        let ceph = match ceph {
            true => report::step("start Ceph", Ceph::start).map_err(|error| error.to_string()),
            false => Err("no group that was asked for wants it".to_owned()),
        };
        let plain = pools.location("plain").pool_file()?;
        let sealed = pools.location("sealed").pool_file()?;
        let sealed = sealed.trim_end().trim_end_matches('}').trim_end().to_owned();
        let mut files = vec![
            (DIRECTORY, plain),
            (SEALED, format!("{sealed},\n\"encryption\": {{\"key\": \"{KEY}\"}}}}\n")),
        ];
        if let Ok(ceph) = &ceph {
            files.push((CEPH, ceph.location("bench").pool_file()?));
        }
        // No cache on disk: what is read cold has to come from the store.
        let site = report::step("start the driver", || Site::start(&driver, &files, &["--cache-bytes=0"]))?;
        let client = Client::connect(&site)?;
        Ok(Ground { scale, client, site, ceph, measure, raw, volumes: 0, _pools: pools })
    }

    /// A new volume in a pool, as a block device.
    pub fn device(&mut self, pool: &str, size_bytes: u64, parameters: &[(&str, &str)]) -> Result<Device> {
        let volume = self.create(pool, size_bytes, parameters)?;
        Ok(Device { published: self.client.publish(&volume, Shape::Block)? })
    }

    /// A new volume that is not attached.
    pub fn create(&mut self, pool: &str, size_bytes: u64, parameters: &[(&str, &str)]) -> Result<String> {
        self.volumes += 1;
        let mut all = vec![("pool", pool)];
        all.extend(parameters);
        self.client.create(&format!("bench-{}", self.volumes), size_bytes, &all, None)
    }

    /// A new volume that is filled with incompressible data.
    pub fn filled(&mut self, pool: &str, mib: u64, parameters: &[(&str, &str)]) -> Result<Device> {
        let device = self.device(pool, mib << 20, parameters)?;
        fio::run(&device.target(), &Load::sequential("write", mib))?;
        Ok(device)
    }

    /// Takes a volume away with all its data.
    pub fn remove(&self, device: &Device) -> Result<()> {
        self.client.unpublish(&device.published)?;
        self.client.delete(&device.published.volume)
    }

    /// A file on the raw disk, filled. It is gone with the ground.
    pub fn raw_file(&self, mib: u64) -> Result<PathBuf> {
        let path = self.raw.path().join(format!("file-{mib}"));
        if !path.exists() {
            fio::run(&Target::path(&path), &Load::sequential("write", mib))?;
        }
        Ok(path)
    }

    /// A directory on the raw disk's file system.
    pub fn raw_directory(&self) -> &Path {
        self.raw.path()
    }

    /// Whether the pool is there, and if not, why.
    pub fn has(&self, pool: &str) -> std::result::Result<(), String> {
        match &self.ceph {
            Err(reason) if pool == CEPH => Err(format!("there is no Ceph: {reason}")),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Empties every cache: that of the node plugin, which is killed for it, and the kernel's.
    pub fn cool(&mut self) -> Result<()> {
        self.site.kill_node();
        self.site.start_node()?;
        Cmd::new("sync").run()?;
        let path = "/proc/sys/vm/drop_caches";
        fs::write(path, "1").map_err(|source| Error::File { action: "write", path: path.into(), source })
    }

    /// A measurement of the engine's own program: a JSON object.
    pub fn engine(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = Cmd::new(&self.measure).args(arguments).limit(BUILD_LIMIT).read()?;
        serde_json::from_str(&text).map_err(|_| Error::Answer { from: "measure".into(), answer: text })
    }

    /// The pool file by which the engine's program reaches the same store.
    pub fn pool_file(&self, pool: &str) -> String {
        self.site.root().join("pools").join(format!("{pool}.yaml")).display().to_string()
    }
}

/// A number of a JSON object.
pub fn number(json: &serde_json::Value, name: &str) -> Result<f64> {
    json[name].as_f64().ok_or_else(|| Error::Answer { from: "measure".into(), answer: json.to_string() })
}

fn build() -> Result<()> {
    report::step("build the programs (release)", || {
        for package in
            [&["--package", "holdfast-driver"][..], &["--package", "holdfast-engine", "--example", "measure"]]
        {
            Cmd::new("cargo")
                .dir(repository())
                .args(["build", "--locked", "--quiet", "--release"])
                .args(package)
                .limit(BUILD_LIMIT)
                .run()?;
        }
        Ok(())
    })
}
