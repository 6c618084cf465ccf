//! Object stores that exist already, through the `object_store` crate: S3, GCS, Azure.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::{Listed, Store, StoreError};

/// How long one attempt may take.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(30);

/// A remote store, below a prefix.
#[derive(Debug)]
pub struct Remote<S> {
    store: S,
    prefix: Path,
}

impl<S: ObjectStore> Remote<S> {
    /// The objects of `store` whose keys begin with `prefix`.
    pub fn new(store: S, prefix: &str) -> Self {
        Self { store, prefix: Path::from(prefix) }
    }

    fn path(&self, key: &str) -> Path {
        self.prefix.parts().chain(Path::from(key).parts()).collect()
    }

    /// Limits an attempt and translates its error.
    async fn attempt<T>(
        &self,
        key: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(REQUEST_TIME, request).await {
            Ok(outcome) => outcome.map_err(|error| translate(key, &error)),
            Err(_) => {
                let reason = format!("no answer within {} s", REQUEST_TIME.as_secs());
                Err(StoreError::Unavailable { key: key.into(), reason })
            }
        }
    }
}

fn translate(key: &str, error: &object_store::Error) -> StoreError {
    use object_store::Error;
    let (key, reason) = (key.to_owned(), Causes(error).to_string());
    match error {
        Error::NotFound { .. } => StoreError::NotFound { key },
        Error::AlreadyExists { .. } if is_conflict(&reason) => StoreError::Unavailable { key, reason },
        Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreError::AlreadyExists { key },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreError::Denied { key, reason },
        Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::NotModified { .. }
        | Error::UnknownConfigurationKey { .. } => StoreError::Refused { key, reason },
        // The crate's errors may grow; what we do not know may have happened, so it is tried again.
        Error::Generic { .. } | Error::JoinError { .. } | _ => match status_in(&reason) {
            Some(401 | 403) => StoreError::Denied { key, reason },
            Some(404) => StoreError::NotFound { key },
            Some(408 | 409 | 429) => StoreError::Unavailable { key, reason },
            // S3 says so of a body that came too slowly.
            Some(400) if reason.contains("RequestTimeout") => StoreError::Unavailable { key, reason },
            Some(400..=499) => StoreError::Refused { key, reason },
            Some(_) | None => StoreError::Unavailable { key, reason },
        },
    }
}

/// The HTTP status in an error's text: the crate keeps it nowhere else.
fn status_in(reason: &str) -> Option<u16> {
    let (_, rest) = reason.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// Whether a refused create says only that another request is under way: S3 answers 409 then, and the object may yet
/// come into being or not, so taking it for one that exists could lose data. Azure says 409 of an object that exists,
/// too, and names that.
fn is_conflict(reason: &str) -> bool {
    status_in(reason) == Some(409) && !reason.contains("BlobAlreadyExists")
}

/// No object is found where one is put or listed, if the bucket itself is missing.
fn no_bucket(error: StoreError) -> StoreError {
    match error {
        StoreError::NotFound { key } => {
            StoreError::Refused { key, reason: "the bucket or container does not exist".into() }
        }
        other => other,
    }
}

/// An error with all its causes: the crate's own text often ends before the interesting part.
struct Causes<'a>(&'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !shown.contains(&text) {
                shown = format!("{shown}: {text}");
            }
            next = cause.source();
        }
        f.write_str(&shown)
    }
}

#[async_trait]
impl<S: ObjectStore> Store for Remote<S> {
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = self.path(key);
        let put = self.store.put_opts(&path, PutPayload::from_bytes(body), options);
        self.attempt(key, put).await.map(|_| ()).map_err(no_bucket)
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let path = self.path(key);
        self.attempt(key, async { self.store.get(&path).await?.bytes().await }).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path(key);
        let wanted = range.end.saturating_sub(range.start);
        let body = self.attempt(key, self.store.get_range(&path, range)).await?;
        if body.len() as u64 == wanted {
            return Ok(body);
        }
        let reason = format!("{} bytes came instead of {wanted}", body.len());
        Err(StoreError::Refused { key: key.into(), reason })
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        // The crate lists whole path segments, so a partial last segment is filtered here.
        let directory = prefix.rfind('/').map_or("", |slash| &prefix[..slash]);
        let below = self.path(directory);
        let own = self.prefix.as_ref().len() + usize::from(!self.prefix.as_ref().is_empty());
        let listing = async {
            let listed = match after {
                Some(after) => self.store.list_with_offset(Some(&below), &self.path(after)),
                None => self.store.list(Some(&below)),
            };
            let mut listed = listed;
            let mut found = Vec::new();
            while let Some(meta) = listed.try_next().await? {
                let key = meta.location.as_ref().get(own..).unwrap_or_default();
                if key.starts_with(prefix) && after.is_none_or(|after| key > after) {
                    let modified_ms = meta.last_modified.timestamp_millis().max(0) as u64;
                    found.push(Listed { key: key.to_owned(), size_bytes: meta.size, modified_ms });
                }
                if found.len() == limit {
                    break;
                }
            }
            Ok(found)
        };
        self.attempt(prefix, listing).await.map_err(no_bucket)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path(key);
        match self.attempt(key, self.store.delete(&path)).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            outcome => outcome,
        }
    }
}
