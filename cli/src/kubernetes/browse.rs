//! `kubectl holdfast browse`: look into a point and take single files out of it, without restoring it.
//!
//! A pod in the caller's namespace mounts a volume made from the point, read-only, and a command runs in it. The
//! volume is the pod's own (a generic ephemeral volume), so both go together; and the pod ends by itself, should
//! nobody be left to delete it. A volume mounts before its data have been copied, so this takes as long for a
//! terabyte as for a megabyte.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use clap::ArgGroup;
use holdfast_api::archived::VolumeMode;
use holdfast_api::{ArchivedSnapshot, HumanDuration};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess, DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::restore::{self, Source};
use super::{ClusterError, connect, doing};
use crate::error::CliError;
use crate::output::working;

/// Where the pod has the volume, and where commands start.
const MOUNT_PATH: &str = "/volume";
const CONTAINER: &str = "browse";
/// The Deployment whose image is taken.
const OPERATOR: &str = "holdfast-operator";

/// What to look into, and how.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).args(["claim", "point", "snapshot"]).multiple(true))]
pub struct Args {
    /// The claim as it was called when it was archived
    #[arg(conflicts_with = "snapshot")]
    claim: Option<String>,
    #[command(flatten)]
    source: Source,
    /// A VolumeSnapshot of the namespace, instead of an archived point
    #[arg(long, conflicts_with_all = ["point", "at", "from_namespace"])]
    snapshot: Option<String>,
    /// The namespace in which the pod runs; the context's own if none is named
    #[arg(short, long)]
    namespace: Option<String>,
    /// The StorageClass of the pod's volume
    #[arg(long, default_value = "holdfast")]
    storage_class: String,
    /// The image that the pod runs, with a shell and `sleep`; that of Holdfast if none is named
    #[arg(long)]
    image: Option<String>,
    /// Where Holdfast is installed
    #[arg(long, default_value = "holdfast-system")]
    holdfast_namespace: String,
    /// The user that the command runs as; the files' modes decide what it may read
    #[arg(long, value_name = "UID", default_value_t = 0)]
    run_as_user: u32,
    /// How long to wait until the volume is mounted
    #[arg(long, default_value = "3m")]
    timeout: HumanDuration,
    /// After this time the pod ends, whatever has become of this command
    #[arg(long, default_value = "1h")]
    time_limit: HumanDuration,
    /// What to run in the volume's root directory, its output is this command's; a shell if nothing is given
    #[arg(last = true)]
    command: Vec<String>,
}

/// What a volume is made from.
struct Origin {
    snapshot: String,
    /// The least size that the volume may have.
    size: String,
}

/// Runs the command in the volume and takes everything away again.
pub async fn run(args: Args) -> Result<(), CliError> {
    let client = connect().await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    browse(client, &args, &namespace).await.map_err(CliError::from)
}

async fn browse(client: Client, args: &Args, namespace: &str) -> Result<(), ClusterError> {
    let image = match &args.image {
        Some(image) => image.clone(),
        None => installed_image(client.clone(), &args.holdfast_namespace).await?,
    };
    let origin = origin(client.clone(), args, namespace).await?;
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let pod = pod(args, &origin, &image);
    let created = pods.create(&PostParams::default(), &pod).await.map_err(doing("create the pod"))?;
    let name = created.name_any();
    let outcome = tokio::select! {
        outcome = use_pod(&pods, &name, args) => outcome,
        _ = tokio::signal::ctrl_c() => Err(ClusterError::Interrupted),
    };
    // Nothing in the pod has to end in order.
    let deleted = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
    outcome?;
    deleted.map(drop).map_err(doing(format!("delete pod {name} in namespace {namespace}")))
}

/// The image of the operator that is installed in `namespace`.
async fn installed_image(client: Client, namespace: &str) -> Result<String, ClusterError> {
    let unknown = || ClusterError::NoImage { namespace: namespace.to_owned() };
    let deployments: Api<Deployment> = Api::namespaced(client, namespace);
    let operator = deployments.get(OPERATOR).await.map_err(|_| unknown())?;
    let template = operator.spec.and_then(|spec| spec.template.spec).ok_or_else(unknown)?;
    template.containers.into_iter().find_map(|container| container.image).ok_or_else(unknown)
}

/// The snapshot that was named, or the one by which the namespace asks for an archived point.
async fn origin(client: Client, args: &Args, namespace: &str) -> Result<Origin, ClusterError> {
    let resource = restore::snapshot_resource();
    if let Some(name) = &args.snapshot {
        let snapshots = Api::<kube::api::DynamicObject>::namespaced_with(client, namespace, &resource);
        let snapshot =
            snapshots.get(name).await.map_err(doing(format!("read VolumeSnapshot {name} in {namespace}")))?;
        let size = snapshot.data["status"]["restoreSize"].as_str();
        let size = size.ok_or_else(|| ClusterError::NotReady { snapshot: name.clone() })?;
        return Ok(Origin { snapshot: name.clone(), size: size.to_owned() });
    }
    let point = restore::find(client.clone(), &args.source, args.claim.as_deref(), namespace).await?;
    is_file_system(&point)?;
    let size =
        restore::restore_size(&point).ok_or_else(|| ClusterError::NoSize { point: point.name_any() })?;
    let snapshot = restore::ask_for(client, &point, namespace).await?;
    Ok(Origin { snapshot, size: size.to_string() })
}

fn is_file_system(point: &ArchivedSnapshot) -> Result<(), ClusterError> {
    match point.spec.source.volume_mode {
        VolumeMode::Filesystem => Ok(()),
        VolumeMode::Block => Err(ClusterError::NoFiles { point: point.name_any() }),
    }
}

/// A pod that sleeps beside a volume made from the snapshot.
fn pod(args: &Args, origin: &Origin, image: &str) -> Pod {
    let is_root = args.run_as_user == 0;
    // Root without this capability reads no more than any user.
    let capabilities: Value =
        if is_root { json!({"drop": ["ALL"], "add": ["DAC_READ_SEARCH"]}) } else { json!({"drop": ["ALL"]}) };
    serde_json::from_value(json!({
        "metadata": {"generateName": "holdfast-browse-", "labels": {"app.kubernetes.io/name": "holdfast-browse"}},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": args.time_limit.to_std().as_secs().max(1),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{
                "name": CONTAINER,
                "image": image,
                "command": ["sleep", "infinity"],
                "workingDir": MOUNT_PATH,
                "securityContext": {
                    "runAsUser": args.run_as_user,
                    "runAsNonRoot": !is_root,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": capabilities,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "resources": {
                    "requests": {"cpu": "10m", "memory": "32Mi"},
                    "limits": {"cpu": "1", "memory": "256Mi"},
                },
                "volumeMounts": [{"name": "volume", "mountPath": MOUNT_PATH, "readOnly": true}],
            }],
            "volumes": [{"name": "volume", "ephemeral": {"volumeClaimTemplate": {"spec": {
                "storageClassName": args.storage_class,
                // The file system may have to replay its journal before it can be read.
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": origin.size}},
                "dataSource": {
                    "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": origin.snapshot,
                },
            }}}}],
        },
    }))
    .expect("a pod with these fields is one")
}

async fn use_pod(pods: &Api<Pod>, name: &str, args: &Args) -> Result<(), ClusterError> {
    {
        let _working = working(format!("waiting until pod {name} has the volume mounted"));
        let running = await_condition(pods.clone(), name, conditions::is_pod_running());
        let waited = tokio::time::timeout(args.timeout.to_std(), running).await;
        waited
            .map_err(|_| ClusterError::NotMounted { pod: name.to_owned(), waited: args.timeout.to_string() })?
            .map_err(|error| ClusterError::Watch {
                what: format!("pod {name}"),
                reason: error.to_string(),
            })?;
    }
    let is_shell = args.command.is_empty();
    let has_terminal = is_shell && io::stdin().is_terminal() && io::stdout().is_terminal();
    let parameters = AttachParams::default()
        .container(CONTAINER)
        .stdin(is_shell)
        .stdout(true)
        .stderr(!has_terminal)
        .tty(has_terminal);
    let command = if is_shell { vec!["sh".to_owned()] } else { args.command.clone() };
    let process = pods
        .exec(name, command.clone(), &parameters)
        .await
        .map_err(doing(format!("run {} in pod {name}", command.join(" "))))?;
    let status = relay(process, has_terminal).await?;
    is_success(status, &command.join(" "))
}

/// Connects the process in the pod to this one's standard streams until it ends.
async fn relay(mut process: AttachedProcess, has_terminal: bool) -> Result<Option<Status>, ClusterError> {
    let stream = |source| ClusterError::Stream { source };
    let status = process.take_status();
    let _raw = if has_terminal { Some(super::terminal::Raw::enter().map_err(stream)?) } else { None };
    let input = process.stdin().map(|mut stdin| {
        tokio::spawn(async move {
            let mut typed = typed();
            while let Some(bytes) = typed.recv().await {
                stdin.write_all(&bytes).await?;
            }
            stdin.shutdown().await
        })
    });
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let output = async {
        match stdout {
            Some(mut stdout) => pass(&mut stdout, io::stdout()).await,
            None => Ok(()),
        }
    };
    let complaints = async {
        match stderr {
            Some(mut stderr) => pass(&mut stderr, io::stderr()).await,
            None => Ok(()),
        }
    };
    let copied = tokio::try_join!(output, complaints);
    if let Some(input) = input {
        input.abort();
    }
    copied.map_err(stream)?;
    match status {
        // The status follows the end of the streams at once.
        Some(status) => Ok(tokio::time::timeout(Duration::from_secs(10), status).await.ok().flatten()),
        None => Ok(None),
    }
}

/// What comes in at standard input. A thread reads it, which ends with the process: nothing has to wait for a key.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Copies a stream of the pod to one of this process.
async fn pass(from: &mut (impl AsyncRead + Unpin), mut to: impl io::Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.flush();
        }
        to.write_all(&buffer[..length])?;
        to.flush()?;
    }
}

fn is_success(status: Option<Status>, command: &str) -> Result<(), ClusterError> {
    match status {
        Some(status) if status.status.as_deref() == Some("Success") => Ok(()),
        other => Err(ClusterError::Command {
            command: command.to_owned(),
            reason: other.and_then(|status| status.message).unwrap_or_else(|| "the connection ended".into()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from([&["browse"], line].concat()).map(|line| line.args)
    }

    #[test]
    fn a_claim_a_point_or_a_snapshot_has_to_be_named() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["data", "--snapshot", "cut"]).is_err());
        assert_eq!(parse(&["data", "--", "ls", "-l"]).unwrap().command, ["ls", "-l"]);
        assert!(parse(&["--point", "p"]).is_ok());
        assert_eq!(parse(&["--snapshot", "cut"]).unwrap().snapshot.as_deref(), Some("cut"));
    }

    #[test]
    fn the_pod_mounts_a_volume_of_its_own_read_only_and_ends_by_itself() {
        let args = parse(&["data", "--run-as-user", "999", "--time-limit", "10m"]).unwrap();
        let origin = Origin { snapshot: "point".into(), size: "10Gi".into() };
        let spec = serde_json::to_value(pod(&args, &origin, "holdfast:1").spec.unwrap()).unwrap();
        assert_eq!(spec["activeDeadlineSeconds"], 600);
        let container = &spec["containers"][0];
        assert_eq!(container["volumeMounts"][0]["readOnly"], true);
        assert_eq!(container["securityContext"]["runAsNonRoot"], true);
        assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
        let claim = &spec["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"];
        assert_eq!(claim["dataSource"]["name"], "point");
        assert_eq!(claim["resources"]["requests"]["storage"], "10Gi");
    }

    #[test]
    fn a_command_that_fails_is_an_error() {
        let failed = Status {
            status: Some("Failure".into()),
            message: Some("command terminated with non-zero exit code".into()),
            ..Status::default()
        };
        let error = is_success(Some(failed), "ls /nowhere").unwrap_err();
        assert!(error.to_string().contains("non-zero exit code"), "{error}");
        assert!(is_success(None, "ls").is_err());
        assert!(
            is_success(Some(Status { status: Some("Success".into()), ..Status::default() }), "ls").is_ok()
        );
    }
}
