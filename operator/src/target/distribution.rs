//! Whether all drivers have loaded a target, and the nudge that makes the kubelet bring it at once.

use futures::StreamExt;
use holdfast_api::annotations;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;

use crate::api;
use crate::conditions::Verdict;
use crate::context::Context;
use crate::error::Error;
use crate::probe::{PoolKind, address};

/// The pods that load targets.
const DRIVERS: &str = "app.kubernetes.io/name=holdfast,app.kubernetes.io/component in (controller,node)";
/// The name of the port where drivers say which pools they have loaded.
const HEALTH_PORT_NAME: &str = "health";
/// That port, where a pod does not name one.
const HEALTH_PORT: u16 = 9809;
/// Drivers asked at once.
const PARALLEL: usize = 16;
/// Drivers named in a message.
const NAMED_IN_MESSAGE: usize = 5;

/// The drivers' pods that run.
pub async fn drivers(ctx: &Context) -> Result<Vec<Pod>, Error> {
    let mut pods = api::list(&ctx.own::<Pod>(), DRIVERS).await?;
    pods.retain(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
    });
    Ok(pods)
}

/// Touches the drivers' pods, so that the kubelet refreshes what it projects into them.
pub async fn nudge(ctx: &Context, generation: &str) -> Result<(), Error> {
    let pods = ctx.own::<Pod>();
    let change = json!({"metadata": {"annotations": {annotations::TARGETS_GENERATION: generation}}});
    for pod in drivers(ctx).await? {
        match api::merge(&pods, &pod.name_any(), &change).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether all drivers have loaded the target.
pub async fn verdict(ctx: &Context, target: &str, pool_id: &str) -> Result<Verdict, Error> {
    let pods = drivers(ctx).await?;
    let total = pods.len();
    let asked: Vec<_> = pods.into_iter().map(|pod| ask(ctx, pod, target, pool_id)).collect();
    let answers: Vec<Option<String>> =
        futures::stream::iter(asked).buffer_unordered(PARALLEL).collect().await;
    let mut missing: Vec<String> = answers.into_iter().flatten().collect();
    missing.sort();
    Ok(judge(total, &missing))
}

fn judge(total: usize, missing: &[String]) -> Verdict {
    if total == 0 {
        return Verdict::no("NoDrivers", "no driver is running");
    }
    if missing.is_empty() {
        return Verdict::yes("AllDriversLoaded", format!("all {total} drivers have loaded it"));
    }
    let mut named = missing[..missing.len().min(NAMED_IN_MESSAGE)].join(", ");
    if missing.len() > NAMED_IN_MESSAGE {
        named.push_str(", …");
    }
    let message = format!("{} of {total} drivers have not loaded it yet: {named}", missing.len());
    Verdict::no("Distributing", message)
}

/// The driver's name, if it has not loaded the target.
async fn ask(ctx: &Context, pod: Pod, target: &str, pool_id: &str) -> Option<String> {
    (!has_loaded(ctx, &pod, target, pool_id).await).then(|| driver_name(&pod))
}

async fn has_loaded(ctx: &Context, pod: &Pod, target: &str, pool_id: &str) -> bool {
    let Some(address) = health_address(pod) else { return false };
    match ctx.probe.pools(&address).await {
        Ok(pools) => pools
            .iter()
            .any(|pool| pool.kind == PoolKind::Target && pool.name == target && pool.id == pool_id),
        Err(error) => {
            tracing::debug!(%error, "a driver does not say which pools it has loaded");
            false
        }
    }
}

/// Where a driver answers questions.
pub fn health_address(pod: &Pod) -> Option<String> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref())?;
    Some(address(ip, health_port(pod)))
}

fn health_port(pod: &Pod) -> u16 {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let mut ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
    let named = ports.find(|port| port.name.as_deref() == Some(HEALTH_PORT_NAME));
    named.and_then(|port| u16::try_from(port.container_port).ok()).unwrap_or(HEALTH_PORT)
}

/// The part of Holdfast that a pod is.
pub fn component(pod: &Pod) -> Option<&str> {
    pod.labels().get("app.kubernetes.io/component").map(String::as_str)
}

/// The node, which tells a person more than the pod's name does.
pub fn driver_name(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    match component(pod) {
        Some("node") => node.unwrap_or_else(|| pod.name_any()),
        _ => pod.name_any(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_names_who_is_behind() {
        assert_eq!(judge(0, &[]).reason, "NoDrivers");
        assert_eq!(judge(3, &[]).status, "True");
        let behind = judge(3, &["worker-1".to_owned()]);
        assert_eq!(behind.message, "1 of 3 drivers have not loaded it yet: worker-1");
        let many: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        assert!(judge(9, &many).message.ends_with("n4, …"));
    }
}
