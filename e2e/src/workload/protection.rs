//! Protection of a namespace's claims: an archive target, a policy, and the points that they lead to.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use crate::{
    Result, deployment,
    kind::Cluster,
    process::Cmd,
    stores::{Credentials, Location},
};

const POLICY: &str = "gold";
/// A schedule of once a minute, a snapshot, and a Job.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(420);
const HYDRATE_LIMIT: Duration = Duration::from_secs(900);
const DELETE_LIMIT: Duration = Duration::from_secs(180);

/// A target, and a policy that archives the claims of one application in one namespace to it, every minute.
#[derive(Debug, Clone, Copy)]
pub struct Protection<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    /// The claims' label `app`.
    app: &'a str,
    /// The ArchiveTarget.
    target: &'a str,
}

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

/// What of a volume has been copied back from an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hydration {
    /// Bytes that are in the volume's own pool.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

impl<'a> Protection<'a> {
    /// Makes the encrypted target and the policy.
    pub fn apply(
        cluster: &'a Cluster,
        namespace: &'a str,
        app: &'a str,
        target: &'a str,
        archive: &Location,
    ) -> Result<Self> {
        let protection = Protection { cluster, namespace, app, target };
        let key = Cmd::new("sh").args(["-c", "head -c 32 /dev/urandom | base64 --wrap=0"]).read()?;
        let mut objects = vec![secret(&format!("{target}-key"), json!({"key": key}))];
        let mut object = json!({
            "apiVersion": "holdfast.storage/v1alpha1",
            "kind": "ArchiveTarget",
            "metadata": {"name": target},
            "spec": {
                "url": archive.url,
                "encryption": {"keySecretName": format!("{target}-key")},
                "namespaceSelector": {},
            },
        });
        if let Some(credentials) = credentials(archive) {
            for role in ["writer", "reader"] {
                objects.push(secret(&format!("{target}-{role}"), credentials.clone()));
                object["spec"][format!("{role}SecretName")] = json!(format!("{target}-{role}"));
            }
        }
        objects.extend([object, protection.policy()]);
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        Ok(protection)
    }

    fn policy(&self) -> Value {
        json!({
            "apiVersion": "holdfast.storage/v1alpha1",
            "kind": "SnapshotPolicy",
            "metadata": {"name": POLICY, "namespace": self.namespace},
            "spec": {
                "selector": {"matchLabels": {"app": self.app}},
                "volumeSnapshotClassName": "holdfast",
                "schedules": [{"name": "minutely", "cron": "* * * * *", "startingDeadline": "1h"}],
                "retention": {"hourly": 24, "daily": 7},
                "archive": {
                    "targetName": self.target,
                    "schedules": ["minutely"],
                    "retention": {"daily": 30, "monthly": 12},
                },
                "objectives": {"localRPO": "1h", "archiveRPO": "1h"},
            },
        })
    }

    /// Waits for a complete point that is newer than `time`, and returns the newest.
    pub fn archived_after(&self, time: &str) -> Result<Point> {
        let what = "an archived point is complete";
        self.cluster.until(what, ARCHIVE_LIMIT, &["archivedsnapshots"], |points| {
            let ours = points.iter().filter(|point| point["spec"]["source"]["namespace"] == self.namespace);
            let complete = ours.filter(|point| point["status"]["phase"] == "Complete");
            complete
                .filter_map(point)
                .filter(|point| point.time.as_str() > time)
                .max_by(|a, b| a.time.cmp(&b.time))
        })
    }

    /// How far a restored claim is, if it is one.
    pub fn hydration(&self, claim: &str) -> Result<Option<Hydration>> {
        Ok(self.find_hydration(&self.cluster.list(&["archivedsnapshots"])?, claim))
    }

    /// Waits until all of a restored claim has been copied back.
    pub fn wait_until_hydrated(&self, claim: &str) -> Result<()> {
        self.cluster.until("the volume is whole", HYDRATE_LIMIT, &["archivedsnapshots"], |points| {
            let Hydration { done_bytes, total_bytes } = self.find_hydration(points, claim)?;
            (total_bytes > 0 && done_bytes >= total_bytes).then_some(())
        })
    }

    fn find_hydration(&self, points: &[Value], claim: &str) -> Option<Hydration> {
        let restores = points.iter().filter_map(|point| point["status"]["restores"].as_array()).flatten();
        let mut ours = restores.filter(|r| r["namespace"] == self.namespace && r["claimName"] == claim);
        let restore = ours.next()?;
        Some(Hydration {
            done_bytes: restore["hydratedBytes"].as_u64()?,
            total_bytes: restore["totalBytes"].as_u64()?,
        })
    }

    /// Stops the policy. Its points stay.
    pub fn delete_policy(&self) -> Result<()> {
        self.cluster
            .kubectl()
            .args(["delete", "snapshotpolicy", POLICY, "--namespace", self.namespace])
            .run()?;
        Ok(())
    }

    /// Deletes the target, which waits for volumes that still read from it. What is in the archive stays.
    pub fn delete_target(&self) -> Result<()> {
        self.cluster
            .kubectl()
            .args(["delete", "archivetarget", self.target])
            .arg(format!("--timeout={}s", DELETE_LIMIT.as_secs()))
            .limit(DELETE_LIMIT * 2)
            .run()?;
        Ok(())
    }
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

fn point(object: &Value) -> Option<Point> {
    let progress = &object["status"]["progress"];
    Some(Point {
        name: object["metadata"]["name"].as_str()?.into(),
        time: object["spec"]["pointInTime"].as_str()?.into(),
        changed_bytes: progress["changedBytes"].as_u64().unwrap_or(0),
        transferred_bytes: progress["transferredBytes"].as_u64().unwrap_or(0),
    })
}
