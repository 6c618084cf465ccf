//! What the answers of an S3 service are taken for: each says whether an object is there, may be, or never will be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use bytes::Bytes;
use holdfast_engine::store::{PoolConfig, Store, StoreError};

/// A service that gives every request this answer, for as long as the test runs.
fn answering(status: &'static str, body: &'static str) -> std::sync::Arc<dyn Store> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut length = 0;
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap_or(0) > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            stream.by_ref().take(length).read_to_end(&mut Vec::new()).unwrap();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    let yaml = format!(
        "{{url: 's3://bucket/pool', endpoint: 'http://{address}', allowHttp: true, \
         credentials: {{accessKeyId: ID, secretAccessKey: SESAME}}}}"
    );
    PoolConfig::parse(&yaml).unwrap().connect(&[]).unwrap()
}

async fn put(status: &'static str, body: &'static str) -> StoreError {
    answering(status, body).put_if_absent("k", Bytes::from_static(b"x")).await.unwrap_err()
}

#[tokio::test]
async fn an_object_exists_only_if_the_condition_failed() {
    assert!(matches!(put("412 Precondition Failed", "").await, StoreError::AlreadyExists { .. }));
}

#[tokio::test]
async fn a_conflict_is_not_taken_for_an_object_that_exists() {
    let conflict = put("409 Conflict", "<Error><Code>ConditionalRequestConflict</Code></Error>").await;
    assert!(matches!(conflict, StoreError::Unavailable { .. }), "{conflict:?}");
}

#[tokio::test]
async fn a_missing_bucket_is_not_a_missing_object() {
    let body = "<Error><Code>NoSuchBucket</Code></Error>";
    for refused in [
        put("404 Not Found", body).await,
        answering("404 Not Found", body).list("volumes/", None, 1).await.unwrap_err(),
    ] {
        assert!(matches!(&refused, StoreError::Refused { .. }), "{refused:?}");
        assert!(refused.to_string().contains("bucket"), "{refused}");
    }
    let object = answering("404 Not Found", "").get("k").await;
    assert!(matches!(object, Err(StoreError::NotFound { .. })), "{object:?}");
}

#[tokio::test]
async fn a_request_that_can_never_succeed_is_not_tried_again() {
    for (status, body) in [("400 Bad Request", "InvalidArgument"), ("413 Content Too Large", "")] {
        let error = put(status, body).await;
        assert!(matches!(error, StoreError::Refused { .. }), "{status}: {error:?}");
    }
    let slow = put("400 Bad Request", "<Error><Code>RequestTimeout</Code></Error>").await;
    assert!(matches!(slow, StoreError::Unavailable { .. }), "{slow:?}");
}

#[tokio::test]
async fn a_failing_service_may_have_done_it_and_a_denial_has_not() {
    for status in ["500 Internal Server Error", "503 Slow Down", "429 Too Many Requests"] {
        let error = put(status, "").await;
        assert!(matches!(error, StoreError::Unavailable { .. }), "{status}: {error:?}");
    }
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let error = put(status, "").await;
        assert!(matches!(error, StoreError::Denied { .. }), "{status}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("SESAME"));
    }
}
