//! The certificates of the calls from controller to nodes: makes the Secrets if they are absent, and rotates them.
//!
//! # Guarantees
//! - A Secret that the operator did not make (no `managed-by` label of its own) is never touched: cert-manager or an
//!   administrator may bring their own.
//! - At any time each side trusts what the other shows: see [`authority`].
//! - Writes carry the resource version, so two replicas cannot mix the halves of two pairs.

pub mod authority;

use std::collections::BTreeMap;

use holdfast_api::jiff::Timestamp;
use holdfast_api::labels;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::api;
use crate::certificates::authority::{Authority, CertificateError, Pair, Role, new_leaf};
use crate::context::Context;
use crate::error::{Doing, Error};

/// The authority's Secret.
pub const CA_SECRET: &str = "holdfast-ca";
/// The nodes' Secret, whose certificate names `holdfast-node`.
pub const NODE_SECRET: &str = "holdfast-node-tls";
/// The controller's Secret, whose certificate names `holdfast-controller`.
pub const CONTROLLER_SECRET: &str = "holdfast-controller-tls";

/// The leaves: Secret, name in the certificate, and what it is for.
const LEAVES: [(&str, &str, Role); 2] =
    [(NODE_SECRET, "holdfast-node", Role::Server), (CONTROLLER_SECRET, "holdfast-controller", Role::Client)];

/// Makes and rotates what is due.
pub async fn ensure(ctx: &Context) -> Result<(), Error> {
    let secrets: Api<Secret> = ctx.own();
    let now = ctx.now();
    let Some(authority) = ensure_authority(&secrets, ctx, now).await? else { return Ok(()) };
    for (secret, name, role) in LEAVES {
        ensure_leaf(&secrets, ctx, &authority, secret, name, role, now).await?;
    }
    Ok(())
}

/// The authority as it is now; `None` when somebody else provides it, and the leaves with it.
async fn ensure_authority(
    secrets: &Api<Secret>,
    ctx: &Context,
    now: Timestamp,
) -> Result<Option<Authority>, Error> {
    let bad = |error: CertificateError| certificate_error(CA_SECRET, &error);
    let Some(secret) = api::get(secrets, CA_SECRET).await? else {
        let authority = Authority::first(now).map_err(bad)?;
        write(secrets, None, new_secret(ctx, CA_SECRET, authority_data(&authority))).await?;
        return Ok(Some(authority));
    };
    if !is_ours(&secret) {
        return Ok(None);
    }
    let before = read_authority(&secret).map_err(bad)?;
    let after = before.clone().rotate(now).map_err(bad)?;
    if after != before {
        write(secrets, Some(&secret), new_secret(ctx, CA_SECRET, authority_data(&after))).await?;
        tracing::info!("the certificate authority took a step of its rotation");
    }
    Ok(Some(after))
}

async fn ensure_leaf(
    secrets: &Api<Secret>,
    ctx: &Context,
    authority: &Authority,
    secret_name: &str,
    name: &str,
    role: Role,
    now: Timestamp,
) -> Result<(), Error> {
    let bad = |error: CertificateError| certificate_error(secret_name, &error);
    let before = api::get(secrets, secret_name).await?;
    if before.as_ref().is_some_and(|secret| !is_ours(secret)) {
        return Ok(());
    }
    let kept = match before.as_ref().and_then(read_pair) {
        Some(pair) if !authority.must_renew(&pair.certificate, now).unwrap_or(true) => Some(pair),
        _ => None,
    };
    let pair = match kept {
        Some(pair) => pair,
        None => new_leaf(&authority.current, name, role, now).map_err(bad)?,
    };
    let data = BTreeMap::from([
        ("tls.crt".to_owned(), ByteString(pair.certificate.into_bytes())),
        ("tls.key".to_owned(), ByteString(pair.key.into_bytes())),
        ("ca.crt".to_owned(), ByteString(authority.bundle().into_bytes())),
    ]);
    if before.as_ref().is_some_and(|secret| secret.data.as_ref() == Some(&data)) {
        return Ok(());
    }
    write(secrets, before.as_ref(), new_secret(ctx, secret_name, data)).await
}

fn certificate_error(secret: &str, error: &CertificateError) -> Error {
    Error::Certificate { secret: secret.to_owned(), why: error.to_string() }
}

fn is_ours(secret: &Secret) -> bool {
    secret.labels().get(labels::MANAGED_BY).is_some_and(|value| value == labels::OPERATOR)
}

fn entry(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

fn read_pair(secret: &Secret) -> Option<Pair> {
    Some(Pair { certificate: entry(secret, "tls.crt")?, key: entry(secret, "tls.key")? })
}

fn read_authority(secret: &Secret) -> Result<Authority, CertificateError> {
    let current =
        read_pair(secret).ok_or_else(|| CertificateError::Read("tls.crt or tls.key is absent".to_owned()))?;
    let next = entry(secret, "next.crt").zip(entry(secret, "next.key"));
    Ok(Authority {
        current,
        next: next.map(|(certificate, key)| Pair { certificate, key }),
        previous: entry(secret, "previous.crt"),
    })
}

fn authority_data(authority: &Authority) -> BTreeMap<String, ByteString> {
    let mut texts = vec![
        ("tls.crt", authority.current.certificate.clone()),
        ("tls.key", authority.current.key.clone()),
        ("ca.crt", authority.bundle()),
    ];
    if let Some(next) = &authority.next {
        texts.push(("next.crt", next.certificate.clone()));
        texts.push(("next.key", next.key.clone()));
    }
    if let Some(previous) = &authority.previous {
        texts.push(("previous.crt", previous.clone()));
    }
    texts.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()
}

fn new_secret(ctx: &Context, name: &str, data: BTreeMap<String, ByteString>) -> Secret {
    Secret {
        metadata: api::managed(Some(&ctx.settings.namespace), name.to_owned(), []),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

/// Creates or replaces a Secret, failing if it changed since `before` was read.
async fn write(secrets: &Api<Secret>, before: Option<&Secret>, mut secret: Secret) -> Result<(), Error> {
    let name = secret.name_any();
    let result = match before {
        None => secrets.create(&PostParams::default(), &secret).await,
        Some(before) => {
            secret.metadata.resource_version = before.resource_version();
            secrets.replace(&name, &PostParams::default(), &secret).await
        }
    };
    result.map(drop).doing(|| format!("write Secret {name}"))
}
