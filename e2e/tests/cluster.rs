//! A cluster comes up with what the scenarios build on, and goes without a trace.

use std::{
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use holdfast_e2e::{Error, images, kind::Cluster};

const NAME: &str = "holdfast-selftest";

fn pod(image: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: writer}}
spec:
  nodeName: {node}
  restartPolicy: Never
  containers:
  - name: writer
    image: {image}
    command: [sh, -c, 'postgres --version >/pool/version']
    securityContext: {{runAsUser: 0}}
    volumeMounts: [{{name: pool, mountPath: /pool}}]
  volumes:
  - {{name: pool, hostPath: {{path: /var/lib/holdfast-pool}}}}
"
    )
}

#[test]
#[ignore = "makes a Kubernetes cluster"]
fn a_cluster_runs_pods_on_a_shared_pool_and_leaves_nothing() -> Result<(), Error> {
    let cluster = Cluster::up(NAME)?;
    let engine = cluster.engine().clone();
    let [first, second] = cluster.workers();

    let postgres = images::postgres(&engine)?;
    cluster.load(&[&postgres])?;
    cluster.apply(&pod(&postgres, &second))?;
    cluster
        .kubectl()
        .args(["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/writer", "--timeout=90s"])
        .run()?;
    let version = fs::read_to_string(cluster.pool_directory().join("version")).expect("the pool is shared");
    assert!(version.starts_with("postgres (PostgreSQL) 15"), "{version}");

    let listener =
        TcpListener::bind((cluster.gateway()?, 0)).expect("the gateway is an address of this machine");
    let address = listener.local_addr().expect("a bound socket has an address");
    cluster
        .exec(&first)
        .args(["curl", "--silent", "--connect-timeout", "5", "--max-time", "1"])
        .arg(format!("telnet://{address}"))
        .output()?;
    listener.set_nonblocking(true).expect("sockets can be non-blocking");
    listener.accept().expect("the node has reached this machine");

    cluster.freeze(&first)?;
    let start = Instant::now();
    let frozen = cluster.exec(&first).arg("true").limit(Duration::from_secs(5)).run();
    assert!(frozen.is_err(), "a frozen node runs nothing");
    cluster.thaw(&first)?;
    cluster.exec(&first).arg("true").run()?;
    assert!(start.elapsed() < Duration::from_secs(60));

    let directory = cluster.kubeconfig();
    drop(cluster);
    assert!(!directory.exists());
    let left = engine
        .command()
        .args(["ps", "--all", "--quiet", "--filter", &format!("label=io.x-k8s.kind.cluster={NAME}")])
        .read()?;
    assert_eq!(left, "");
    Ok(())
}
