//! Health and metrics over HTTP.
//!
//! `/healthz` fails when the election loop has stopped turning, so that the kubelet restarts a stuck process; it
//! depends on no other part. `/readyz` says whether the process has started; a standby replica is ready too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::error::Error;
use crate::metrics::Metrics;

/// How long the election may go without a turn.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// Signs of life.
#[derive(Clone)]
pub struct Health(Arc<Signs>);

struct Signs {
    start: Instant,
    last_turn_ms: AtomicU64,
    ready: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Signs {
            start: Instant::now(),
            last_turn_ms: AtomicU64::new(0),
            ready: AtomicBool::new(false),
        }))
    }
}

impl Health {
    /// The election loop turned.
    pub fn turn(&self) {
        let elapsed_ms = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_turn_ms.store(elapsed_ms, Ordering::Relaxed);
    }

    /// The process has started.
    pub fn set_ready(&self) {
        self.0.ready.store(true, Ordering::Relaxed);
    }

    fn is_alive(&self, now: Instant) -> bool {
        let last = self.0.start + Duration::from_millis(self.0.last_turn_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(last) < MAX_SILENCE
    }
}

fn status(good: bool) -> (StatusCode, &'static str) {
    if good { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ok\n") }
}

fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route(
            "/healthz",
            get(|State((health, _)): State<(Health, Metrics)>| async move {
                status(health.is_alive(Instant::now()))
            }),
        )
        .route(
            "/readyz",
            get(|State((health, _)): State<(Health, Metrics)>| async move {
                status(health.0.ready.load(Ordering::Relaxed))
            }),
        )
        .route(
            "/metrics",
            get(|State((_, metrics)): State<(Health, Metrics)>| async move {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], metrics.encode()).into_response()
            }),
        )
        .with_state((health, metrics))
}

/// Serves until the process ends.
pub async fn serve(address: &str, health: Health, metrics: Metrics) -> Result<(), Error> {
    let startup = |source| Error::Startup { action: format!("serve health on {address}"), source };
    // ":9809" means all addresses, as in Go programs.
    let bind = if address.starts_with(':') { format!("[::]{address}") } else { address.to_owned() };
    let listener = TcpListener::bind(&bind).await.map_err(startup)?;
    axum::serve(listener, router(health, metrics)).await.map_err(startup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    async fn code(router: &Router, path: &str) -> StatusCode {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        router.clone().oneshot(request).await.expect("infallible").status()
    }

    #[tokio::test]
    async fn a_replica_is_ready_once_started_and_always_serves_metrics() {
        let health = Health::default();
        let router = router(health.clone(), Metrics::default());
        assert_eq!(code(&router, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(code(&router, "/healthz").await, StatusCode::OK);
        health.set_ready();
        assert_eq!(code(&router, "/readyz").await, StatusCode::OK);
        assert_eq!(code(&router, "/metrics").await, StatusCode::OK);
    }

    #[test]
    fn an_election_that_stands_still_fails_the_liveness_probe() {
        let health = Health::default();
        health.turn();
        assert!(health.is_alive(Instant::now()));
        assert!(!health.is_alive(Instant::now() + MAX_SILENCE + Duration::from_secs(1)));
    }
}
