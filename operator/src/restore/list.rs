//! Who restores from a point, and how far their volumes have been copied back.
//!
//! The way from a point to its restores: contents that name it → their VolumeSnapshots → claims with one of these as
//! data source → the volume's handle → the engine's answer. A restore once seen stays listed until its claim is
//! gone, also when the user has deleted the VolumeSnapshot meanwhile, because the volume still reads the archive.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_api::archived::{MAX_LISTED_RESTORES, Restore};
use holdfast_api::{ArchiveTarget, ArchivedSnapshot, labels};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::api;
use crate::context::Context;
use crate::error::{Doing, Error};
use crate::pool_file::PoolFile;
use crate::snapshots::VolumeSnapshotContent;
use crate::target::files;

/// Between two looks while a volume is copied back.
const HYDRATING: Duration = Duration::from_secs(10);
/// Between two looks for new claims while a restore may still be asked for.
const ASKED_FOR: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The restores, those still copying back first.
    pub restores: Vec<Restore>,
    /// When to look again, if something may change by itself.
    pub look_again: Option<Duration>,
}

/// All restores of a point.
pub async fn restores(ctx: &Context, point: &ArchivedSnapshot) -> Result<Found, Error> {
    let selector = format!("{}={}", labels::ARCHIVED_SNAPSHOT, point.name_any());
    let contents = api::list(&ctx.everywhere::<VolumeSnapshotContent>(), &selector).await?;
    let recorded = point.status.as_ref().map(|status| status.restores.as_slice()).unwrap_or_default();
    if contents.is_empty() && recorded.is_empty() {
        return Ok(Found::default());
    }
    let mut claims: BTreeSet<(String, String)> =
        recorded.iter().map(|r| (r.namespace.clone(), r.claim_name.clone())).collect();
    for content in &contents {
        claims.extend(claims_of(ctx, content).await?);
    }
    let stores = stores(ctx, point).await?;
    let mut restores = Vec::new();
    for (namespace, claim_name) in claims {
        let before = recorded.iter().find(|r| r.namespace == namespace && r.claim_name == claim_name);
        if let Some(restore) = look(ctx, point, stores.as_ref(), &namespace, &claim_name, before).await? {
            restores.push(restore);
        }
    }
    restores.sort_by_key(|restore| !restore.needs_archive());
    let look_again = if restores.iter().any(Restore::needs_archive) {
        Some(HYDRATING)
    } else {
        (!contents.is_empty()).then_some(ASKED_FOR)
    };
    restores.truncate(MAX_LISTED_RESTORES);
    Ok(Found { restores, look_again })
}

/// The claims whose data source is the VolumeSnapshot of this content.
async fn claims_of(ctx: &Context, content: &VolumeSnapshotContent) -> Result<Vec<(String, String)>, Error> {
    let reference = &content.spec.volume_snapshot_ref;
    let (Some(namespace), Some(snapshot)) = (&reference.namespace, &reference.name) else {
        return Ok(Vec::new());
    };
    let claims = ctx.within::<PersistentVolumeClaim>(namespace);
    let list =
        claims.list(&ListParams::default()).await.doing(|| format!("list the claims of {namespace}"))?;
    let from_snapshot = |claim: &&PersistentVolumeClaim| {
        let spec = claim.spec.as_ref();
        let source = spec.and_then(|spec| spec.data_source.as_ref());
        source.is_some_and(|source| source.kind == "VolumeSnapshot" && source.name == *snapshot)
    };
    Ok(list.items.iter().filter(from_snapshot).map(|claim| (namespace.clone(), claim.name_any())).collect())
}

/// How far one restore is; `None` when the claim is gone.
async fn look(
    ctx: &Context,
    point: &ArchivedSnapshot,
    stores: Option<&Stores>,
    namespace: &str,
    claim_name: &str,
    before: Option<&Restore>,
) -> Result<Option<Restore>, Error> {
    let Some(claim) = api::get(&ctx.within::<PersistentVolumeClaim>(namespace), claim_name).await? else {
        return Ok(None);
    };
    let mut restore = before.cloned().unwrap_or_else(|| Restore {
        namespace: namespace.to_owned(),
        claim_name: claim_name.to_owned(),
        hydrated_bytes: 0,
        total_bytes: 0,
    });
    if before.is_some_and(|restore| !restore.needs_archive()) {
        return Ok(Some(restore));
    }
    let Some(volume_name) = claim.spec.and_then(|spec| spec.volume_name) else { return Ok(Some(restore)) };
    let volume = api::get(&ctx.everywhere::<PersistentVolume>(), &volume_name).await?;
    let handle = volume.and_then(|volume| Some(volume.spec?.csi?.volume_handle));
    let (Some(handle), Some(stores)) = (handle, stores) else { return Ok(Some(restore)) };
    // A store that does not answer leaves the last numbers: nothing is taken for done that is not known to be.
    match ctx.ask(ctx.store.hydration(&stores.pools, &stores.target, &handle, restore.total_bytes)).await {
        Ok(Some(progress)) => {
            restore.hydrated_bytes = progress.hydrated_bytes;
            restore.total_bytes = progress.total_bytes;
        }
        Ok(None) => {
            let size = point.status.as_ref().and_then(|status| status.restore_size).unwrap_or_default();
            restore.total_bytes = restore.total_bytes.max(size.bytes()).max(1);
            restore.hydrated_bytes = restore.total_bytes;
        }
        Err(error) => tracing::warn!(claim_name, namespace, %error, "hydration is not known"),
    }
    Ok(Some(restore))
}

/// Where a restored volume's data can be.
struct Stores {
    pools: Vec<PoolFile>,
    target: PoolFile,
}

/// The pools of live volumes and the point's target; `None` when the target cannot be reached, so that nothing can be
/// said about who needs it.
async fn stores(ctx: &Context, point: &ArchivedSnapshot) -> Result<Option<Stores>, Error> {
    let targets = ctx.everywhere::<ArchiveTarget>();
    let Some(target) = api::get(&targets, &point.spec.target_name).await? else { return Ok(None) };
    let Ok(target) = files::writer(ctx, &target).await? else { return Ok(None) };
    let secret = api::get(&ctx.own::<Secret>(), &ctx.settings.pools_secret).await?;
    let data = secret.and_then(|secret| secret.data).unwrap_or_default();
    let read = |(key, text): (&String, &k8s_openapi::ByteString)| {
        let name = key.strip_suffix(".yaml")?;
        let file = PoolFile::read(name, std::str::from_utf8(&text.0).ok()?);
        file.inspect_err(
            |error| tracing::warn!(secret = ctx.settings.pools_secret, key, %error, "no pool file"),
        )
        .ok()
    };
    Ok(Some(Stores { pools: data.iter().filter_map(read).collect(), target }))
}
