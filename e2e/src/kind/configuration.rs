//! What kind is told: the nodes, and what this machine's kernel and capabilities make necessary.

use std::path::Path;

use super::POOL_ON_NODES;

/// CAP_SYS_RESOURCE's number, from linux/capability.h.
const CAP_SYS_RESOURCE: u32 = 24;

/// kind's configuration for this machine.
pub(super) fn configuration(pool: &Path) -> String {
    render(pool, !Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), is_confined())
}

/// Whether this machine withholds CAP_SYS_RESOURCE, so that nothing in a node can lower an OOM score or grow a mounted
/// ext4.
pub fn is_confined() -> bool {
    !has_sys_resource(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// Whether a process with this /proc/PID/status has the capability.
fn has_sys_resource(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|capabilities| capabilities & (1 << CAP_SYS_RESOURCE) != 0)
}

fn render(pool: &Path, is_cgroup_v1: bool, is_confined: bool) -> String {
    let mut text = String::from(
        "kind: Cluster\n\
         apiVersion: kind.x-k8s.io/v1alpha4\n\
         networking: {disableDefaultCNI: true, kubeProxyMode: iptables}\n",
    );
    if is_confined {
        // The kubelet then does not insist on lowering OOM scores.
        text.push_str("featureGates: {KubeletInUserNamespace: true}\n");
    }
    text.push_str("nodes:\n");
    for role in ["control-plane", "worker", "worker"] {
        text.push_str(&format!(
            "- role: {role}\n  extraMounts:\n  - {{hostPath: {:?}, containerPath: {POOL_ON_NODES}}}\n",
            pool.display().to_string()
        ));
    }
    if is_cgroup_v1 {
        text.push_str(
            "kubeadmConfigPatches:\n\
             - |\n\
             \x20 kind: KubeletConfiguration\n\
             \x20 apiVersion: kubelet.config.k8s.io/v1beta1\n\
             \x20 failCgroupV1: false\n\
             \x20 cgroupDriver: cgroupfs\n",
        );
    }
    if is_cgroup_v1 || is_confined {
        text.push_str("containerdConfigPatches:\n- |-\n");
    }
    if is_confined {
        text.push_str("  [plugins.\"io.containerd.grpc.v1.cri\"]\n    restrict_oom_score_adj = true\n");
    }
    if is_cgroup_v1 {
        text.push_str(
            "  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n    SystemdCgroup = false\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_shares_the_pool_on_every_kind_of_machine() {
        for (is_cgroup_v1, is_confined) in [(false, false), (false, true), (true, false), (true, true)] {
            let text = render(Path::new("/cache/pool"), is_cgroup_v1, is_confined);
            let parsed: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
            let nodes = parsed["nodes"].as_sequence().unwrap();
            assert_eq!(nodes.len(), 3);
            assert!(nodes.iter().all(|n| n["extraMounts"][0]["hostPath"] == "/cache/pool"), "{text}");
            assert_eq!(text.contains("cgroupfs"), is_cgroup_v1);
            assert_eq!(text.contains("restrict_oom_score_adj"), is_confined);
        }
    }

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        assert!(has_sys_resource("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_sys_resource("CapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\n"));
        assert!(!has_sys_resource(""));
    }
}
