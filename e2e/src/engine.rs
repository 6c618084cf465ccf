//! The container engine: Docker where its daemon answers, podman otherwise.
//!
//! Podman gets its configuration from a file of ours (`CONTAINERS_CONF`): its default limits for open files and
//! processes may be above the hard limits of the caller, and then no container starts.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use rustix::process::{Resource, getrlimit};

use crate::{
    Error, Result, cache,
    error::Named,
    packages,
    process::{Cmd, is_in_path},
};

const PROBE_LIMIT: Duration = Duration::from_secs(10);
const BUILD_LIMIT: Duration = Duration::from_secs(3600);
const COPY_LIMIT: Duration = Duration::from_secs(600);
/// The most that containers may have; a lower hard limit of ours takes its place.
const MOST_FILES: u64 = 1 << 20;
/// Podman lowers its own limit to this number, the kernel's default for process ids, and cannot raise it again.
const MOST_PROCESSES: u64 = 1 << 15;
/// What images are based on where a registry answers.
pub const STOCK_DEBIAN: &str = "docker.io/library/debian:bookworm-slim";
/// The label that tells which recipe an image was made from.
const RECIPE_LABEL: &str = "storage.holdfast.recipe";

/// A container engine that answers.
#[derive(Debug, Clone)]
pub struct Engine {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Docker,
    Podman { configuration: PathBuf },
}

/// What an image is built from.
#[derive(Debug)]
pub struct Build<'a> {
    /// The name that it gets.
    pub tag: &'a str,
    /// The text of its Containerfile.
    pub containerfile: &'a str,
    /// The directory that COPY and ADD take from.
    pub context: &'a Path,
    /// The stage to stop at, if not the last.
    pub target: Option<&'a str>,
    /// Build arguments.
    pub arguments: &'a [(&'a str, &'a str)],
    /// The key of everything above, written into a label.
    pub recipe: &'a str,
}

impl Engine {
    /// Finds the engine of this machine, and installs podman if there is none and that is allowed.
    pub fn find() -> Result<Self> {
        let docker =
            Cmd::new("docker").args(["version", "--format", "{{.Server.Version}}"]).limit(PROBE_LIMIT);
        if is_in_path("docker") && docker.output().is_ok_and(|output| output.status.success()) {
            return Ok(Engine { kind: Kind::Docker });
        }
        packages::ensure(
            "running containers",
            &["podman", "buildah", "runc", "netavark", "aardvark-dns", "iptables", "iproute2"],
        )?;
        Ok(Engine { kind: Kind::Podman { configuration: podman_configuration()? } })
    }

    /// Its name, as kind knows it.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Docker => "docker",
            Kind::Podman { .. } => "podman",
        }
    }

    /// A command of the engine.
    pub fn command(&self) -> Cmd {
        self.environment(Cmd::new(self.name()))
    }

    /// Adds what a program needs in its environment to use this engine as we do.
    pub fn environment(&self, command: Cmd) -> Cmd {
        let command = command.env("KIND_EXPERIMENTAL_PROVIDER", self.name());
        match &self.kind {
            Kind::Docker => command,
            Kind::Podman { configuration } => command.env("CONTAINERS_CONF", configuration),
        }
    }

    /// Whether images can be had from a registry, asked once and quickly.
    pub fn reaches_registry(&self) -> bool {
        static ANSWER: OnceLock<bool> = OnceLock::new();
        *ANSWER.get_or_init(|| {
            self.command()
                .args(["manifest", "inspect", STOCK_DEBIAN])
                .limit(PROBE_LIMIT)
                .output()
                .is_ok_and(|output| output.status.success())
        })
    }

    /// Whether the engine has this image, made from this recipe.
    pub fn has(&self, tag: &str, recipe: &str) -> Result<bool> {
        let format = format!("{{{{index .Config.Labels {RECIPE_LABEL:?}}}}}");
        let output = self.command().args(["image", "inspect", "--format", &format, tag]).output()?;
        Ok(output.status.success() && output.stdout.trim() == recipe)
    }

    /// Builds an image.
    pub fn build(&self, build: &Build<'_>) -> Result<()> {
        let file = tempfile::NamedTempFile::new()
            .map_err(|source| Error::System { what: "using a temporary file", source })?;
        fs::write(file.path(), build.containerfile).named("write", file.path())?;
        let mut command = self.command().arg("build").arg("--quiet");
        if let Kind::Podman { .. } = self.kind {
            // RUN then works also where this process may not raise limits or mount /proc.
            command = command.args(["--isolation", "chroot", "--format", "docker"]);
        }
        command = command.args(["--label", &format!("{RECIPE_LABEL}={}", build.recipe)]);
        for (name, value) in build.arguments {
            command = command.args(["--build-arg", &format!("{name}={value}")]);
        }
        if let Some(target) = build.target {
            command = command.args(["--target", target]);
        }
        command
            .args(["--tag", build.tag, "--file"])
            .arg(file.path())
            .arg(build.context)
            .limit(BUILD_LIMIT)
            .run()?;
        Ok(())
    }

    /// Writes images into one archive that `ctr images import` reads.
    pub fn save(&self, tags: &[&str], archive: &Path) -> Result<()> {
        cache::remove(archive)?;
        let mut command = self.command().arg("save");
        if let Kind::Podman { .. } = self.kind {
            command = command.args(["--format", "docker-archive", "--multi-image-archive"]);
        }
        command.arg("--output").arg(archive).args(tags).limit(COPY_LIMIT).run()?;
        Ok(())
    }

    /// Runs a command in a container.
    pub fn exec(&self, container: &str) -> Cmd {
        self.command().args(["exec", container])
    }

    /// Runs a command in a container with a file as its standard input.
    pub fn exec_with_file(&self, container: &str, file: &Path) -> Result<Cmd> {
        let file = File::open(file).named("open", file)?;
        Ok(self.command().args(["exec", "-i", container]).limit(COPY_LIMIT).input_file(file))
    }

    /// The address by which containers of a network reach this machine.
    pub fn gateway(&self, network: &str) -> Result<IpAddr> {
        let json = self.command().args(["network", "inspect", network]).read()?;
        let answer = || Error::Answer { from: "network inspect".into(), answer: json.clone() };
        let parsed: serde_json::Value = serde_json::from_str(&json).map_err(|_| answer())?;
        let lists = [&parsed[0]["subnets"], &parsed[0]["IPAM"]["Config"]];
        lists
            .into_iter()
            .filter_map(serde_json::Value::as_array)
            .flatten()
            .filter_map(|subnet| subnet["gateway"].as_str().or(subnet["Gateway"].as_str()))
            .filter_map(|address| address.parse::<IpAddr>().ok())
            .find(IpAddr::is_ipv4)
            .ok_or_else(answer)
    }
}

fn podman_configuration() -> Result<PathBuf> {
    let most = |resource, most: u64| getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
    let files = most(Resource::Nofile, MOST_FILES);
    let processes = most(Resource::Nproc, MOST_PROCESSES);
    let text = format!(
        "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
         [engine]\nruntime = \"runc\"\n"
    );
    cache::entry("containers.conf", &cache::Recipe::new("containers.conf").part(&text), |path| {
        fs::write(path, &text).named("write", path)
    })
}
