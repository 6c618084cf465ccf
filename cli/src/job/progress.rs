//! Telling how far a Job is: `GET /progress` for the operator, `GET /metrics` for Prometheus.

use std::net::SocketAddr;

use axum::routing::get;
use axum::{Json, Router};
use holdfast_engine::archive::Progress;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::JobError;

/// Serves the progress that the returned sender is told, as long as the process lives. Without an address it is only
/// kept.
pub async fn serve(address: Option<SocketAddr>) -> Result<watch::Sender<Progress>, JobError> {
    let (sender, _) = watch::channel(Progress::default());
    let Some(address) = address else { return Ok(sender) };
    let listener = TcpListener::bind(address).await.map_err(|reason| JobError::Listen { address, reason })?;
    let (json, text) = (sender.subscribe(), sender.subscribe());
    let routes = Router::new()
        .route("/progress", get(async move || Json(as_json(*json.borrow()))))
        .route("/metrics", get(async move || as_metrics(*text.borrow())));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::warn!(%error, "the progress is not served any more");
        }
    });
    Ok(sender)
}

fn as_json(progress: Progress) -> serde_json::Value {
    serde_json::json!({
        "changedBytes": progress.changed_bytes,
        "transferredBytes": progress.transferred_bytes,
        "scannedBytes": progress.scanned_bytes,
        "totalBytes": progress.total_bytes,
    })
}

fn as_metrics(progress: Progress) -> String {
    let Progress { changed_bytes, transferred_bytes, scanned_bytes, total_bytes } = progress;
    let all = [
        ("changed", "Bytes of blocks that differ from the point before.", changed_bytes),
        ("transferred", "Bytes that went to or came from the target.", transferred_bytes),
        ("scanned", "Bytes of the source looked at.", scanned_bytes),
        ("total", "Bytes of the source.", total_bytes),
    ];
    all.iter()
        .map(|(name, help, value)| {
            let name = format!("holdfast_job_{name}_bytes");
            format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_progress_is_served_as_it_changes() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let progress = serve(Some(free)).await.unwrap();
        assert!(ask(free, "/progress").await.contains(r#""changedBytes":0"#));
        progress.send_modify(|progress| progress.changed_bytes = 4096);
        assert!(ask(free, "/progress").await.contains(r#""changedBytes":4096"#));
        assert!(ask(free, "/metrics").await.contains("holdfast_job_changed_bytes 4096"));
    }
}
