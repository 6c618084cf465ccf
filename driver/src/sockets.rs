//! Unix sockets at fixed paths.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The scheme of `--endpoint`.
const SCHEME: &str = "unix://";

/// A socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The endpoint is not written as one.
    #[error("endpoint {given:?} is not of the form unix:///path/to/socket")]
    Endpoint {
        /// What was given.
        given: String,
    },
    /// The system refuses.
    #[error("cannot listen on {}: {source}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The path in an endpoint.
pub fn path_of(endpoint: &str) -> Result<PathBuf, SocketError> {
    match endpoint.strip_prefix(SCHEME) {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        Some(_) | None => Err(SocketError::Endpoint { given: endpoint.into() }),
    }
}

/// Listens at `path`, in place of whoever did before: the path has one owner, and a predecessor that is still ending
/// serves the connections it has.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Bind { path: path.into(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[test]
    fn an_endpoint_is_a_url_of_a_socket() {
        assert_eq!(path_of("unix:///csi/csi.sock").expect("valid"), Path::new("/csi/csi.sock"));
        for given in ["/csi/csi.sock", "unix://csi.sock", "tcp://0.0.0.0:1"] {
            assert!(matches!(path_of(given), Err(SocketError::Endpoint { .. })), "{given}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_a_predecessor_left_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/csi.sock");
        let _left = bind(&path).expect("bound");
        let listener = bind(&path).expect("bound again");
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        connected.expect("reaches the new listener");
        accepted.expect("is reached");
    }
}
