//! Azurite: Azure Blob in one process of Node.js, from npm.

use std::{path::PathBuf, time::Duration};

use tempfile::TempDir;

use crate::{
    Result,
    cache::{self, Recipe},
    process::{Cmd, Daemon},
    report,
};

use super::{BUCKET, Credentials, Location, Store, free_port, http, npm_program, scratch};

const PACKAGES: [&str; 2] = ["azurite@3.37.0", "@azure/storage-blob@12.34.0"];
const ACCOUNT: &str = "holdfast";
/// The base64 of a key that protects nothing: the store is on loopback and in memory.
const ACCESS_KEY: &str = "aG9sZGZhc3QtdGVzdC1rZXktZm9yLWF6dXJpdGU=";
/// The official client makes the container: requests to Azure are signed in a way of their own.
const CREATE_CONTAINER: &str = "
const { BlobServiceClient, StorageSharedKeyCredential } = require('@azure/storage-blob');
const [endpoint, account, key, container] = require('fs').readFileSync(0, 'utf8').split('\\n');
new BlobServiceClient(endpoint, new StorageSharedKeyCredential(account, key))
  .getContainerClient(container).createIfNotExists()
  .catch((error) => { console.error(error.message); process.exit(1); });
";
const START_LIMIT: Duration = Duration::from_secs(90);
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// An Azurite server that keeps its blobs in memory.
#[derive(Debug)]
pub struct Azurite {
    endpoint: String,
    _server: Daemon,
    _scratch: TempDir,
}

impl Azurite {
    /// Starts it, and installs it into the cache first if need be.
    pub fn start() -> Result<Self> {
        let directory = install()?;
        let scratch = scratch()?;
        let port = free_port()?;
        let mut server = Cmd::new(npm_program(&directory, "azurite-blob"))
            .args(["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"])
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{ACCESS_KEY}"))
            .dir(scratch.path())
            .spawn("azurite", &scratch.path().join("log"))?;
        let endpoint = format!("http://127.0.0.1:{port}/{ACCOUNT}");
        http::answers(&endpoint, &mut server, START_LIMIT)?;
        Cmd::new("node")
            .args(["-e", CREATE_CONTAINER])
            .dir(&directory)
            .input(format!("{endpoint}\n{ACCOUNT}\n{ACCESS_KEY}\n{BUCKET}"))
            .run()?;
        Ok(Azurite { endpoint, _server: server, _scratch: scratch })
    }
}

impl Store for Azurite {
    fn name(&self) -> &'static str {
        "azurite"
    }

    fn location(&self, prefix: &str) -> Location {
        Location {
            url: format!("az://{BUCKET}/{prefix}"),
            endpoint: Some(self.endpoint.clone()),
            region: None,
            allow_http: true,
            credentials: Some(Credentials::Azure { account: ACCOUNT.into(), access_key: ACCESS_KEY.into() }),
        }
    }
}

fn install() -> Result<PathBuf> {
    cache::entry("azurite", &Recipe::new("azurite").part(PACKAGES.join(" ")), |path| {
        report::step("install Azurite", || npm_install(path, &PACKAGES))
    })
}

/// Installs packages of npm below a directory.
pub(super) fn npm_install(directory: &std::path::Path, packages: &[&str]) -> Result<()> {
    Cmd::new("npm")
        .args(["install", "--silent", "--no-fund", "--no-audit", "--no-save", "--prefix"])
        .arg(directory)
        .args(packages)
        .limit(INSTALL_LIMIT)
        .run()?;
    Ok(())
}
