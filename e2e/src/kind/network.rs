//! The pod network: on each node a point-to-point link per pod, and a route to each other node's pods.
//!
//! It needs no image and no daemon, only the CNI plugins that every node image holds.

use serde_json::{Value, json};

use crate::{Error, Result};

use super::{Cluster, READY_LIMIT};

struct Node {
    name: String,
    address: String,
    pods: String,
}

/// Connects the pods of all nodes, and waits until the nodes are ready.
pub(super) fn connect(cluster: &Cluster) -> Result<()> {
    let nodes = nodes(cluster)?;
    for node in &nodes {
        cluster
            .engine()
            .command()
            .args(["exec", "-i", &node.name, "sh", "-c", "cat >/etc/cni/net.d/10-ptp.conflist"])
            .input(plugins(&node.pods).to_string())
            .run()?;
        for other in nodes.iter().filter(|other| other.name != node.name) {
            cluster
                .exec(&node.name)
                .args(["ip", "route", "replace", &other.pods, "via", &other.address])
                .run()?;
        }
    }
    let timeout = format!("--timeout={}s", READY_LIMIT.as_secs());
    cluster
        .kubectl()
        .args(["wait", "--for=condition=Ready", "nodes", "--all", &timeout])
        .limit(READY_LIMIT * 2)
        .run()?;
    Ok(())
}

fn nodes(cluster: &Cluster) -> Result<Vec<Node>> {
    let list = cluster.kubectl().args(["get", "nodes", "-o", "json"]).read()?;
    let answer = || Error::Answer { from: "kubectl get nodes".into(), answer: list.clone() };
    let parsed: Value = serde_json::from_str(&list).map_err(|_| answer())?;
    let nodes: Vec<Node> = parsed["items"].as_array().into_iter().flatten().filter_map(node).collect();
    if nodes.len() == cluster.nodes().len() { Ok(nodes) } else { Err(answer()) }
}

/// A node with an address and a range of pod addresses.
fn node(item: &Value) -> Option<Node> {
    let addresses = item["status"]["addresses"].as_array()?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP")?;
    Some(Node {
        name: item["metadata"]["name"].as_str()?.into(),
        address: internal["address"].as_str()?.into(),
        pods: item["spec"]["podCIDR"].as_str()?.into(),
    })
}

fn plugins(pods: &str) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "ptp",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": true,
                "ipam": {"type": "host-local", "subnet": pods, "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}
