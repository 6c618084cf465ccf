//! Questions to drivers and Jobs over HTTP on the pod network: which pools are loaded, how far a copy is.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use thiserror::Error;

use holdfast_api::archived::Progress;

/// An answer is small; a longer one is not what was asked for.
const MAX_BODY_BYTES: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{url}: {why}")]
pub struct ProbeError {
    /// Who was asked.
    pub url: String,
    /// What happened.
    pub why: String,
}

/// A pool that a driver has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LoadedPool {
    /// The name of its file.
    pub name: String,
    /// The pool's identity.
    pub id: String,
    /// What it is for.
    pub kind: PoolKind,
}

/// Something that befell a volume on a node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Its own id.
    pub id: String,
    /// The volume's handle.
    pub volume: String,
    /// What happened, as the reason of an event.
    pub reason: String,
    /// The same for a person.
    pub message: String,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// What a pool is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// Live volumes.
    Pool,
    /// Archives.
    Target,
}

/// Asks drivers and Jobs.
#[async_trait]
pub trait Probe: Send + Sync {
    /// The pools that the driver with that address (`ip:port`) has loaded.
    async fn pools(&self, address: &str) -> Result<Vec<LoadedPool>, ProbeError>;

    /// What befell volumes on the node of the driver with that address (`ip:port`).
    async fn incidents(&self, address: &str) -> Result<Vec<Incident>, ProbeError>;

    /// How far the Job with that address (`ip:port`) is.
    async fn progress(&self, address: &str) -> Result<Progress, ProbeError>;
}

/// The real one.
pub struct HttpProbe {
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Default for HttpProbe {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        Self { client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector) }
    }
}

#[derive(Deserialize)]
struct Pools {
    pools: Vec<LoadedPool>,
}

#[derive(Deserialize)]
struct Incidents {
    incidents: Vec<Incident>,
}

impl HttpProbe {
    async fn get<T: serde::de::DeserializeOwned>(&self, url: String) -> Result<T, ProbeError> {
        let failed = |why: String| ProbeError { url: url.clone(), why };
        let uri = url.parse().map_err(|error| failed(format!("not an address: {error}")))?;
        let answer = async {
            let response = self.client.get(uri).await.map_err(|error| failed(error.to_string()))?;
            if !response.status().is_success() {
                return Err(failed(format!("answered {}", response.status())));
            }
            let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| failed(error.to_string()))
        };
        let body = tokio::time::timeout(TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(failed("no answer in time".to_owned())))?;
        serde_json::from_slice(&body).map_err(|error| failed(format!("not the expected answer: {error}")))
    }
}

#[async_trait]
impl Probe for HttpProbe {
    async fn pools(&self, address: &str) -> Result<Vec<LoadedPool>, ProbeError> {
        let answer: Pools = self.get(format!("http://{address}/pools")).await?;
        Ok(answer.pools)
    }

    async fn incidents(&self, address: &str) -> Result<Vec<Incident>, ProbeError> {
        let answer: Incidents = self.get(format!("http://{address}/incidents")).await?;
        Ok(answer.incidents)
    }

    async fn progress(&self, address: &str) -> Result<Progress, ProbeError> {
        self.get(format!("http://{address}/progress")).await
    }
}

/// `ip:port`, with an IPv6 address in brackets.
pub fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Json;
    use axum::routing::get;
    use serde_json::json;

    async fn serve(router: axum::Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn drivers_and_jobs_answer_in_the_documented_form() {
        let router = axum::Router::new()
            .route(
                "/pools",
                get(|| async {
                    Json(json!({"pools": [{"name": "offsite", "id": "7f3a", "kind": "target"}]}))
                }),
            )
            .route(
                "/incidents",
                get(|| async {
                    Json(json!({"incidents": [{
                        "id": "a1", "volume": "p-v", "reason": "WritesDropped", "message": "gone", "timeMs": 7,
                    }]}))
                }),
            )
            .route("/progress", get(|| async { Json(json!({"changedBytes": 10, "transferredBytes": 4})) }));
        let address = serve(router).await;
        let probe = HttpProbe::default();
        assert_eq!(
            probe.pools(&address).await,
            Ok(vec![LoadedPool {
                name: "offsite".to_owned(),
                id: "7f3a".to_owned(),
                kind: PoolKind::Target
            }])
        );
        let told = probe.incidents(&address).await.expect("told");
        assert_eq!((told[0].reason.as_str(), told[0].time_ms), ("WritesDropped", 7));
        assert_eq!(probe.progress(&address).await, Ok(Progress { changed_bytes: 10, transferred_bytes: 4 }));
    }

    #[tokio::test]
    async fn a_wrong_answer_is_an_error_that_names_the_place() {
        let address = serve(axum::Router::new().route("/pools", get(|| async { "hello" }))).await;
        let probe = HttpProbe::default();
        let error = probe.pools(&address).await.expect_err("not JSON");
        assert!(error.url.contains(&address) && error.why.contains("not the expected answer"), "{error}");
        let error = probe.progress(&address).await.expect_err("404");
        assert!(error.why.contains("404"), "{error}");
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        assert_eq!(address("10.0.0.1", 9809), "10.0.0.1:9809");
        assert_eq!(address("fd00::1", 9809), "[fd00::1]:9809");
    }
}
