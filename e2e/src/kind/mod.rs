//! A real Kubernetes cluster in containers: one control plane and two workers.
//!
//! # Guarantees
//! - A [`Cluster`] that was brought up here is deleted when it is dropped, unless it is kept: its containers, the
//!   loop devices that its volumes left attached, and its directory. Nothing else is touched.
//! - The user's own kubeconfig is neither read nor written; the cluster's is a file in its own directory.
//!
//! # Assumptions
//! - The caller is root, or Docker's daemon runs privileged containers for them.
//! - The nodes share this machine's kernel, and with it loop devices and FUSE.

mod configuration;
mod leftovers;
mod network;
mod objects;
mod snapshots;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use crate::{
    Error, Result, cache,
    engine::Engine,
    error::Named,
    images,
    process::Cmd,
    programs::{self, HELM, KIND, KUBECTL},
    report,
};

use configuration::configuration;
pub use configuration::is_confined;
use leftovers::Leftovers;

const CREATE_LIMIT: Duration = Duration::from_secs(600);
const READY_LIMIT: Duration = Duration::from_secs(180);
/// How long nodes may take to end, with all that runs on them, on a machine that is busy.
const DELETE_LIMIT: Duration = Duration::from_secs(600);
/// How long kubectl and helm may take unless the caller says otherwise.
const CLIENT_LIMIT: Duration = Duration::from_secs(120);
/// Where every node has the directory that they share.
pub const POOL_ON_NODES: &str = "/var/lib/holdfast-pool";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    engine: Engine,
    directory: PathBuf,
    programs: Programs,
    is_kept: bool,
}

#[derive(Debug)]
struct Programs {
    kind: PathBuf,
    helm: PathBuf,
    kubectl: PathBuf,
}

impl Cluster {
    /// Makes a cluster of this name, from what the cache has or can be built.
    pub fn up(name: &str) -> Result<Self> {
        let cluster = Cluster::named(name, false)?;
        if cluster.exists()? {
            let name = cluster.name.clone();
            cluster.keep();
            return Err(Error::Machine(format!(
                "cluster {name} exists; `cargo xtask cluster down` removes it"
            )));
        }
        let image =
            if cluster.engine.reaches_registry() { None } else { Some(images::node(&cluster.engine)?) };
        cluster.prepare_directory()?;
        report::step(&format!("cluster {name}"), || cluster.create(image.as_deref()))?;
        report::step("pod network", || network::connect(&cluster))?;
        report::step("snapshot controller", || snapshots::install(&cluster))?;
        Ok(cluster)
    }

    /// The running cluster of this name, which is left running.
    pub fn open(name: &str) -> Result<Self> {
        let cluster = Cluster::named(name, true)?;
        if cluster.exists()? {
            return Ok(cluster);
        }
        Err(Error::Machine(format!("there is no cluster {name}; `cargo xtask cluster up` makes one")))
    }

    /// Deletes the cluster of this name, if there is one.
    pub fn down(name: &str) -> Result<()> {
        Cluster::named(name, true)?.delete()
    }

    /// Leaves the cluster running when this value goes.
    pub fn keep(mut self) {
        self.is_kept = true;
    }

    fn named(name: &str, is_kept: bool) -> Result<Self> {
        let engine = Engine::find()?;
        let [kind, helm, kubectl] = programs::build([KIND, HELM, KUBECTL])?;
        let directory = cache::root()?.join("clusters").join(name);
        Ok(Cluster {
            name: name.into(),
            engine,
            directory,
            programs: Programs { kind, helm, kubectl },
            is_kept,
        })
    }

    /// Whether kind knows a cluster of this name.
    fn exists(&self) -> Result<bool> {
        let clusters = self.kind().args(["get", "clusters"]).read()?;
        Ok(clusters.lines().any(|line| line == self.name))
    }

    fn prepare_directory(&self) -> Result<()> {
        cache::remove(&self.directory)?;
        let pool = self.pool_directory();
        fs::create_dir_all(&pool).named("create", &pool)?;
        // kind mounts it into the nodes, and its absence is the only thing that stops podman.
        let modules = Path::new("/lib/modules");
        if !modules.exists() {
            fs::create_dir(modules).named("create", modules)?;
        }
        Ok(())
    }

    fn create(&self, image: Option<&str>) -> Result<()> {
        let mut command = self.kind().args(["create", "cluster", "--config", "-", "--name", &self.name]);
        if let Some(image) = image {
            command = command.args(["--image", image]);
        }
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .input(configuration(&self.pool_directory()))
            .limit(CREATE_LIMIT)
            .run()?;
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        let leftovers = Leftovers::of(self);
        self.kind()
            .args(["delete", "cluster", "--name", &self.name, "--kubeconfig"])
            .arg(self.kubeconfig())
            .limit(DELETE_LIMIT)
            .cleanup()
            .run()
            .map_err(|reason| self.stays(reason))?;
        leftovers.detach();
        cache::remove(&self.directory)
    }

    /// Why the cluster is not gone, with what is left of it.
    fn stays(&self, reason: Error) -> Error {
        let nodes = self.kind().args(["get", "nodes", "--name", &self.name]).cleanup().read();
        let nodes = match nodes.as_deref() {
            Ok("") => "no node".to_owned(),
            Ok(nodes) => format!("the nodes {}", nodes.split_whitespace().collect::<Vec<_>>().join(", ")),
            Err(_) => "perhaps nodes (kind does not say)".to_owned(),
        };
        let left = format!("{nodes} and {}", self.directory.display());
        Error::ClusterStays { name: self.name.clone(), left, reason: Box::new(reason) }
    }

    fn kind(&self) -> Cmd {
        self.engine.environment(Cmd::new(&self.programs.kind))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The container engine that its nodes run in.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The file that clients find the cluster by.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The directory of this machine that all nodes have at [`POOL_ON_NODES`].
    pub fn pool_directory(&self) -> PathBuf {
        self.directory.join("pool")
    }

    /// The node without workloads.
    pub fn control_plane(&self) -> String {
        format!("{}-control-plane", self.name)
    }

    /// The two nodes that run workloads.
    pub fn workers(&self) -> [String; 2] {
        [format!("{}-worker", self.name), format!("{}-worker2", self.name)]
    }

    /// All three nodes.
    pub fn nodes(&self) -> [String; 3] {
        let [first, second] = self.workers();
        [self.control_plane(), first, second]
    }

    /// The address by which the nodes and their pods reach this machine.
    pub fn gateway(&self) -> Result<IpAddr> {
        self.engine.gateway("kind")
    }

    /// kubectl for this cluster.
    pub fn kubectl(&self) -> Cmd {
        Cmd::new(&self.programs.kubectl).env("KUBECONFIG", self.kubeconfig()).limit(CLIENT_LIMIT)
    }

    /// Helm for this cluster.
    pub fn helm(&self) -> Cmd {
        Cmd::new(&self.programs.helm).env("KUBECONFIG", self.kubeconfig()).limit(CLIENT_LIMIT)
    }

    /// `kubectl apply` of this text.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl().args(["apply", "-f", "-"]).input(manifests).run()?;
        Ok(())
    }

    /// A command on a node.
    pub fn exec(&self, node: &str) -> Cmd {
        self.engine.exec(node)
    }

    /// Stops every process of a node, as a machine that hangs: its connections stay, its clock runs on.
    pub fn freeze(&self, node: &str) -> Result<()> {
        self.engine.command().args(["pause", node]).run()?;
        Ok(())
    }

    /// Lets a frozen node go on where it was.
    pub fn thaw(&self, node: &str) -> Result<()> {
        self.engine.command().args(["unpause", node]).cleanup().run()?;
        Ok(())
    }

    /// Copies images from the container engine to all nodes.
    pub fn load(&self, tags: &[&str]) -> Result<()> {
        report::step(&format!("load {} into the nodes", tags.join(", ")), || {
            let archive = tempfile::Builder::new()
                .prefix("images-")
                .tempfile_in(&self.directory)
                .named("create a file in", &self.directory)?
                .into_temp_path();
            self.engine.save(tags, &archive)?;
            for node in self.nodes() {
                self.engine
                    .exec_with_file(&node, &archive)?
                    .args(["ctr", "-n", "k8s.io", "images", "import", "--no-unpack", "-"])
                    .run()?;
            }
            Ok(())
        })
    }

    /// Opens a shell whose kubectl and helm reach the cluster.
    pub fn shell(&self) -> Result<ExitStatus> {
        let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        let mut path = std::ffi::OsString::new();
        for program in [&self.programs.kubectl, &self.programs.helm, &self.programs.kind] {
            path.push(program.parent().unwrap_or(Path::new("/")));
            path.push(":");
        }
        path.push(std::env::var_os("PATH").unwrap_or_default());
        self.engine
            .environment(Cmd::new(shell))
            .env("KUBECONFIG", self.kubeconfig())
            .env("PATH", path)
            .interact()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Err(error) = report::step(&format!("delete cluster {}", self.name), || self.delete()) {
            eprintln!("{error}");
        }
    }
}
