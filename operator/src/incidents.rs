//! Events about volumes, made of what node plugins tell: they talk to no API server themselves.
//!
//! # Expected flow
//! The leader asks every node plugin from time to time. An incident of a volume becomes an event of its claim.
//!
//! # Guarantees
//! An incident becomes one event, whoever leads and however often it is seen: the event carries its id.
//!
//! # Caveats
//! A node plugin that is restarted forgets its incidents. One that nobody has asked for by then is only in its log.

use std::collections::BTreeSet;

use futures::StreamExt;
use holdfast_api::DRIVER;
use holdfast_api::jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::core::ObjectMeta;

use crate::api;
use crate::context::Context;
use crate::error::Error;
use crate::probe::Incident;
use crate::target::distribution::{component, driver_name, drivers, health_address};

/// Node plugins asked at once.
const PARALLEL: usize = 16;

/// Makes events of the incidents that are not among `told`, which then holds all that are known.
pub async fn publish(ctx: &Context, told: &mut BTreeSet<String>) -> Result<(), Error> {
    let found = incidents(ctx).await?;
    let new: Vec<_> = found.iter().filter(|(_, incident)| !told.contains(&incident.id)).collect();
    if !new.is_empty() {
        let volumes = api::list(&ctx.everywhere::<PersistentVolume>(), "").await?;
        for (node, incident) in new {
            match volumes.iter().find_map(|volume| claim_of(volume, &incident.volume)) {
                Some(claim) => {
                    let namespace = claim.namespace.clone().unwrap_or_default();
                    let event = event(ctx, claim, node, incident);
                    api::create(&ctx.within::<Event>(&namespace), &event).await?;
                }
                None => tracing::warn!(node, ?incident, "an incident of a volume that no claim has"),
            }
        }
    }
    *told = found.into_iter().map(|(_, incident)| incident.id).collect();
    Ok(())
}

/// What all node plugins tell, with their nodes.
async fn incidents(ctx: &Context) -> Result<Vec<(String, Incident)>, Error> {
    let pods = drivers(ctx).await?.into_iter().filter(|pod| component(pod) == Some("node"));
    let asked: Vec<_> = pods.map(|pod| ask(ctx, pod)).collect();
    let told: Vec<Vec<_>> = futures::stream::iter(asked).buffer_unordered(PARALLEL).collect().await;
    Ok(told.concat())
}

/// What one tells. If it does not answer, it is asked again the next time.
async fn ask(ctx: &Context, pod: Pod) -> Vec<(String, Incident)> {
    let node = driver_name(&pod);
    let Some(address) = health_address(&pod) else { return Vec::new() };
    match ctx.probe.incidents(&address).await {
        Ok(incidents) => incidents.into_iter().map(|incident| (node.clone(), incident)).collect(),
        Err(error) => {
            tracing::debug!(%error, "a node plugin does not tell its incidents");
            Vec::new()
        }
    }
}

/// The claim of a volume, if it is the one with that handle.
fn claim_of(volume: &PersistentVolume, handle: &str) -> Option<ObjectReference> {
    let spec = volume.spec.as_ref()?;
    let csi = spec.csi.as_ref().filter(|csi| csi.driver == DRIVER && csi.volume_handle == handle);
    let claim = csi.and(spec.claim_ref.as_ref())?;
    Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        name: claim.name.clone(),
        namespace: claim.namespace.clone(),
        uid: claim.uid.clone(),
        ..ObjectReference::default()
    })
}

fn event(ctx: &Context, claim: ObjectReference, node: &str, incident: &Incident) -> Event {
    let time = i64::try_from(incident.time_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("holdfast-{}", incident.id)),
            namespace: claim.namespace.clone(),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(time.unwrap_or_else(|| ctx.now()))),
        reporting_controller: Some(api::FIELD_MANAGER.to_owned()),
        reporting_instance: Some(ctx.settings.identity.clone()),
        action: Some("Detach".to_owned()),
        reason: Some(incident.reason.clone()),
        type_: Some("Warning".to_owned()),
        note: Some(ctx.note(&format!("node {node}: {}", incident.message))),
        regarding: Some(claim),
        ..Event::default()
    }
}
