//! Programs built from Go modules: Kubernetes, kind, Helm, the CSI sidecars, csi-sanity.
//!
//! `programs/kubernetes` and `programs/tools` are two Go modules whose go.mod files pin every version and name
//! the programs as their tools. There are two because all programs of a module share one version of each
//! dependency, so that client-go, gRPC and the rest are compiled once for all of them; Kubernetes itself needs
//! another version of these than the sidecars and Helm.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Error, Result,
    cache::{self, Recipe},
    error::Named,
    process::{Cmd, is_in_path},
    report,
};

const BUILD_LIMIT: Duration = Duration::from_secs(5400);

/// The version of Kubernetes that the cluster runs.
pub const KUBERNETES_VERSION: &str = "1.34.4";

/// A Go module with programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Kubernetes, etcd and CoreDNS.
    Kubernetes,
    /// kind, Helm, crictl, the CSI sidecars, the snapshot controller, csi-sanity.
    Tools,
}

/// A program of one of the modules.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// What its file is called.
    pub name: &'static str,
    module: Module,
    package: &'static str,
}

macro_rules! programs {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $module:ident, $package:literal;)*) => {
        $($(#[$doc])* pub const $constant: Program =
            Program { name: $name, module: Module::$module, package: $package };)*
    };
}

programs! {
    /// Kubernetes' API server.
    KUBE_APISERVER = "kube-apiserver", Kubernetes, "k8s.io/kubernetes/cmd/kube-apiserver";
    /// Kubernetes' controllers.
    KUBE_CONTROLLER_MANAGER = "kube-controller-manager", Kubernetes, "k8s.io/kubernetes/cmd/kube-controller-manager";
    /// Kubernetes' scheduler.
    KUBE_SCHEDULER = "kube-scheduler", Kubernetes, "k8s.io/kubernetes/cmd/kube-scheduler";
    /// The service proxy.
    KUBE_PROXY = "kube-proxy", Kubernetes, "k8s.io/kubernetes/cmd/kube-proxy";
    /// The node agent.
    KUBELET = "kubelet", Kubernetes, "k8s.io/kubernetes/cmd/kubelet";
    /// What kind installs a cluster with.
    KUBEADM = "kubeadm", Kubernetes, "k8s.io/kubernetes/cmd/kubeadm";
    /// The client.
    KUBECTL = "kubectl", Kubernetes, "k8s.io/kubernetes/cmd/kubectl";
    /// The cluster's database. Its package is called `server`.
    ETCD = "etcd", Kubernetes, "go.etcd.io/etcd/server/v3";
    /// The cluster's name server.
    COREDNS = "coredns", Kubernetes, "./coredns";
    /// The process that holds a pod's namespaces.
    PAUSE = "pause", Kubernetes, "./pause";
    /// Kubernetes in containers.
    KIND = "kind", Tools, "sigs.k8s.io/kind";
    /// The package manager that installs the chart.
    HELM = "helm", Tools, "helm.sh/helm/v4/cmd/helm";
    /// What kind's node image talks to containerd with.
    CRICTL = "crictl", Tools, "sigs.k8s.io/cri-tools/cmd/crictl";
    /// The conformance suite of CSI.
    CSI_SANITY = "csi-sanity", Tools, "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity";
    /// The sidecar that creates and deletes volumes.
    CSI_PROVISIONER = "csi-provisioner", Tools, "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner";
    /// The sidecar that publishes volumes to nodes.
    CSI_ATTACHER = "csi-attacher", Tools, "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher";
    /// The sidecar that cuts snapshots.
    CSI_SNAPSHOTTER = "csi-snapshotter", Tools, "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter";
    /// The sidecar that grows volumes.
    CSI_RESIZER = "csi-resizer", Tools, "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer";
    /// The cluster's controller for VolumeSnapshots.
    SNAPSHOT_CONTROLLER = "snapshot-controller", Tools, "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller";
}

impl Module {
    /// Where its go.mod is.
    pub fn directory(self) -> PathBuf {
        crate::repository().join("e2e/programs").join(match self {
            Module::Kubernetes => "kubernetes",
            Module::Tools => "tools",
        })
    }

    /// Everything that decides what its programs are.
    pub fn recipe(self) -> Result<Recipe> {
        Recipe::new("go programs").part(self.link_flags()).tree(&self.directory())
    }

    /// The version of one of the modules that it is built from.
    pub fn version_of(self, module: &str) -> Result<String> {
        go()?.dir(self.directory()).args(["list", "-m", "-f", "{{.Version}}", module]).read()
    }

    /// The source directory of one of the modules that it is built from.
    pub fn source_of(self, module: &str) -> Result<PathBuf> {
        let json = go()?
            .dir(self.directory())
            .args(["mod", "download", "-json", module])
            .limit(BUILD_LIMIT)
            .read()?;
        let answer = || Error::Answer { from: "go mod download".into(), answer: json.clone() };
        let parsed: serde_json::Value = serde_json::from_str(&json).map_err(|_| answer())?;
        parsed["Dir"].as_str().map(PathBuf::from).ok_or_else(answer)
    }

    fn link_flags(self) -> String {
        match self {
            Module::Kubernetes => {
                let minor = KUBERNETES_VERSION.split('.').nth(1).unwrap_or_default();
                let version = "k8s.io/component-base/version";
                format!(
                    "-s -w -X {version}.gitVersion=v{KUBERNETES_VERSION} \
                     -X {version}.gitMajor=1 -X {version}.gitMinor={minor}"
                )
            }
            Module::Tools => "-s -w".into(),
        }
    }
}

/// Builds those of the programs that are not in the cache, and returns the path of each.
pub fn build<const N: usize>(programs: [Program; N]) -> Result<[PathBuf; N]> {
    for module in [Module::Kubernetes, Module::Tools] {
        let wanted: Vec<_> = programs.iter().filter(|program| program.module == module).collect();
        if wanted.is_empty() {
            continue;
        }
        let directory = directory_of(module)?;
        let _lock = cache::lock(&directory)?;
        let missing: Vec<_> = wanted.into_iter().filter(|p| !directory.join(p.name).exists()).collect();
        if !missing.is_empty() {
            let names = missing.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
            report::step(&format!("build {names}"), || compile(module, &missing, &directory))?;
        }
    }
    let mut paths = programs.map(|_| PathBuf::new());
    for (path, program) in paths.iter_mut().zip(&programs) {
        *path = directory_of(program.module)?.join(program.name);
    }
    Ok(paths)
}

fn directory_of(module: Module) -> Result<PathBuf> {
    Ok(cache::root()?.join(format!("programs-{}", module.recipe()?.key())))
}

fn compile(module: Module, programs: &[&Program], directory: &Path) -> Result<()> {
    let partial = directory.join("partial");
    cache::remove(&partial)?;
    fs::create_dir_all(&partial).named("create", &partial)?;
    go()?
        .dir(module.directory())
        .args(["build", "-mod=readonly", "-trimpath", "-ldflags", &module.link_flags(), "-o"])
        .arg(partial.join(""))
        .args(programs.iter().map(|program| program.package))
        .env("CGO_ENABLED", "0")
        .limit(BUILD_LIMIT)
        .run()?;
    for program in programs {
        let built = partial.join(if program.name == ETCD.name { "server" } else { program.name });
        fs::rename(&built, directory.join(program.name)).named("rename", &built)?;
    }
    cache::remove(&partial)
}

fn go() -> Result<Cmd> {
    if is_in_path("go") {
        return Ok(Cmd::new("go").env("GOFLAGS", ""));
    }
    Err(Error::MissingProgram {
        purpose: "building the cluster's programs".into(),
        program: "go",
        hint: "install Go 1.26 or later from https://go.dev/dl",
    })
}
