//! The image of a kind node, for machines that reach no registry: Debian's containerd and systemd, Kubernetes
//! from its Go module, and inside it the images of the control plane and of the CSI sidecars, so that a new
//! cluster has nothing to load but what is under test.

use std::{path::PathBuf, time::Duration};

use crate::{
    Result,
    cache::Recipe,
    debian,
    engine::{Build, Engine},
    error::Error,
    interrupt::{self, Seen},
    process::Cmd,
    programs::{self, KUBERNETES_VERSION, Module, Program},
    report,
};

use super::{Context, SIDECARS, base, recipe_of, sidecars, single::single};

const CONTAINERFILE: &str = include_str!("../../images/node/Containerfile");
const NOTHING: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: none, namespace: kube-system}\n";

const NODE_PACKAGES: &[&str] = &[
    "systemd",
    "dbus",
    "conntrack",
    "iptables",
    "nftables",
    "iproute2",
    "ethtool",
    "util-linux",
    "mount",
    "kmod",
    "pigz",
    "e2fsprogs",
    "xfsprogs",
    "bash",
    "ca-certificates",
    "curl",
    "jq",
    "procps",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "socat",
    "fuse3",
];
const PROXY_PACKAGES: &[&str] = &["iptables", "nftables", "conntrack", "kmod"];

/// What kubeadm asks for, by the last part of the image's name.
const CLUSTER_PROGRAMS: [Program; 7] = [
    programs::KUBE_APISERVER,
    programs::KUBE_CONTROLLER_MANAGER,
    programs::KUBE_SCHEDULER,
    programs::KUBE_PROXY,
    programs::ETCD,
    programs::COREDNS,
    programs::PAUSE,
];

/// Makes the node image unless the engine has it, and returns its name.
pub fn node(engine: &Engine) -> Result<String> {
    let recipe = recipe()?.key();
    let tag = format!("localhost/holdfast-node:{recipe}");
    if engine.has(&tag, &recipe)? {
        return Ok(tag);
    }
    // Debian's archive and the compiler keep different parts of the machine busy.
    std::thread::scope(|scope| {
        let root = scope.spawn(|| {
            base(engine, "proxy", PROXY_PACKAGES)?;
            debian::root("node", NODE_PACKAGES)
        });
        let programs =
            programs::build([programs::KUBEADM, programs::KUBELET, programs::KUBECTL, programs::CRICTL])?;
        programs::build(CLUSTER_PROGRAMS)?;
        programs::build(SIDECARS.map(|(program, _)| program))?;
        let root = root.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        report::step("node image", || make(engine, &tag, &recipe, &root, programs))
    })?;
    Ok(tag)
}

fn recipe() -> Result<Recipe> {
    Ok(Recipe::new("node image")
        .part(CONTAINERFILE)
        .part(debian::recipe(NODE_PACKAGES).key())
        .part(debian::recipe(PROXY_PACKAGES).key())
        .part(Module::Kubernetes.recipe()?.key())
        .part(Module::Tools.recipe()?.key()))
}

fn make(
    engine: &Engine,
    tag: &str,
    recipe: &str,
    root: &std::path::Path,
    programs: [PathBuf; 4],
) -> Result<()> {
    let [kubeadm, kubelet, kubectl, crictl] = &programs;
    let mut images = cluster_images(engine, kubeadm)?;
    let pause = images.iter().find(|image| image.contains("/pause:")).cloned().unwrap_or_default();
    images.extend(sidecars(engine)?);

    let context = Context::new()?;
    context.link("root.tar", root)?;
    context.copy_tree("files", &Module::Tools.source_of("sigs.k8s.io/kind")?.join("images/base/files"))?;
    for (name, path) in [("kubeadm", kubeadm), ("kubelet", kubelet), ("kubectl", kubectl), ("crictl", crictl)]
    {
        context.link(name, path)?;
    }
    context.write("none.yaml", NOTHING)?;
    let empty = format!("localhost/holdfast-node-empty:{recipe}");
    engine.build(&Build {
        tag: &empty,
        containerfile: CONTAINERFILE,
        context: context.path(),
        target: None,
        arguments: &[("KUBERNETES_VERSION", KUBERNETES_VERSION), ("PAUSE_IMAGE", &pause)],
        recipe,
    })?;
    let archive = context.path().join("images.tar");
    engine.save(&images.iter().map(String::as_str).collect::<Vec<_>>(), &archive)?;

    let container = Container::start(engine, &empty)?;
    interrupt::until("containerd answers", Duration::from_secs(60), Duration::from_millis(200), || {
        let answer = container.exec().args(["ctr", "version"]).output()?;
        Ok(if answer.status.success() { Seen::Reached(()) } else { Seen::NotYet(answer.stderr) })
    })?;
    engine
        .exec_with_file(&container.name, &archive)?
        .args(["ctr", "-n", "k8s.io", "images", "import", "--no-unpack", "-"])
        .run()?;
    container.stop()?;
    container.commit(tag)?;
    engine.command().args(["rmi", "--force", &empty]).run()?;
    Ok(())
}

/// Makes the images of a control plane under the names that kubeadm asks for.
fn cluster_images(engine: &Engine, kubeadm: &std::path::Path) -> Result<Vec<String>> {
    let paths = programs::build(CLUSTER_PROGRAMS)?;
    let module = Module::Kubernetes.recipe()?;
    let list = Cmd::new(kubeadm)
        .args(["config", "images", "list", "--kubernetes-version", &format!("v{KUBERNETES_VERSION}")])
        .read()?;
    let mut tags = Vec::new();
    for tag in list.lines() {
        let name = tag.rsplit('/').next().and_then(|last| last.split(':').next()).unwrap_or_default();
        let Some((program, path)) = CLUSTER_PROGRAMS.iter().zip(&paths).find(|(p, _)| p.name == name) else {
            return Err(Error::Answer { from: "kubeadm config images list".into(), answer: tag.into() });
        };
        let base = match name {
            "kube-proxy" => base(engine, "proxy", PROXY_PACKAGES)?,
            _ => "scratch".into(),
        };
        let recipe = recipe_of("cluster image", *program, &module).part(&base).key();
        single(engine, tag, *program, path, &base, &recipe)?;
        tags.push(tag.to_owned());
    }
    Ok(tags)
}

/// A container that runs nothing but containerd, and is removed when dropped.
struct Container<'a> {
    engine: &'a Engine,
    name: String,
}

impl<'a> Container<'a> {
    fn start(engine: &'a Engine, image: &str) -> Result<Self> {
        let container = Container { engine, name: format!("holdfast-node-build-{}", std::process::id()) };
        engine
            .command()
            .args(["run", "--detach", "--privileged", "--network", "none", "--name", &container.name])
            .args(["--entrypoint", "containerd", image])
            .run()?;
        Ok(container)
    }

    fn exec(&self) -> Cmd {
        self.engine.exec(&self.name)
    }

    /// Ends containerd, which writes down what it knows.
    fn stop(&self) -> Result<()> {
        self.engine.command().args(["stop", "--time", "60", &self.name]).run()?;
        Ok(())
    }

    fn commit(&self, tag: &str) -> Result<()> {
        self.engine
            .command()
            .args(["commit", "--change", r#"ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]"#])
            .args([&self.name, tag])
            .limit(Duration::from_secs(600))
            .run()?;
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // It may never have been started; nobody is left to tell.
        let _ = self.engine.command().args(["rm", "--force", "--time", "0", &self.name]).cleanup().run();
    }
}
