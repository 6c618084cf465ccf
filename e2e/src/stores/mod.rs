//! Real object stores on this machine.
//!
//! | store | what it is for |
//! |---|---|
//! | [`Directory`] | the embedded default |
//! | [`Moto`] | S3, quick to start |
//! | [`Azurite`] | Azure Blob |
//! | [`Gcs`] | the interface of Google Cloud Storage, in a stand-in of our own: no usable server of another's exists |
//! | [`Ceph`] | S3 from a real distributed store, with faults |
//! | [`S3rver`], [`S3sFs`] | S3 without a sound put-if-absent: a pool there must be refused |
//!
//! # Guarantees
//! - A store listens on loopback only, on a port that was free; [`Ceph`] also on one address that is asked for.
//! - When `start` returns, the store answers and its bucket exists.
//! - Its processes and data are gone when the value is dropped.

mod azurite;
mod ceph;
mod directory;
mod gcs;
mod http;
mod moto;
mod unsound;

use std::{fmt, net::TcpListener, path::Path};

use serde::Serialize;

use crate::{Error, Result};

pub use azurite::Azurite;
pub use ceph::Ceph;
pub use directory::Directory;
pub use gcs::Gcs;
pub use moto::Moto;
pub use unsound::{S3rver, S3sFs};

/// The bucket or container that every store begins with.
pub const BUCKET: &str = "holdfast";

/// A store that runs.
pub trait Store {
    /// What it is, for reports.
    fn name(&self) -> &'static str;

    /// Where a pool can be, below a prefix of its own.
    fn location(&self, prefix: &str) -> Location;
}

/// Everything that a pool file says about a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// `file:///…`, `s3://…`, `gs://…` or `az://…`.
    pub url: String,
    /// Where the service answers, if that does not follow from the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether the endpoint speaks plain HTTP.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_http: bool,
    /// Who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// A name and a secret.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Credentials {
    /// For S3.
    #[serde(rename_all = "camelCase")]
    S3 {
        /// The public half.
        access_key_id: String,
        /// The secret half.
        secret_access_key: String,
    },
    /// For Azure.
    #[serde(rename_all = "camelCase")]
    Azure {
        /// The account.
        account: String,
        /// Its secret key.
        access_key: String,
    },
    /// For Google.
    #[serde(rename_all = "camelCase")]
    Google {
        /// The file that an account is told by.
        service_account_json: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::S3 { access_key_id, .. } => f.debug_tuple("S3").field(access_key_id).finish(),
            Credentials::Azure { account, .. } => f.debug_tuple("Azure").field(account).finish(),
            Credentials::Google { .. } => f.write_str("Google"),
        }
    }
}

impl Location {
    /// The pool file that names this place.
    pub fn pool_file(&self) -> Result<String> {
        // JSON is YAML too.
        serde_json::to_string_pretty(self)
            .map_err(|error| Error::Answer { from: "writing a pool file".into(), answer: error.to_string() })
    }

    /// A directory.
    pub fn directory(path: &str) -> Self {
        let url = format!("file://{path}");
        Location { url, endpoint: None, region: None, allow_http: false, credentials: None }
    }

    fn s3(endpoint: String, prefix: &str, key: &str, secret: &str) -> Self {
        Location {
            url: format!("s3://{BUCKET}/{prefix}"),
            endpoint: Some(endpoint),
            region: Some(http::REGION.into()),
            allow_http: true,
            credentials: Some(Credentials::S3 {
                access_key_id: key.into(),
                secret_access_key: secret.into(),
            }),
        }
    }
}

/// A port that nothing listens on at this moment.
pub(crate) fn free_port() -> Result<u16> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| Error::System { what: "finding a free port", source })
}

fn scratch() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("holdfast-store-")
        .tempdir()
        .map_err(|source| Error::System { what: "making a temporary directory", source })
}

/// The program in npm's own layout below a cached directory.
fn npm_program(directory: &Path, name: &str) -> std::path::PathBuf {
    directory.join("node_modules/.bin").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_file_has_the_names_that_the_driver_reads() {
        let location = Location::s3("http://127.0.0.1:1".into(), "p", "key", "secret");
        let file: serde_json::Value = serde_json::from_str(&location.pool_file().unwrap()).unwrap();
        assert_eq!(file["url"], "s3://holdfast/p");
        assert_eq!(file["allowHttp"], true);
        assert_eq!(file["credentials"]["accessKeyId"], "key");
        assert_eq!(file["credentials"]["secretAccessKey"], "secret");
    }

    #[test]
    fn secrets_are_not_in_the_debug_output() {
        let location = Location::s3("http://127.0.0.1:1".into(), "p", "key", "sesame");
        assert!(!format!("{location:?}").contains("sesame"));
    }
}
