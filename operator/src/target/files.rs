//! The files of targets in Secrets: one Secret for nodes, with credentials that may only read, and one for the
//! controller and the Jobs, with those that may write. Each target is one key, `NAME.yaml`, in both.

use std::collections::BTreeMap;

use holdfast_api::ArchiveTarget;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::api;
use crate::context::Context;
use crate::error::{Doing, Error};
use crate::pool_file::{PoolFile, PoolFileError, UserSecret};

/// What nodes mount.
pub const READER_SECRET: &str = "holdfast-targets";
/// What the controller and Jobs mount.
pub const WRITER_SECRET: &str = "holdfast-targets-writer";

/// The key of a target in both Secrets.
pub fn key(target: &str) -> String {
    format!("{target}.yaml")
}

/// Why a target has no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The condition reason.
    pub reason: &'static str,
    /// A sentence that names the Secret and the key, never a value.
    pub message: String,
}

impl From<PoolFileError> for Trouble {
    fn from(error: PoolFileError) -> Self {
        Self { reason: "InvalidSecret", message: error.to_string() }
    }
}

/// The file with the writer's credentials; the inner error says what is wrong with the user's Secrets.
pub async fn writer(ctx: &Context, target: &ArchiveTarget) -> Result<Result<PoolFile, Trouble>, Error> {
    build(ctx, target, target.spec.writer_secret_name.as_deref()).await
}

/// The file with the reader's credentials.
pub async fn reader(ctx: &Context, target: &ArchiveTarget) -> Result<Result<PoolFile, Trouble>, Error> {
    build(ctx, target, target.spec.reader_secret_name.as_deref()).await
}

async fn build(
    ctx: &Context,
    target: &ArchiveTarget,
    access: Option<&str>,
) -> Result<Result<PoolFile, Trouble>, Error> {
    let secrets: Api<Secret> = ctx.own();
    let key = target.spec.encryption.as_ref().map(|encryption| encryption.key_secret_name.as_str());
    let mut data: BTreeMap<&str, BTreeMap<String, ByteString>> = BTreeMap::new();
    for name in access.into_iter().chain(key) {
        let Some(secret) = api::get(&secrets, name).await? else {
            let message = format!("there is no Secret {name} in namespace {}", ctx.settings.namespace);
            return Ok(Err(Trouble { reason: "SecretNotFound", message }));
        };
        data.insert(name, secret.data.unwrap_or_default());
    }
    let user_secret = |name| data.get(name).map(|data| UserSecret { name, data });
    let (access, key) = (access.and_then(user_secret), key.and_then(user_secret));
    Ok(PoolFile::build(&target.name_any(), &target.spec.url, access, key).map_err(Trouble::from))
}

/// Puts the target's file into a Secret. Whether the Secret changed.
pub async fn put(ctx: &Context, secret_name: &str, target: &str, file: &PoolFile) -> Result<bool, Error> {
    let secrets: Api<Secret> = ctx.own();
    let text = ByteString(file.text().as_bytes().to_vec());
    let key = key(target);
    let before = api::get(&secrets, secret_name).await?;
    if before.and_then(|secret| secret.data).is_some_and(|data| data.get(&key) == Some(&text)) {
        return Ok(false);
    }
    let secret = Secret {
        metadata: api::managed(Some(&ctx.settings.namespace), secret_name.to_owned(), []),
        data: Some(BTreeMap::from([(key, text)])),
        ..Secret::default()
    };
    // Each target owns its own key, so targets do not overwrite each other.
    let params = PatchParams::apply(&manager(target)).force();
    secrets
        .patch(secret_name, &params, &Patch::Apply(&secret))
        .await
        .doing(|| format!("write Secret {secret_name}"))?;
    Ok(true)
}

/// Takes the target's file out of both Secrets.
pub async fn remove(ctx: &Context, target: &str) -> Result<(), Error> {
    let secrets: Api<Secret> = ctx.own();
    for secret_name in [READER_SECRET, WRITER_SECRET] {
        let change = json!({"data": {key(target): null}});
        match api::merge(&secrets, secret_name, &change).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn manager(target: &str) -> String {
    format!("{}/{target}", api::FIELD_MANAGER)
}
