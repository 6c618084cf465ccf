//! Looking at the cluster's objects and waiting for what they say.

use std::time::Duration;

use serde_json::Value;

use crate::{
    Error, Result,
    interrupt::{self, Seen},
};

use super::Cluster;

const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Cluster {
    /// What `kubectl get ARGUMENTS --output=json` shows; nothing if the object does not exist.
    pub fn get(&self, arguments: &[&str]) -> Result<Option<Value>> {
        let text =
            self.kubectl().arg("get").args(arguments).args(["--ignore-not-found", "--output=json"]).read()?;
        if text.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|_| Error::Answer { from: format!("kubectl get {}", arguments.join(" ")), answer: text })
    }

    /// The items of a list.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let list = self.get(arguments)?.unwrap_or_default();
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until `judge` finds in a list what it looks for.
    pub fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        arguments: &[&str],
        judge: impl Fn(&[Value]) -> Option<T>,
    ) -> Result<T> {
        interrupt::until(what, limit, LOOK_EVERY, || {
            let items = self.list(arguments)?;
            Ok(match judge(&items) {
                Some(found) => Seen::Reached(found),
                None => Seen::NotYet(statuses(&items)),
            })
        })
    }

    /// What a person would look at first when something does not work.
    pub fn diagnosis(&self) -> String {
        let sections: [(&str, &[&str]); 5] = [
            ("pods", &["get", "pods", "--all-namespaces", "--output=wide"]),
            (
                "claims and snapshots",
                &["get", "pv,pvc,volumeattachments,volumesnapshots", "--all-namespaces"],
            ),
            ("protection", &["get", "snapshotpolicies,archivetargets,archivedsnapshots", "--all-namespaces"]),
            ("warnings", &["get", "events", "--all-namespaces", "--field-selector=type=Warning"]),
            (
                "Holdfast's logs",
                &[
                    "logs",
                    "--namespace=holdfast-system",
                    "--selector=app.kubernetes.io/name=holdfast",
                    "--all-containers",
                    "--prefix",
                    "--tail=40",
                    "--max-log-requests=50",
                ],
            ),
        ];
        let mut text = String::new();
        for (title, arguments) in sections {
            let output = self.kubectl().args(arguments).cleanup().output();
            let shown =
                output.map_or_else(|error| error.to_string(), |o| format!("{}{}", o.stdout, o.stderr));
            text.push_str(&format!("-- {title}\n{shown}\n"));
        }
        text
    }
}

/// The names and statuses of objects, for an error.
fn statuses(items: &[Value]) -> String {
    let all = items.iter().map(|item| format!("{}: {}", item["metadata"]["name"], item["status"]));
    all.collect::<Vec<_>>().join("; ").chars().take(4000).collect()
}
