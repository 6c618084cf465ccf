//! The Jobs that read and write targets: `holdfast job archive | expire | verify` in Holdfast's namespace. Pure.
//!
//! # Guarantees
//! - A Job gets the pools, its own target's file and no more: no API token, no capabilities, a read-only root.
//! - Its name says what it is for, so starting it twice starts it once.
//! - It is not root, unless it must read a directory of the host, which belongs to root.

use std::collections::BTreeMap;

use holdfast_api::{ArchiveTarget, ArchivedSnapshot, labels, names};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HostPathVolumeSource, KeyToPath,
    LocalObjectReference, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile, SecretVolumeSource,
    SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use crate::api;
use crate::context::Settings;
use crate::target::files;

/// Where Jobs tell how far they are.
pub const PROGRESS_PORT: u16 = 9808;
/// How long an ended Job stays for people to look at.
const TTL_SECONDS: i32 = 3600;
/// Tries within one Job; the operator starts another Job later.
const BACKOFF_LIMIT: i32 = 2;
/// A Job that hangs is ended; a resumed one goes on where it was.
const DEADLINE_SECONDS: i64 = 24 * 3600;
const POOLS_DIR: &str = "/etc/holdfast/pools";
const TARGETS_DIR: &str = "/etc/holdfast/targets";
/// An unprivileged user; the image has no other use for the number.
const USER: i64 = 65532;

/// What a Job does.
#[derive(Debug, Clone, Copy)]
pub enum Work<'a> {
    /// Copies a local snapshot to the target; `attempt` counts the Jobs for it.
    Archive {
        /// The point to make.
        point: &'a ArchivedSnapshot,
        /// Which Job for it.
        attempt: u32,
    },
    /// Deletes a point whose promise has ended.
    Expire {
        /// The point.
        point: &'a ArchivedSnapshot,
        /// Its handle.
        handle: &'a str,
    },
    /// Reads all points back and compares checksums.
    Verify {
        /// The scheduled time, in seconds since 1970, which tells the runs apart.
        slot: i64,
    },
}

impl Work<'_> {
    /// The label that says what a Job does.
    pub const fn action(&self) -> &'static str {
        match self {
            Self::Archive { .. } => "archive",
            Self::Expire { .. } => "expire",
            Self::Verify { .. } => "verify",
        }
    }

    /// The Job's name.
    pub fn job_name(&self, target: &str) -> String {
        match self {
            Self::Archive { point, attempt } => {
                names::job(self.action(), &point.name_any(), u64::from(*attempt))
            }
            Self::Expire { point, .. } => names::job(self.action(), &point.name_any(), 0),
            Self::Verify { slot } => names::job(self.action(), target, slot.unsigned_abs()),
        }
    }

    fn arguments(&self, target: &str) -> Vec<String> {
        let mut args: Vec<String> = vec!["job".to_owned(), self.action().to_owned()];
        let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        let file = format!("{TARGETS_DIR}/{}", files::key(target));
        let progress = format!("0.0.0.0:{PROGRESS_PORT}");
        match self {
            Self::Archive { point, .. } => {
                let origin = point.spec.origin.as_ref().map(|origin| origin.snapshot_handle.clone());
                let source =
                    serde_json::to_string(&point.spec.source).expect("plain strings always serialise");
                flag("pools-dir", POOLS_DIR.to_owned());
                flag("target-file", file);
                flag("source-handle", origin.unwrap_or_default());
                flag("point", point.name_any());
                flag("source-json", source);
                flag("point-in-time", point.spec.point_in_time.0.to_string());
                if let Some(expires_at) = &point.spec.expires_at {
                    flag("expires-at", expires_at.0.to_string());
                }
                flag("progress-addr", progress);
            }
            Self::Expire { handle, .. } => {
                flag("target-file", file);
                flag("handle", (*handle).to_owned());
            }
            Self::Verify { .. } => {
                flag("target-file", file);
                flag("progress-addr", progress);
            }
        }
        args
    }

    /// The object whose end is also the Job's.
    fn owner(&self, target: &ArchiveTarget) -> Option<OwnerReference> {
        match self {
            Self::Archive { point, .. } | Self::Expire { point, .. } => point.controller_owner_ref(&()),
            Self::Verify { .. } => target.controller_owner_ref(&()),
        }
    }

    fn labels(&self, target: &str) -> BTreeMap<String, String> {
        let mut all = BTreeMap::from([
            (labels::MANAGED_BY.to_owned(), labels::OPERATOR.to_owned()),
            ("app.kubernetes.io/name".to_owned(), "holdfast".to_owned()),
            ("app.kubernetes.io/component".to_owned(), "job".to_owned()),
            (labels::ACTION.to_owned(), self.action().to_owned()),
            (labels::TARGET.to_owned(), target.to_owned()),
        ]);
        if let Self::Archive { point, .. } | Self::Expire { point, .. } = self {
            all.insert(labels::ARCHIVED_SNAPSHOT.to_owned(), point.name_any());
            all.insert(labels::NAMESPACE.to_owned(), point.spec.source.namespace.clone());
            all.insert(labels::CLAIM.to_owned(), names::label_value(&point.spec.source.claim_name));
        }
        all
    }
}

/// Builds the Job for some work on a target.
pub fn job(settings: &Settings, target: &ArchiveTarget, work: Work<'_>) -> Job {
    let name = target.name_any();
    let all_labels = work.labels(&name);
    let mut metadata = api::managed(Some(&settings.namespace), work.job_name(&name), []);
    metadata.labels = Some(all_labels.clone());
    metadata.owner_references = work.owner(target).map(|owner| vec![owner]);
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(BACKOFF_LIMIT),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            ttl_seconds_after_finished: Some(TTL_SECONDS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(all_labels), ..ObjectMeta::default() }),
                spec: Some(pod(settings, target, work)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn pod(settings: &Settings, target: &ArchiveTarget, work: Work<'_>) -> PodSpec {
    let (volumes, mounts) = volumes(settings, target, work);
    let secrets = settings.image_pull_secrets.iter();
    PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: Some(secrets.map(|name| LocalObjectReference { name: name.clone() }).collect()),
        containers: vec![Container {
            name: "holdfast".to_owned(),
            image: Some(settings.image.clone()),
            image_pull_policy: settings.image_pull_policy.clone(),
            command: Some(vec!["holdfast".to_owned()]),
            args: Some(work.arguments(&target.name_any())),
            env: Some(environment(target)),
            ports: Some(vec![ContainerPort {
                name: Some("progress".to_owned()),
                container_port: i32::from(PROGRESS_PORT),
                ..ContainerPort::default()
            }]),
            resources: Some(resources()),
            security_context: Some(security(settings.pool_host_path.is_some())),
            // The last lines of the log are what the condition shows when the Job fails.
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(mounts),
            ..Container::default()
        }],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn environment(target: &ArchiveTarget) -> Vec<EnvVar> {
    let limit = target.spec.limits.and_then(|limits| limits.bytes_per_second);
    let variable =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), ..EnvVar::default() };
    limit.map(|limit| variable("HOLDFAST_BYTES_PER_SECOND", limit.bytes().to_string())).into_iter().collect()
}

fn resources() -> ResourceRequirements {
    let quantities = |list: &[(&str, &str)]| {
        list.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
    };
    ResourceRequirements {
        requests: Some(quantities(&[("cpu", "100m"), ("memory", "256Mi")])),
        limits: Some(quantities(&[("memory", "1Gi")])),
        ..ResourceRequirements::default()
    }
}

fn security(as_root: bool) -> SecurityContext {
    SecurityContext {
        run_as_non_root: Some(!as_root),
        run_as_user: Some(if as_root { 0 } else { USER }),
        run_as_group: Some(if as_root { 0 } else { USER }),
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

fn volumes(settings: &Settings, target: &ArchiveTarget, work: Work<'_>) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    };
    let secret = |name: &str, secret: &str, keys: Option<Vec<KeyToPath>>| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: keys,
            // Readable for the unprivileged user, who is in no group of the files.
            default_mode: Some(0o444),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let file = files::key(&target.name_any());
    let only = KeyToPath { key: file.clone(), path: file, mode: None };
    let scratch = EmptyDirVolumeSource { size_limit: Some(Quantity("1Gi".to_owned())), medium: None };
    let mut volumes = vec![
        secret("target", files::WRITER_SECRET, Some(vec![only])),
        Volume { name: "scratch".to_owned(), empty_dir: Some(scratch), ..Volume::default() },
    ];
    let mut mounts = vec![mount("target", TARGETS_DIR, true), mount("scratch", "/tmp", false)];
    if matches!(work, Work::Archive { .. }) {
        volumes.push(secret("pools", &settings.pools_secret, None));
        mounts.push(mount("pools", POOLS_DIR, true));
    }
    if let Some(path) = &settings.pool_host_path {
        volumes.push(Volume {
            name: "pool-directory".to_owned(),
            host_path: Some(HostPathVolumeSource {
                path: path.clone(),
                type_: Some("DirectoryOrCreate".to_owned()),
            }),
            ..Volume::default()
        });
        mounts.push(mount("pool-directory", path, false));
    }
    (volumes, mounts)
}

/// How a Job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Waiting or at work.
    Running,
    /// It ended well.
    Succeeded,
    /// It gave up.
    Failed,
}

/// How the Job stands, by its conditions.
pub fn state(job: &Job) -> JobState {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is = |type_: &str| conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
    if is("Complete") {
        JobState::Succeeded
    } else if is("Failed") {
        JobState::Failed
    } else {
        JobState::Running
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn settings(host_path: Option<&str>) -> Settings {
        Settings {
            namespace: "holdfast-system".to_owned(),
            image: "holdfast:0.1.0".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            pool_host_path: host_path.map(str::to_owned),
            pools_secret: "holdfast-pools".to_owned(),
            target_interval: std::time::Duration::from_secs(300),
            identity: "operator-0".to_owned(),
        }
    }

    fn target() -> ArchiveTarget {
        serde_json::from_value(json!({
            "metadata": {"name": "offsite", "uid": "t-uid"},
            "spec": {
                "url": "s3://backups/prod", "namespaceSelector": {},
                "limits": {"bytesPerSecond": "100Mi"},
            },
        }))
        .expect("a target")
    }

    fn point() -> ArchivedSnapshot {
        serde_json::from_value(json!({
            "metadata": {"name": "offsite-7f3a9c", "uid": "a-uid"},
            "spec": {
                "targetName": "offsite",
                "pointInTime": "2026-11-23T05:00:00Z",
                "expiresAt": "2026-12-23T05:00:00Z",
                "source": {
                    "clusterUID": "0b6e", "namespace": "shop", "claimName": "data-pg-2",
                    "volumeMode": "Filesystem", "fsType": "ext4",
                },
                "origin": {"volumeSnapshotName": "gold-1", "uid": "s-uid", "snapshotHandle": "p-v-s"},
            },
        }))
        .expect("a point")
    }

    fn as_json(job: &Job) -> Value {
        serde_json::to_value(job).expect("a Job serialises")
    }

    #[test]
    fn an_archive_job_runs_the_agreed_command() {
        let point = point();
        let job = as_json(&job(&settings(None), &target(), Work::Archive { point: &point, attempt: 1 }));
        let container = &job["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["command"], json!(["holdfast"]));
        assert_eq!(
            container["args"],
            json!([
                "job",
                "archive",
                "--pools-dir",
                "/etc/holdfast/pools",
                "--target-file",
                "/etc/holdfast/targets/offsite.yaml",
                "--source-handle",
                "p-v-s",
                "--point",
                "offsite-7f3a9c",
                "--source-json",
                "{\"clusterUID\":\"0b6e\",\"namespace\":\"shop\",\"claimName\":\"data-pg-2\",\
                 \"volumeMode\":\"Filesystem\",\"fsType\":\"ext4\"}",
                "--point-in-time",
                "2026-11-23T05:00:00Z",
                "--expires-at",
                "2026-12-23T05:00:00Z",
                "--progress-addr",
                "0.0.0.0:9808",
            ])
        );
        assert_eq!(container["env"], json!([{"name": "HOLDFAST_BYTES_PER_SECOND", "value": "104857600"}]));
        assert_eq!(job["metadata"]["ownerReferences"][0]["uid"], "a-uid");
        assert_eq!(job["metadata"]["namespace"], "holdfast-system");
    }

    #[test]
    fn a_job_holds_no_more_rights_than_it_needs() {
        let point = point();
        let job = as_json(&job(&settings(None), &target(), Work::Archive { point: &point, attempt: 1 }));
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        let target = &pod["volumes"][0]["secret"];
        assert_eq!(target["secretName"], "holdfast-targets-writer");
        assert_eq!(target["items"], json!([{"key": "offsite.yaml", "path": "offsite.yaml"}]));
        assert!(job["spec"]["ttlSecondsAfterFinished"].is_i64());
    }

    #[test]
    fn a_directory_pool_is_mounted_at_its_path_and_read_as_root() {
        let point = point();
        let work = Work::Expire { point: &point, handle: "h" };
        let job = as_json(&job(&settings(Some("/var/lib/holdfast-pool")), &target(), work));
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["volumes"][2]["hostPath"]["path"], "/var/lib/holdfast-pool");
        assert_eq!(pod["containers"][0]["volumeMounts"][2]["mountPath"], "/var/lib/holdfast-pool");
        assert_eq!(pod["containers"][0]["securityContext"]["runAsUser"], 0);
        assert_eq!(
            pod["containers"][0]["args"],
            json!(["job", "expire", "--target-file", "/etc/holdfast/targets/offsite.yaml", "--handle", "h"])
        );
    }

    #[test]
    fn names_tell_attempts_and_slots_apart() {
        let point = point();
        let name = |attempt| Work::Archive { point: &point, attempt }.job_name("offsite");
        assert_eq!(name(1), name(1));
        assert_ne!(name(1), name(2));
        assert_ne!(
            Work::Verify { slot: 1 }.job_name("offsite"),
            Work::Verify { slot: 2 }.job_name("offsite")
        );
    }
}
