//! What can go wrong while reconciling, and how soon to try again.

use std::time::Duration;

use thiserror::Error;

use crate::store::StoreError;

/// An error of a reconcile. Each is retried; none leaves half a change that a later try would not complete.
#[derive(Debug, Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("cannot {action}: {source}")]
    Api {
        /// What was tried, naming the object.
        action: String,
        /// The API server's answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// The object store refused or did not answer.
    #[error("target {target}: {source}")]
    Store {
        /// The ArchiveTarget.
        target: String,
        /// What the store said.
        #[source]
        source: StoreError,
    },
    /// A reconcile took so long that it was ended.
    #[error("no end after {0:?}; the API server or a store does not answer")]
    TooSlow(Duration),
    /// A certificate could not be made or read.
    #[error("certificate in Secret {secret}: {why}; delete the Secret to have a new one made")]
    Certificate {
        /// The Secret.
        secret: String,
        /// What is wrong.
        why: String,
    },
    /// An object lacks a field that the API server always sets.
    #[error("{object} has no {field}")]
    Incomplete {
        /// The object.
        object: String,
        /// The field.
        field: &'static str,
    },
    /// The operator cannot run at all.
    #[error("cannot {action}: {source}")]
    Startup {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// How long to wait before trying again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Api { source, .. } => match &**source {
                // Somebody else changed the object: read it again at once.
                kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => {
                    Duration::from_secs(1)
                }
                _ => Duration::from_secs(15),
            },
            Self::Store { .. } => Duration::from_secs(30),
            Self::Incomplete { .. } | Self::TooSlow(_) => Duration::from_secs(15),
            Self::Certificate { .. } | Self::Startup { .. } => Duration::from_secs(60),
        }
    }

    /// Whether it says that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(&**source, kube::Error::Api(s) if s.is_not_found()))
    }

    /// Whether it says that the object already exists or was changed meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. }
            if matches!(&**source, kube::Error::Api(s) if s.is_already_exists() || s.is_conflict()))
    }
}

/// Names the attempted action in an API error.
pub trait Doing<T> {
    /// `action` completes the sentence "cannot …".
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Api { action: action(), source: Box::new(source) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api(reason: &str, code: u16) -> Error {
        let status = Status::failure("no", reason).with_code(code).boxed();
        Error::Api { action: "create snapshot shop/a".to_owned(), source: Box::new(kube::Error::Api(status)) }
    }

    #[test]
    fn a_conflict_is_retried_at_once_and_a_refusal_later() {
        assert_eq!(api("Conflict", 409).retry_after(), Duration::from_secs(1));
        assert_eq!(api("AlreadyExists", 409).retry_after(), Duration::from_secs(1));
        assert_eq!(api("Forbidden", 403).retry_after(), Duration::from_secs(15));
        assert_eq!(api("NotFound", 404).retry_after(), Duration::from_secs(15));
        let store = Error::Store { target: "offsite".to_owned(), source: StoreError::Timeout };
        assert_eq!(store.retry_after(), Duration::from_secs(30));
        assert!(api("NotFound", 404).is_not_found() && !api("Conflict", 409).is_not_found());
        assert!(api("AlreadyExists", 409).is_conflict() && !api("Forbidden", 403).is_conflict());
    }
}
