//! From a pool's configuration to its store.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, RetryConfig};
use url::Url;

use super::remote::{REQUEST_TIME, Remote};
use super::{ConfigError, Directory, PoolConfig, Store};

/// How long a connection may take to come about.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// The region that requests to an S3 store are signed for where none is configured.
const DEFAULT_REGION: &str = "us-east-1";

impl PoolConfig {
    /// Connects to the store. A directory must lie below one of `roots`, and is made if it is absent; no roots allow
    /// every directory. Nothing is asked of a remote store yet.
    pub fn connect(&self, roots: &[PathBuf]) -> Result<Arc<dyn Store>, ConfigError> {
        let url = self.parsed_url()?;
        let refused = |error: object_store::Error| ConfigError::Refused {
            url: self.url.clone(),
            reason: error.to_string(),
        };
        let prefix = url.path();
        Ok(match url.scheme() {
            "s3" => Arc::new(Remote::new(self.s3(&url)?.build().map_err(refused)?, prefix)),
            "gs" => Arc::new(Remote::new(self.google(&url).build().map_err(refused)?, prefix)),
            "az" => Arc::new(Remote::new(self.azure(&url)?.build().map_err(refused)?, prefix)),
            _ => {
                let path = url.to_file_path().map_err(|()| ConfigError::Url { url: self.url.clone() })?;
                Arc::new(Directory::new(directory_below(roots, &path)?))
            }
        })
    }

    fn s3(&self, url: &Url) -> Result<AmazonS3Builder, ConfigError> {
        let who = &self.credentials;
        let mut builder = match (&who.access_key_id, &who.secret_access_key) {
            (None, None) => AmazonS3Builder::from_env(),
            (Some(id), Some(secret)) => {
                AmazonS3Builder::new().with_access_key_id(id).with_secret_access_key(secret)
            }
            (None, Some(_)) => return Err(self.missing("credentials.accessKeyId")),
            (Some(_), None) => return Err(self.missing("credentials.secretAccessKey")),
        };
        builder = builder
            .with_bucket_name(bucket(url))
            .with_region(self.region.as_deref().unwrap_or(DEFAULT_REGION))
            .with_client_options(self.client())
            .with_retry(one_attempt());
        if let Some(token) = &who.token {
            builder = builder.with_token(token);
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        Ok(builder)
    }

    fn google(&self, url: &Url) -> GoogleCloudStorageBuilder {
        let mut builder = match &self.credentials.service_account_json {
            None => GoogleCloudStorageBuilder::from_env(),
            Some(account) => GoogleCloudStorageBuilder::new().with_service_account_key(account),
        };
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_base_url(endpoint);
        }
        builder.with_bucket_name(bucket(url)).with_client_options(self.client()).with_retry(one_attempt())
    }

    fn azure(&self, url: &Url) -> Result<MicrosoftAzureBuilder, ConfigError> {
        let who = &self.credentials;
        let mut builder = match (&who.access_key, &who.sas_token) {
            (None, None) => MicrosoftAzureBuilder::from_env(),
            (Some(key), _) => MicrosoftAzureBuilder::new().with_access_key(key),
            (None, Some(token)) => {
                let pairs = url::form_urlencoded::parse(token.trim_start_matches('?').as_bytes());
                MicrosoftAzureBuilder::new().with_sas_authorization(pairs.into_owned().collect::<Vec<_>>())
            }
        };
        match &who.account {
            Some(account) => builder = builder.with_account(account),
            None if who.access_key.is_some() || who.sas_token.is_some() => {
                return Err(self.missing("credentials.account"));
            }
            None => {}
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        Ok(builder
            .with_container_name(bucket(url))
            .with_allow_http(self.allow_http)
            .with_client_options(self.client())
            .with_retry(one_attempt()))
    }

    fn client(&self) -> ClientOptions {
        ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_timeout(REQUEST_TIME)
            .with_connect_timeout(CONNECT_TIME)
    }

    fn missing(&self, field: &'static str) -> ConfigError {
        ConfigError::Missing { field, url: self.url.clone() }
    }
}

/// Retries are the engine's, which knows what a lost reply means.
fn one_attempt() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: REQUEST_TIME, ..RetryConfig::default() }
}

fn bucket(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

/// Makes `path` if it is absent and returns it without links. Neither links nor `..` lead out of `roots`.
fn directory_below(roots: &[PathBuf], path: &Path) -> Result<PathBuf, ConfigError> {
    let outside = || ConfigError::Outside {
        path: path.display().to_string(),
        allowed: roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    let failed = |error: io::Error| ConfigError::Directory {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(outside());
    }
    let allowed = |real: &Path| {
        let below = |root: &PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
        roots.is_empty() || roots.iter().any(below)
    };
    // What exists of the path must lie within before anything is made in it.
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    if !allowed(&existing.canonicalize().map_err(failed)?) {
        return Err(outside());
    }
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| *ancestor != existing).collect();
    for directory in missing.into_iter().rev() {
        super::directory::make_directory(directory).map_err(failed)?;
    }
    let real = path.canonicalize().map_err(failed)?;
    if allowed(&real) { Ok(real) } else { Err(outside()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_below_an_allowed_root_and_refused_elsewhere() {
        let tree = tempfile::tempdir().unwrap();
        let (root, other) = (tree.path().join("pools"), tree.path().join("other"));
        for path in [&root, &other] {
            std::fs::create_dir(path).unwrap();
        }
        std::os::unix::fs::symlink(&other, root.join("link")).unwrap();
        let roots = [root.clone()];
        PoolConfig::directory(&root.join("a/b")).connect(&roots).unwrap();
        assert!(root.join("a/b").is_dir());
        for path in [other.join("new"), root.join("link"), root.join("link/new"), root.join("../other/new")] {
            let refused = PoolConfig::directory(&path).connect(&roots);
            assert!(matches!(refused, Err(ConfigError::Outside { .. })), "{}", path.display());
        }
        assert!(!other.join("new").exists());
    }

    #[test]
    fn half_of_a_pair_of_credentials_is_refused_by_the_missing_half() {
        for (yaml, field) in [
            ("url: s3://b/p\ncredentials: {accessKeyId: ID}", "secretAccessKey"),
            ("url: s3://b/p\ncredentials: {secretAccessKey: SECRET}", "accessKeyId"),
            ("url: az://c/p\ncredentials: {accessKey: SECRET}", "account"),
        ] {
            let error = PoolConfig::parse(yaml).unwrap().connect(&[]).unwrap_err().to_string();
            assert!(error.contains(field) && !error.contains("SECRET"), "{error}");
        }
    }
}
