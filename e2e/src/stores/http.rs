//! The few requests that set a store up, made by curl, which signs them.

use std::time::Duration;

use crate::{
    Result,
    interrupt::{self, Seen},
    packages,
    process::{Cmd, Daemon},
};

/// The region that every store here is addressed with.
pub(super) const REGION: &str = "us-east-1";
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits until something answers HTTP, with whatever status, while the process that should do so runs.
pub(super) fn answers(endpoint: &str, server: &mut Daemon, limit: Duration) -> Result<()> {
    packages::ensure("talking to a store", &["curl"])?;
    interrupt::until(&format!("{endpoint} answers"), limit, LOOK_EVERY, || {
        server.check()?;
        let output = curl().arg(endpoint).output()?;
        Ok(if output.status.success() { Seen::Reached(()) } else { Seen::NotYet(output.stderr) })
    })
}

/// Makes a bucket in an S3 store. One that exists is fine.
pub(super) fn create_bucket(endpoint: &str, bucket: &str, key: &str, secret: &str) -> Result<()> {
    let output = curl()
        .args(["--config", "-", "--request", "PUT", "--header"])
        .arg(format!("x-amz-content-sha256: {EMPTY_SHA256}"))
        .args(["--aws-sigv4", &format!("aws:amz:{REGION}:s3"), "--write-out", "%{http_code}"])
        .arg(format!("{endpoint}/{bucket}"))
        .input(format!("user = \"{key}:{secret}\"\n"))
        .run()?;
    match output.stdout.trim() {
        "200" | "409" => Ok(()),
        status => {
            Err(crate::Error::Answer { from: format!("making bucket {bucket}"), answer: status.into() })
        }
    }
}

fn curl() -> Cmd {
    Cmd::new("curl")
        .args(["--silent", "--show-error", "--output", "/dev/null", "--noproxy", "*", "--max-time", "10"])
        .limit(REQUEST_LIMIT)
}
