//! What the driver counts, and where it is read.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Upper bounds of the buckets for durations, in seconds: from a lookup to a check of a large file system.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    method: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

/// The driver's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    calls: Family<Outcome, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let calls = Family::default();
        let seconds = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let mut registry = Registry::with_prefix("holdfast");
        registry.register("rpcs", "Calls answered, by method and gRPC code", calls.clone());
        registry.register("rpc_seconds", "How long calls took, by method", seconds.clone());
        Self { registry: Arc::new(Mutex::new(registry)), calls, seconds }
    }
}

impl Metrics {
    /// Adds metrics of another part.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All metrics, in the text format of OpenMetrics.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }

    fn count(&self, path: &str, code: Code, seconds: f64) {
        // A method that does not exist could have any name.
        let method = if code == Code::Unimplemented { "other" } else { path.trim_start_matches('/') };
        self.calls.get_or_create(&Outcome { method: method.into(), code: format!("{code:?}") }).inc();
        self.seconds.get_or_create(&Method { method: method.into() }).observe(seconds);
    }
}

/// Counts the calls of a gRPC server.
impl<S> Layer<S> for Metrics {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { metrics: self.clone(), inner }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    metrics: Metrics,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let metrics = self.metrics.clone();
        let path = request.uri().path().to_owned();
        let begun = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // A refusal has its code in the headers; a message is followed by OK in the trailers.
            let code = answer
                .headers()
                .get("grpc-status")
                .map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
            metrics.count(&path, code, begun.elapsed().as_secs_f64());
            Ok(answer)
        })
    }
}
