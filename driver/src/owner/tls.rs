//! The files of a certificate Secret.

use std::io;
use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use super::SERVER_NAME;

/// Where the certificates lie: `ca.crt`, `tls.crt` and `tls.key` in one directory, as the kubelet projects a Secret of
/// type `kubernetes.io/tls`.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    dir: PathBuf,
}

/// A certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; the certificate Secret must hold ca.crt, tls.crt and tls.key", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The files do not make a configuration.
    #[error("the certificates in {} cannot be used: {source}", dir.display())]
    Invalid {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// What the files held.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TlsContents {
    authority: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl TlsFiles {
    /// The files in `dir`. They may appear later, and change.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) async fn read(&self) -> Result<TlsContents, TlsError> {
        let read = async |name: &str| {
            let path = self.dir.join(name);
            tokio::fs::read(&path).await.map_err(|source| TlsError::Read { path, source })
        };
        Ok(TlsContents {
            authority: read("ca.crt").await?,
            certificate: read("tls.crt").await?,
            key: read("tls.key").await?,
        })
    }
}

impl TlsContents {
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(Identity::from_pem(&self.certificate, &self.key))
            .client_ca_root(Certificate::from_pem(&self.authority))
    }

    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(Identity::from_pem(&self.certificate, &self.key))
            .ca_certificate(Certificate::from_pem(&self.authority))
            .domain_name(SERVER_NAME)
    }
}
