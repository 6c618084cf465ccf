//! The archive target, the policy, and what they have done so far.

use std::{fmt, time::Duration};

use holdfast_e2e::{
    Result, deployment,
    kind::Cluster,
    process::Cmd,
    report,
    stores::{Credentials, Location},
};
use serde_json::{Value, json};

const TARGET: &str = "offsite";
const POLICY: &str = "gold";
/// A schedule of once a minute, a snapshot, and a Job.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(420);

/// A point in the archive.
pub struct Point {
    /// The ArchivedSnapshot.
    pub name: String,
    /// The time of its contents.
    pub time: String,
    changed_bytes: u64,
    transferred_bytes: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} as of {}: {:.1} MB changed, {:.1} MB sent",
            self.name,
            self.time,
            self.changed_bytes as f64 / 1e6,
            self.transferred_bytes as f64 / 1e6
        )
    }
}

/// Makes an encrypted target and a policy that archives every minute.
pub fn apply(cluster: &Cluster, namespace: &str, archive: &Location) -> Result<()> {
    report::step("kubectl apply: an encrypted ArchiveTarget and a SnapshotPolicy", || {
        let key = Cmd::new("sh").args(["-c", "head -c 32 /dev/urandom | base64 --wrap=0"]).read()?;
        let mut objects = vec![secret("offsite-key", json!({"key": key}))];
        let mut target = json!({
            "apiVersion": "holdfast.storage/v1alpha1",
            "kind": "ArchiveTarget",
            "metadata": {"name": TARGET},
            "spec": {
                "url": archive.url,
                "encryption": {"keySecretName": "offsite-key"},
                "namespaceSelector": {},
            },
        });
        if let Some(credentials) = credentials(archive) {
            for role in ["writer", "reader"] {
                objects.push(secret(&format!("offsite-{role}"), credentials.clone()));
                target["spec"][format!("{role}SecretName")] = json!(format!("offsite-{role}"));
            }
        }
        objects.extend([target, policy(namespace)]);
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())
    })
}

fn secret(name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": deployment::NAMESPACE},
        "stringData": data,
    })
}

fn credentials(location: &Location) -> Option<Value> {
    let Some(Credentials::S3 { access_key_id, secret_access_key }) = &location.credentials else {
        return None;
    };
    Some(json!({
        "accessKeyId": access_key_id,
        "secretAccessKey": secret_access_key,
        "endpoint": location.endpoint,
        "region": location.region,
        "allowHttp": location.allow_http.to_string(),
    }))
}

fn policy(namespace: &str) -> Value {
    json!({
        "apiVersion": "holdfast.storage/v1alpha1",
        "kind": "SnapshotPolicy",
        "metadata": {"name": POLICY, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": "pg"}},
            "volumeSnapshotClassName": "holdfast",
            "schedules": [{"name": "minutely", "cron": "* * * * *", "startingDeadline": "1h"}],
            "retention": {"hourly": 24, "daily": 7},
            "archive": {
                "targetName": TARGET,
                "schedules": ["minutely"],
                "retention": {"daily": 30, "monthly": 12},
            },
            "objectives": {"localRPO": "1h", "archiveRPO": "1h"},
        },
    })
}

/// Waits for a complete point of the database that is newer than `time`, and returns the newest.
pub fn archived_after(cluster: &Cluster, namespace: &str, time: &str) -> Result<Point> {
    cluster.until("an archived point is complete", ARCHIVE_LIMIT, &["archivedsnapshots"], |points| {
        let ours = points.iter().filter(|point| point["spec"]["source"]["namespace"] == namespace);
        let complete = ours.filter(|point| point["status"]["phase"] == "Complete");
        complete
            .filter_map(point)
            .filter(|point| point.time.as_str() > time)
            .max_by(|a, b| a.time.cmp(&b.time))
    })
}

fn point(object: &Value) -> Option<Point> {
    let progress = &object["status"]["progress"];
    Some(Point {
        name: object["metadata"]["name"].as_str()?.into(),
        time: object["spec"]["pointInTime"].as_str()?.into(),
        changed_bytes: progress["changedBytes"].as_u64().unwrap_or(0),
        transferred_bytes: progress["transferredBytes"].as_u64().unwrap_or(0),
    })
}

/// Prints what a user asks first: is it safe?
pub fn show_status(cluster: &Cluster, namespace: &str) -> Result<()> {
    let tables = [
        vec!["get", "snapshotpolicies,volumesnapshots", "--namespace", namespace],
        vec!["get", "archivetargets,archivedsnapshots", "--output=wide"],
    ];
    for arguments in tables {
        println!("{}\n", cluster.kubectl().args(arguments).read()?);
    }
    Ok(())
}
