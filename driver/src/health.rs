//! The driver's HTTP endpoints: liveness, the loaded pools, metrics.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::incidents::{Incident, Incidents};
use crate::metrics::Metrics;

/// What a pool is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PoolKind {
    /// A StorageClass can name it.
    Pool,
    /// Archives lie in it.
    Target,
}

/// A pool that this process can use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadedPool {
    /// Its local name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What it is used for.
    pub kind: PoolKind,
}

#[derive(Debug, Serialize)]
struct Pools {
    pools: Vec<LoadedPool>,
}

/// Tells which pools are loaded now.
pub type ListPools = Arc<dyn Fn() -> Vec<LoadedPool> + Send + Sync>;

#[derive(Debug, Serialize)]
struct Latest {
    incidents: Vec<Incident>,
}

/// `/healthz` says that the process runs, and depends on nothing else: a store that is down must not have the process
/// restarted, which would help nobody. `/pools` lists the loaded pools and targets; the operator reads it to learn
/// when all nodes know a target. `/incidents` tells what befell volumes.
pub fn health(pools: ListPools, incidents: Incidents) -> Router {
    let latest = || async move { Json(Latest { incidents: incidents.latest() }) };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/pools", get(|State(pools): State<ListPools>| async move { Json(Pools { pools: pools() }) }))
        .with_state(pools)
        .route("/incidents", get(latest))
}

/// `/metrics`.
pub fn metrics(metrics: Metrics) -> Router {
    Router::new().route("/metrics", get(encoded)).with_state(metrics)
}

async fn encoded(State(metrics): State<Metrics>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// An HTTP address cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve HTTP on {address}: {source}")]
pub struct HttpError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// Serves `router` on `address` until `end`.
pub async fn serve(
    address: SocketAddr,
    router: Router,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), HttpError> {
    let failed = |source| HttpError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    axum::serve(listener, router).with_graceful_shutdown(end).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use holdfast_engine::env::Env;
    use holdfast_engine::ids::{PoolId, VolumeId};
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    use super::*;
    use crate::handles::VolumeHandle;

    async fn answer(router: Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("valid");
        let response = router.oneshot(request).await.expect("answers");
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.expect("has a body");
        (status, String::from_utf8(body.into()).expect("text"))
    }

    #[tokio::test]
    async fn loaded_pools_are_listed_as_the_operator_reads_them() {
        let pools: ListPools = Arc::new(|| {
            vec![LoadedPool { name: "default".into(), id: "07".repeat(16), kind: PoolKind::Pool }]
        });
        let health = || health(Arc::clone(&pools), Incidents::default());
        let (status, body) = answer(health(), "/pools").await;
        assert_eq!(status, StatusCode::OK);
        let id = "07".repeat(16);
        assert_eq!(body, format!(r#"{{"pools":[{{"name":"default","id":"{id}","kind":"pool"}}]}}"#));
        assert_eq!(answer(health(), "/healthz").await, (StatusCode::OK, "ok\n".into()));
    }

    #[tokio::test]
    async fn incidents_are_told_as_the_operator_reads_them() {
        let incidents = Incidents::default();
        let volume = VolumeHandle { pool: PoolId([1; 16]), volume: VolumeId([2; 16]) };
        incidents.writes_dropped(&Env::system(), volume, 4096, "it was detached");
        let (status, body) = answer(health(Arc::new(Vec::new), incidents), "/incidents").await;
        assert_eq!(status, StatusCode::OK);
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let told = &body["incidents"][0];
        assert_eq!((&told["volume"], &told["reason"]), (&volume.to_string().into(), &"WritesDropped".into()));
        assert!(told["id"].is_string() && told["message"].is_string() && told["timeMs"].is_u64(), "{told}");
    }

    #[tokio::test]
    async fn metrics_carry_the_prefix() {
        let counted = Metrics::default();
        counted.register(|registry| registry.register("things", "Things", Counter::<u64>::default()));
        let (status, body) = answer(super::metrics(counted), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("holdfast_things_total 0"), "{body}");
    }
}
