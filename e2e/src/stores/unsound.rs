//! Stores whose put-if-absent lets two writers win: a pool in one of them must be refused.

use std::{path::PathBuf, time::Duration};

use tempfile::TempDir;

use crate::{
    Result,
    cache::{self, Recipe},
    error::Named,
    process::{Cmd, Daemon},
    report,
};

use super::{BUCKET, Location, Store, azurite::npm_install, free_port, http, npm_program, scratch};

const S3RVER: &str = "s3rver@3.7.1";
const S3S_FS_VERSION: &str = "0.14.0";
/// The key that s3rver knows without configuration.
const S3RVER_KEY: (&str, &str) = ("S3RVER", "S3RVER");
const S3S_KEY: (&str, &str) = ("test", "testtest");
const START_LIMIT: Duration = Duration::from_secs(60);
const INSTALL_LIMIT: Duration = Duration::from_secs(1200);

/// s3rver ignores the condition of a put.
#[derive(Debug)]
pub struct S3rver(Server);

/// s3s-fs honours the condition for one writer at a time and loses it in a race.
#[derive(Debug)]
pub struct S3sFs(Server);

#[derive(Debug)]
struct Server {
    endpoint: String,
    _process: Daemon,
    _scratch: TempDir,
}

impl S3rver {
    /// Starts it, and installs it into the cache first if need be.
    pub fn start() -> Result<Self> {
        let directory = cache::entry("s3rver", &Recipe::new("s3rver").part(S3RVER), |path| {
            report::step("install s3rver", || npm_install(path, &[S3RVER]))
        })?;
        serve("s3rver", S3RVER_KEY, |port, data| {
            Cmd::new(npm_program(&directory, "s3rver"))
                .args(["--address", "127.0.0.1", "--port", port, "--directory"])
                .arg(data)
        })
        .map(S3rver)
    }
}

impl S3sFs {
    /// Starts it, and builds it into the cache first if need be.
    pub fn start() -> Result<Self> {
        let directory = cache::entry("s3s-fs", &Recipe::new("s3s-fs").part(S3S_FS_VERSION), |path| {
            report::step("build s3s-fs", || {
                let mut target = path.as_os_str().to_owned();
                target.push(".target");
                let target = PathBuf::from(target);
                Cmd::new("cargo")
                    .args(["install", "--quiet", "--locked", "--debug", "--features", "binary"])
                    .args(["--version", S3S_FS_VERSION, "--root"])
                    .arg(path)
                    .arg("s3s-fs")
                    .env("CARGO_TARGET_DIR", &target)
                    .env("CARGO_PROFILE_DEV_DEBUG", "0")
                    .limit(INSTALL_LIMIT)
                    .run()?;
                cache::remove(&target)
            })
        })?;
        serve("s3s-fs", S3S_KEY, |port, data| {
            Cmd::new(directory.join("bin/s3s-fs"))
                .args(["--host", "127.0.0.1", "--port", port])
                .args(["--access-key", S3S_KEY.0, "--secret-key", S3S_KEY.1])
                .arg(data)
        })
        .map(S3sFs)
    }
}

fn serve(
    name: &'static str,
    (key, secret): (&str, &str),
    command: impl FnOnce(&str, &std::path::Path) -> Cmd,
) -> Result<Server> {
    let scratch = scratch()?;
    let data = scratch.path().join("data");
    std::fs::create_dir(&data).named("create", &data)?;
    let port = free_port()?;
    let endpoint = format!("http://127.0.0.1:{port}");
    let mut process = command(&port.to_string(), &data).spawn(name, &scratch.path().join("log"))?;
    http::answers(&endpoint, &mut process, START_LIMIT)?;
    http::create_bucket(&endpoint, BUCKET, key, secret)?;
    Ok(Server { endpoint, _process: process, _scratch: scratch })
}

impl Store for S3rver {
    fn name(&self) -> &'static str {
        "s3rver"
    }

    fn location(&self, prefix: &str) -> Location {
        Location::s3(self.0.endpoint.clone(), prefix, S3RVER_KEY.0, S3RVER_KEY.1)
    }
}

impl Store for S3sFs {
    fn name(&self) -> &'static str {
        "s3s-fs"
    }

    fn location(&self, prefix: &str) -> Location {
        Location::s3(self.0.endpoint.clone(), prefix, S3S_KEY.0, S3S_KEY.1)
    }
}
