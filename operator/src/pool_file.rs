//! The file that tells a program how to reach a pool: one YAML document, projected from a Secret.
//!
//! ```yaml
//! url: s3://bucket/prefix          # or file:///dir, gs://bucket/prefix, az://container/prefix
//! endpoint: https://s3.example     # optional
//! region: eu-central-1             # optional
//! allowHttp: false                 # optional
//! credentials: {accessKeyId: …, secretAccessKey: …, token: …}   # or {serviceAccountJson} or {account, accessKey | sasToken}
//! encryption: {key: …}             # base64 of 32 bytes
//! ```
//!
//! Users give the same entries as keys of Secrets; [`PoolFile::build`] checks them and puts the file together.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A pool file. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolFile {
    /// Where the pool is.
    pub url: String,
    /// The store's address, when it is not the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The store's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether a connection without TLS is accepted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_http: bool,
    /// What the store lets in; without it, the environment's own identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// The pool's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionKey>,
}

/// Credentials, one form for each kind of store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Credentials {
    /// S3 and its kin.
    S3 {
        /// The access key's name.
        access_key_id: String,
        /// The access key.
        secret_access_key: String,
        /// A session token, with temporary keys.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
    },
    /// Google Cloud Storage.
    Google {
        /// The service account's key file.
        service_account_json: String,
    },
    /// Azure Blob Storage by the account's key.
    AzureKey {
        /// The storage account.
        account: String,
        /// Its key.
        access_key: String,
    },
    /// Azure Blob Storage by a shared access signature.
    AzureSas {
        /// The storage account.
        account: String,
        /// The signature.
        sas_token: String,
    },
}

/// A pool's key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionKey {
    /// Base64 of 32 bytes.
    pub key: String,
}

impl fmt::Debug for PoolFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolFile")
            .field("url", &self.url)
            .field("endpoint", &self.endpoint)
            .field("encrypted", &self.encryption.is_some())
            .finish_non_exhaustive()
    }
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
    /// The pool's key is not one.
    #[error(
        "Secret {secret}: the value of key is not base64 of 32 bytes; make one with: head -c 32 /dev/urandom | base64"
    )]
    BadKey {
        /// The Secret.
        secret: String,
    },
    /// A switch that is neither on nor off.
    #[error("Secret {secret}: the value of allowHttp is neither true nor false")]
    BadSwitch {
        /// The Secret.
        secret: String,
    },
}

/// A user's Secret, by name.
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
}

impl PoolFile {
    /// Puts a file together from a target's URL and the user's Secrets. Without credentials in the Secret,
    /// the file has none, and the environment's identity is used.
    pub fn build(
        url: &str,
        access: Option<&UserSecret<'_>>,
        key: Option<&UserSecret<'_>>,
    ) -> Result<Self, PoolFileError> {
        let mut file = Self {
            url: url.to_owned(),
            endpoint: None,
            region: None,
            allow_http: false,
            credentials: None,
            encryption: None,
        };
        if let Some(secret) = access {
            file.endpoint = secret.get("endpoint")?;
            file.region = secret.get("region")?;
            file.allow_http = match secret.get("allowHttp")?.as_deref() {
                None | Some("false") => false,
                Some("true") => true,
                Some(_) => return Err(PoolFileError::BadSwitch { secret: secret.name.to_owned() }),
            };
            file.credentials = credentials(url, secret)?;
        }
        if let Some(secret) = key {
            let key = secret.need("key")?;
            if !is_key(&key) {
                return Err(PoolFileError::BadKey { secret: secret.name.to_owned() });
            }
            file.encryption = Some(EncryptionKey { key });
        }
        Ok(file)
    }

    /// The file's text.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).expect("strings and switches always serialise")
    }

    /// The directory of a `file:` pool.
    pub fn directory(&self) -> Option<&str> {
        self.url.strip_prefix("file://")
    }
}

fn credentials(url: &str, secret: &UserSecret<'_>) -> Result<Option<Credentials>, PoolFileError> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    Ok(match scheme {
        "s3" => match secret.get("accessKeyId")? {
            None if secret.get("secretAccessKey")?.is_none() => None,
            None => {
                return Err(PoolFileError::MissingKey { secret: secret.name.to_owned(), key: "accessKeyId" });
            }
            Some(access_key_id) => Some(Credentials::S3 {
                access_key_id,
                secret_access_key: secret.need("secretAccessKey")?,
                token: secret.get("token")?,
            }),
        },
        "gs" => secret
            .get("serviceAccountJson")?
            .map(|service_account_json| Credentials::Google { service_account_json }),
        "az" => match secret.get("account")? {
            None => None,
            Some(account) => Some(match secret.get("sasToken")? {
                Some(sas_token) => Credentials::AzureSas { account, sas_token },
                None => Credentials::AzureKey { account, access_key: secret.need("accessKey")? },
            }),
        },
        // A directory needs none.
        _ => None,
    })
}

/// Whether the text is base64, with padding, of exactly 32 bytes: 43 characters and one `=`, whose last character
/// carries four bits only.
fn is_key(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'+' || *byte == b'/';
    bytes.len() == 44
        && bytes[..43].iter().all(digit)
        && bytes[43] == b'='
        && b"AEIMQUYcgkosw048".contains(&bytes[42])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        entries.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect()
    }

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

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
            "s3://backups/prod",
            Some(&UserSecret { name: "offsite-writer", data: &access }),
            Some(&UserSecret { name: "offsite-key", data: &key }),
        )
        .expect("a file");
        let yaml: serde_yaml::Value = serde_yaml::from_str(&file.to_yaml()).expect("YAML");
        let expected: serde_yaml::Value = serde_yaml::from_str(&format!(
            "{{url: 's3://backups/prod', endpoint: 'http://10.0.0.1:8000', allowHttp: true, \
             credentials: {{accessKeyId: AKIA, secretAccessKey: s3cr3t}}, encryption: {{key: '{KEY}'}}}}"
        ))
        .expect("YAML");
        assert_eq!(yaml, expected);
        assert_eq!(serde_yaml::from_str::<PoolFile>(&file.to_yaml()).expect("reads back"), file);
    }

    #[test]
    fn a_file_shows_no_secret_when_printed() {
        let access = data(&[("accessKeyId", "AKIA"), ("secretAccessKey", "s3cr3t")]);
        let key = data(&[("key", KEY)]);
        let file = PoolFile::build(
            "s3://b/p",
            Some(&UserSecret { name: "w", data: &access }),
            Some(&UserSecret { name: "k", data: &key }),
        )
        .expect("a file");
        let shown = format!("{file:?}");
        assert!(!shown.contains("s3cr3t") && !shown.contains("AKIA") && !shown.contains(KEY), "{shown}");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_without_its_value() {
        let build = |url: &str, entries: &[(&str, &str)]| {
            PoolFile::build(url, Some(&UserSecret { name: "w", data: &data(entries) }), None)
        };
        let missing = |key| Err(PoolFileError::MissingKey { secret: "w".to_owned(), key });
        assert_eq!(build("s3://b", &[("accessKeyId", "A")]), missing("secretAccessKey"));
        assert_eq!(build("s3://b", &[("secretAccessKey", "A")]), missing("accessKeyId"));
        assert_eq!(build("az://c", &[("account", "A")]), missing("accessKey"));
        assert!(build("s3://b", &[]).is_ok_and(|file| file.credentials.is_none()));
        assert_eq!(
            build("s3://b", &[("allowHttp", "yes")]),
            Err(PoolFileError::BadSwitch { secret: "w".to_owned() })
        );
        for bad in ["", "c2hvcnQ=", &"A".repeat(44), &KEY.replace("h8=", "h9=")] {
            let key = data(&[("key", bad)]);
            let refused = PoolFile::build("file:///d", None, Some(&UserSecret { name: "k", data: &key }));
            assert_eq!(refused, Err(PoolFileError::BadKey { secret: "k".to_owned() }), "{bad}");
        }
    }

    #[test]
    fn azure_and_google_credentials_keep_their_form() {
        let sas = data(&[("account", "acc"), ("sasToken", "sig")]);
        let file =
            PoolFile::build("az://c/p", Some(&UserSecret { name: "w", data: &sas }), None).expect("a file");
        let read: PoolFile = serde_yaml::from_str(&file.to_yaml()).expect("reads back");
        assert!(matches!(read.credentials, Some(Credentials::AzureSas { .. })));
        let google = data(&[("serviceAccountJson", "{}")]);
        let file = PoolFile::build("gs://b/p", Some(&UserSecret { name: "w", data: &google }), None)
            .expect("a file");
        let read: PoolFile = serde_yaml::from_str(&file.to_yaml()).expect("reads back");
        assert!(matches!(read.credentials, Some(Credentials::Google { .. })));
    }
}
