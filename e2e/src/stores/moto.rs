//! moto: S3 in one process of Python, from PyPI.

use std::{path::PathBuf, time::Duration};

use tempfile::TempDir;

use crate::{
    Error, Result,
    cache::{self, Recipe},
    process::{Cmd, Daemon, is_in_path},
    report,
};

use super::{BUCKET, Location, Store, free_port, http, scratch};

const REQUIREMENT: &str = "moto[server]==5.2.5";
const KEY: &str = "test";
const SECRET: &str = "testtest";
const START_LIMIT: Duration = Duration::from_secs(90);
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// A moto server.
#[derive(Debug)]
pub struct Moto {
    endpoint: String,
    _server: Daemon,
    _scratch: TempDir,
}

impl Moto {
    /// Starts it, and installs it into the cache first if need be.
    pub fn start() -> Result<Self> {
        let environment = install()?;
        let scratch = scratch()?;
        let port = free_port()?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let mut server = Cmd::new(environment.join("bin/python"))
            .args(["-m", "moto.server", "--host", "127.0.0.1", "--port", &port.to_string()])
            .spawn("moto", &scratch.path().join("log"))?;
        http::answers(&endpoint, &mut server, START_LIMIT)?;
        http::create_bucket(&endpoint, BUCKET, KEY, SECRET)?;
        Ok(Moto { endpoint, _server: server, _scratch: scratch })
    }
}

impl Store for Moto {
    fn name(&self) -> &'static str {
        "moto"
    }

    fn location(&self, prefix: &str) -> Location {
        Location::s3(self.endpoint.clone(), prefix, KEY, SECRET)
    }
}

/// A Python environment with moto.
fn install() -> Result<PathBuf> {
    cache::entry("moto", &Recipe::new("moto").part(REQUIREMENT), |path| {
        if !is_in_path("python3") {
            return Err(Error::MissingProgram {
                purpose: "moto".into(),
                program: "python3",
                hint: "install the packages python3 and python3-venv",
            });
        }
        report::step("install moto", || {
            Cmd::new("python3").args(["-m", "venv"]).arg(path).run()?;
            Cmd::new(path.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT])
                .limit(INSTALL_LIMIT)
                .run()?;
            Ok(())
        })
    })
}
