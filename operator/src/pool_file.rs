//! The file that tells a program how to reach a pool: one YAML document, projected from a Secret.
//!
//! ```yaml
//! url: s3://bucket/prefix          # or file:///dir, gs://bucket/prefix, az://container/prefix
//! endpoint: https://s3.example     # optional
//! region: eu-central-1             # optional
//! allowHttp: false                 # optional
//! credentials: {accessKeyId: …, secretAccessKey: …, token: …}
//! #        or: {serviceAccountJson: …}, {account: …, accessKey: …}, {account: …, sasToken: …}
//! encryption: {key: …}             # base64 of 32 bytes
//! ```
//!
//! Users give the same entries as keys of Secrets; [`PoolFile::build`] puts the file together and has the engine
//! read it back, so that what is wrong is found here and not in every driver.

use std::collections::BTreeMap;

use holdfast_engine::store::{ConfigError, PoolConfig};
use k8s_openapi::ByteString;
use serde::Serialize;
use thiserror::Error;

/// A pool file. Its `Debug` shows no secret.
#[derive(Clone)]
pub struct PoolFile {
    name: String,
    text: String,
    config: PoolConfig,
}

impl std::fmt::Debug for PoolFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolFile")
            .field("name", &self.name)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The entries as they are written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entries<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_http: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    credentials: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<BTreeMap<&'static str, String>>,
}

/// Why no pool file can be made of a user's Secrets. Names keys, never values.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PoolFileError {
    /// A key that must be there is not.
    #[error("Secret {secret} has no key {key}")]
    MissingKey {
        /// The Secret.
        secret: String,
        /// The key.
        key: &'static str,
    },
    /// A value is no text.
    #[error("Secret {secret}: the value of {key} is not UTF-8 text")]
    NotText {
        /// The Secret.
        secret: String,
        /// The key.
        key: &'static str,
    },
    /// A switch that is neither on nor off.
    #[error("Secret {secret}: the value of allowHttp is neither true nor false")]
    BadSwitch {
        /// The Secret.
        secret: String,
    },
    /// The pool's key is not one.
    #[error(
        "Secret {secret}: the value of key is not base64 of 32 bytes; make one with: head -c 32 /dev/urandom | base64"
    )]
    BadKey {
        /// The Secret.
        secret: String,
    },
    /// The engine cannot use it.
    #[error(transparent)]
    Refused(ConfigError),
}

/// A user's Secret, by name.
#[derive(Clone, Copy)]
pub struct UserSecret<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// Its entries.
    pub data: &'a BTreeMap<String, ByteString>,
}

impl UserSecret<'_> {
    fn get(&self, key: &'static str) -> Result<Option<String>, PoolFileError> {
        let Some(value) = self.data.get(key) else { return Ok(None) };
        let text = std::str::from_utf8(&value.0)
            .map_err(|_| PoolFileError::NotText { secret: self.name.to_owned(), key })?;
        // A newline at the end is what echo and editors leave behind.
        Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
    }

    fn need(&self, key: &'static str) -> Result<String, PoolFileError> {
        self.get(key)?.ok_or_else(|| PoolFileError::MissingKey { secret: self.name.to_owned(), key })
    }

    fn switch(&self, key: &'static str) -> Result<bool, PoolFileError> {
        match self.get(key)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(PoolFileError::BadSwitch { secret: self.name.to_owned() }),
        }
    }

    /// The credentials that a store of this URL asks for.
    fn credentials(&self, url: &str) -> Result<BTreeMap<&'static str, String>, PoolFileError> {
        let mut found = BTreeMap::new();
        let mut need = |key| self.need(key).map(|value| found.insert(key, value)).map(drop);
        match url.split_once("://").map_or("", |(scheme, _)| scheme) {
            "s3" => {
                need("accessKeyId")?;
                need("secretAccessKey")?;
                found.extend(self.get("token")?.map(|token| ("token", token)));
            }
            "gs" => need("serviceAccountJson")?,
            "az" => {
                need("account")?;
                match self.get("sasToken")? {
                    Some(token) => drop(found.insert("sasToken", token)),
                    None => need("accessKey")?,
                }
            }
            // A directory needs none.
            _ => {}
        }
        Ok(found)
    }
}

impl PoolFile {
    /// Reads the file of that name.
    pub fn read(name: &str, text: &str) -> Result<Self, ConfigError> {
        let config = PoolConfig::parse(text)?;
        Ok(Self { name: name.to_owned(), text: text.to_owned(), config })
    }

    /// Puts the file of a target together from its URL, the Secret with the credentials and the one with the key.
    pub fn build(
        name: &str,
        url: &str,
        access: Option<UserSecret<'_>>,
        key: Option<UserSecret<'_>>,
    ) -> Result<Self, PoolFileError> {
        let mut entries = Entries {
            url,
            endpoint: None,
            region: None,
            allow_http: false,
            credentials: BTreeMap::new(),
            encryption: None,
        };
        if let Some(secret) = access {
            entries.endpoint = secret.get("endpoint")?;
            entries.region = secret.get("region")?;
            entries.allow_http = secret.switch("allowHttp")?;
            entries.credentials = secret.credentials(url)?;
        }
        let key_secret = key.map(|secret| secret.name.to_owned()).unwrap_or_default();
        if let Some(secret) = key {
            entries.encryption = Some(BTreeMap::from([("key", secret.need("key")?)]));
        }
        let text = serde_yaml::to_string(&entries).expect("strings and switches always serialise");
        Self::read(name, &text).map_err(|error| match error {
            ConfigError::Key => PoolFileError::BadKey { secret: key_secret },
            ConfigError::Malformed { .. }
            | ConfigError::Url { .. }
            | ConfigError::Outside { .. }
            | ConfigError::Directory { .. }
            | ConfigError::Missing { .. }
            | ConfigError::Refused { .. } => PoolFileError::Refused(error),
        })
    }

    /// The pool's local name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The file as the engine reads it.
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        entries.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect()
    }

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn build(url: &str, entries: &[(&str, &str)]) -> Result<PoolFile, PoolFileError> {
        PoolFile::build("offsite", url, Some(UserSecret { name: "w", data: &data(entries) }), None)
    }

    #[test]
    fn an_s3_target_becomes_the_documented_file() {
        let access = data(&[
            ("accessKeyId", "AKIA"),
            ("secretAccessKey", "s3cr3t\n"),
            ("endpoint", "http://10.0.0.1:8000"),
            ("allowHttp", "true"),
        ]);
        let key = data(&[("key", KEY)]);
        let file = PoolFile::build(
            "offsite",
            "s3://backups/prod",
            Some(UserSecret { name: "offsite-writer", data: &access }),
            Some(UserSecret { name: "offsite-key", data: &key }),
        )
        .expect("a file");
        let yaml: serde_yaml::Value = serde_yaml::from_str(file.text()).expect("YAML");
        let expected: serde_yaml::Value = serde_yaml::from_str(&format!(
            "{{url: 's3://backups/prod', endpoint: 'http://10.0.0.1:8000', allowHttp: true, \
             credentials: {{accessKeyId: AKIA, secretAccessKey: s3cr3t}}, encryption: {{key: '{KEY}'}}}}"
        ))
        .expect("YAML");
        assert_eq!(yaml, expected);
        assert_eq!(file.config().url, "s3://backups/prod");
        let shown = format!("{file:?}");
        assert!(!shown.contains("s3cr3t") && !shown.contains("AKIA") && !shown.contains(KEY), "{shown}");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_without_its_value() {
        let error = |url: &str, entries: &[(&str, &str)]| build(url, entries).expect_err("refused");
        let missing = |key| PoolFileError::MissingKey { secret: "w".to_owned(), key };
        assert_eq!(error("s3://b", &[("accessKeyId", "A")]), missing("secretAccessKey"));
        assert_eq!(error("s3://b", &[]), missing("accessKeyId"));
        assert_eq!(error("gs://b", &[]), missing("serviceAccountJson"));
        assert_eq!(error("az://c", &[("account", "A")]), missing("accessKey"));
        let switch = [("accessKeyId", "A"), ("secretAccessKey", "B"), ("allowHttp", "yes")];
        assert_eq!(error("s3://b", &switch), PoolFileError::BadSwitch { secret: "w".to_owned() });
        assert!(matches!(error("ftp://b", &[]), PoolFileError::Refused(_)));
        for bad in ["", "c2hvcnQ=", "no base64 at all"] {
            let key = data(&[("key", bad)]);
            let refused =
                PoolFile::build("offsite", "file:///d", None, Some(UserSecret { name: "k", data: &key }));
            assert_eq!(
                refused.expect_err("refused"),
                PoolFileError::BadKey { secret: "k".to_owned() },
                "{bad}"
            );
        }
    }

    #[test]
    fn azure_and_google_credentials_keep_their_form() {
        let sas = build("az://c/p", &[("account", "acc"), ("sasToken", "sig")]).expect("a file");
        assert_eq!(sas.config().credentials.sas_token.as_deref(), Some("sig"));
        let key = build("az://c/p", &[("account", "acc"), ("accessKey", "k")]).expect("a file");
        assert_eq!(key.config().credentials.access_key.as_deref(), Some("k"));
        let google = build("gs://b/p", &[("serviceAccountJson", "{\"a\": 1}")]).expect("a file");
        assert_eq!(google.config().credentials.service_account_json.as_deref(), Some("{\"a\": 1}"));
    }
}
