//! How a pool or an archive target is configured: one YAML file each.

use std::fmt;

use serde::Deserialize;
use url::Url;

use crate::codec::{KEY_BYTES, UserKey};

/// A pool's file: `pools/NAME.yaml`, or `targets/NAME.yaml`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PoolConfig {
    /// `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: String,
    /// The store's own address, where it is not the provider's.
    pub endpoint: Option<String>,
    /// The provider's region.
    pub region: Option<String>,
    /// Whether plain HTTP may be spoken.
    #[serde(default)]
    pub allow_http: bool,
    /// Who we are to the store. Without any, the identity that the provider gives the machine or the pod.
    #[serde(default)]
    pub credentials: Credentials,
    /// The key that the pool's data are encrypted under; none: they are not.
    pub encryption: Option<Encryption>,
}

/// Who we are to a store. Which fields are needed depends on the store.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Credentials {
    /// S3: the access key's id.
    pub access_key_id: Option<String>,
    /// S3: the secret of the access key.
    pub secret_access_key: Option<String>,
    /// S3: the session token of temporary credentials.
    pub token: Option<String>,
    /// GCS: the service account, as JSON.
    pub service_account_json: Option<String>,
    /// Azure: the storage account.
    pub account: Option<String>,
    /// Azure: its access key.
    pub access_key: Option<String>,
    /// Azure: a shared access signature instead.
    pub sas_token: Option<String>,
}

/// The user's key.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Encryption {
    /// 32 bytes, in hexadecimal (64 digits) or base64 (44 characters).
    key: String,
}

impl fmt::Debug for PoolConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encrypted = self.encryption.is_some();
        f.debug_struct("PoolConfig")
            .field("url", &self.url)
            .field("encrypted", &encrypted)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(secret)")
    }
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encryption(secret)")
    }
}

/// Why a pool's file is not usable. No message holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is not the YAML that it should be.
    #[error("not a pool's configuration: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// Its URL is not one of those that we know.
    #[error("{url:?} is not the URL of a pool: use file:///directory, s3://, gs:// or az://")]
    Url {
        /// The URL.
        url: String,
    },
    /// A directory that no configured root allows.
    #[error("{path} does not lie below a directory that is allowed for pools ({allowed})")]
    Outside {
        /// The directory.
        path: String,
        /// The roots.
        allowed: String,
    },
    /// A directory that cannot be made or read.
    #[error("{path}: {reason}")]
    Directory {
        /// The directory.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A field is missing.
    #[error("{field} is missing, and {url} needs it")]
    Missing {
        /// The field.
        field: &'static str,
        /// The URL.
        url: String,
    },
    /// The key is not 32 bytes.
    #[error("encryption.key is not 32 bytes in base64 or hexadecimal")]
    Key,
    /// The store's client refuses the configuration.
    #[error("{url}: {reason}")]
    Refused {
        /// The URL.
        url: String,
        /// Why.
        reason: String,
    },
}

impl PoolConfig {
    /// Reads a pool's file.
    pub fn parse(yaml: &str) -> Result<Self, ConfigError> {
        // A value that does not fit is quoted by the parser, and it may be a secret: only the place is told.
        let malformed = |error: serde_yaml::Error| {
            let text = error.to_string();
            // These two quote names of fields only.
            let named = ["unknown field", "missing field"]
                .iter()
                .find_map(|what| text.split_once(what).map(|(_, rest)| format!("{what}{rest}")));
            let place = error.location().map(|at| format!("line {}, column {}", at.line(), at.column()));
            let reason = named.or(place).unwrap_or_else(|| "it is no YAML mapping".into());
            ConfigError::Malformed { reason }
        };
        let config: Self = serde_yaml::from_str(yaml).map_err(malformed)?;
        config.parsed_url()?;
        config.user_key()?;
        Ok(config)
    }

    /// The configuration of a directory, without encryption.
    pub fn directory(path: &std::path::Path) -> Self {
        let url = format!("file://{}", path.display());
        let (endpoint, region, encryption) = (None, None, None);
        Self { url, endpoint, region, allow_http: false, credentials: Credentials::default(), encryption }
    }

    /// The URL, which is one that we know.
    pub(super) fn parsed_url(&self) -> Result<Url, ConfigError> {
        let malformed = || ConfigError::Url { url: without_secrets(&self.url) };
        let url = Url::parse(&self.url).map_err(|_| malformed())?;
        let fits = match url.scheme() {
            "file" => url.host_str().is_none_or(str::is_empty) && url.path().len() > 1,
            "s3" | "gs" | "az" => url.host_str().is_some_and(|host| !host.is_empty()),
            _ => false,
        };
        let plain = url.username().is_empty() && url.query().is_none() && url.fragment().is_none();
        if fits && plain { Ok(url) } else { Err(malformed()) }
    }

    /// The user's key, if the pool is to be encrypted.
    pub fn user_key(&self) -> Result<Option<UserKey>, ConfigError> {
        self.encryption.as_ref().map(|encryption| parse_key(&encryption.key)).transpose()
    }
}

/// Reads a user's key: 32 bytes in base64 or hexadecimal.
pub fn parse_key(text: &str) -> Result<UserKey, ConfigError> {
    let text = text.trim();
    let bytes = hex::decode(text).ok().or_else(|| base64(text)).ok_or(ConfigError::Key)?;
    let bytes: [u8; KEY_BYTES] = bytes.try_into().map_err(|_| ConfigError::Key)?;
    Ok(UserKey::new(bytes))
}

/// A URL without what people put into URLs and should not: names and passwords, tokens.
fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or_default()),
        None => "…".into(),
    }
}

/// Decodes standard base64 with or without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut held) = (0u32, 0);
    for character in text.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_in_either_spelling() {
        let hexadecimal = "00".repeat(31) + "ff";
        for key in [hexadecimal.as_str(), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP8="] {
            let yaml = format!("url: file:///pool\nencryption: {{key: \"{key}\"}}\n");
            assert!(PoolConfig::parse(&yaml).unwrap().user_key().unwrap().is_some());
        }
        let short = PoolConfig::parse("url: file:///pool\nencryption: {key: c2hvcnQ=}\n");
        assert_eq!(short.unwrap_err(), ConfigError::Key);
        assert_eq!(base64("aGVsbG8="), Some(b"hello".to_vec()));
    }

    #[test]
    fn bad_configurations_are_refused_by_what_is_wrong() {
        for (yaml, says) in [
            ("url: ftp://x/y", "ftp://x/y"),
            ("url: file://host/x", "file://host/x"),
            ("url: s3:///x", "s3:///x"),
            ("url: file:///x\ncolour: red", "colour"),
            ("region: eu", "url"),
        ] {
            let error = PoolConfig::parse(yaml).unwrap_err().to_string();
            assert!(error.contains(says), "{yaml}: {error}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let yaml = "url: s3://b/p\ncredentials: {accessKeyId: ID, secretAccessKey: SESAME}\n";
        let shown = format!("{:?}", PoolConfig::parse(yaml).unwrap());
        assert!(!shown.contains("SESAME"), "{shown}");
        let broken =
            PoolConfig::parse("url: s3://b/p\ncredentials: {secretAccessKey: [SESAME]}\n").unwrap_err();
        assert!(!broken.to_string().contains("SESAME"), "{broken}");
        for yaml in
            ["url: s3://ID:SESAME@b/p", "url: az://c/p?sig=SESAME", "SESAME", "url: SESAME", "url: [SESAME]"]
        {
            let error = PoolConfig::parse(yaml).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("SESAME"), "{yaml}: {error}");
        }
    }
}
