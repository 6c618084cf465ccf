//! The `holdfast` image.
//!
//! Where a registry answers, the Containerfile builds it from source, in a builder whose C library is that of the
//! runtime image. Elsewhere cargo builds the programs on this machine, and the image takes them; the machine is
//! then a Debian 12 itself, or no Debian package could have been used for the base.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Result,
    cache::Recipe,
    engine::{Build, Engine},
    error::Named,
    process::Cmd,
    report, repository,
};

use super::{Context, base};

/// The programs in the image, each in the package of the same name.
pub const PROGRAMS: [&str; 3] = ["holdfast-driver", "holdfast-operator", "holdfast"];

const PACKAGES: &[&str] = &["ca-certificates", "e2fsprogs", "mount", "util-linux", "xfsprogs"];
const CARGO_LIMIT: Duration = Duration::from_secs(7200);

/// How cargo builds the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// For use and for measurements.
    #[default]
    Release,
    /// For a quick look at a change.
    Dev,
}

impl Profile {
    /// As cargo's `--profile` wants it.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Dev => "dev",
        }
    }

    /// Where cargo puts what it builds, below the target directory.
    pub fn directory(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Dev => "debug",
        }
    }
}

/// Builds the programs and the image, and returns its name. The tag tells the content, so a changed program has
/// another name and Kubernetes notices.
pub fn product(engine: &Engine, profile: Profile) -> Result<String> {
    let root = repository();
    let containerfile = root.join("Containerfile");
    let text = fs::read_to_string(&containerfile).named("read", &containerfile)?;
    if engine.reaches_registry() && profile == Profile::Release {
        return from_source(engine, &root, &text);
    }
    let programs = build_programs(profile)?;
    let base = base(engine, "runtime", PACKAGES)?;
    let context = Context::new()?;
    let dist = context.path().join("dist");
    fs::create_dir(&dist).named("create", &dist)?;
    for program in PROGRAMS {
        Cmd::new("strip").arg("-o").arg(dist.join(program)).arg(programs.join(program)).run()?;
    }
    let recipe = Recipe::new("holdfast").part(&text).part(&base).tree(&dist)?.key();
    let tag = format!("localhost/holdfast:{recipe}");
    if !engine.has(&tag, &recipe)? {
        report::step("holdfast image", || {
            engine.build(&Build {
                tag: &tag,
                containerfile: &text,
                context: context.path(),
                target: Some("prebuilt"),
                arguments: &[("BASE", &base)],
                recipe: &recipe,
            })
        })?;
    }
    Ok(tag)
}

/// Builds [`PROGRAMS`] with cargo on this machine, and returns the directory that they are in.
pub fn build_programs(profile: Profile) -> Result<PathBuf> {
    report::step(&format!("build the programs ({})", profile.name()), || {
        Cmd::new("cargo")
            .dir(repository())
            .args(["build", "--locked", "--quiet", "--profile", profile.name()])
            .args(PROGRAMS.iter().flat_map(|package| ["--package", package]))
            .limit(CARGO_LIMIT)
            .run()?;
        Ok(repository().join("target").join(profile.directory()))
    })
}

fn from_source(engine: &Engine, root: &Path, text: &str) -> Result<String> {
    let mut recipe = Recipe::new("holdfast from source").part(text).file(&root.join("Cargo.lock"))?;
    for directory in ["engine", "api", "csi-proto", "driver", "operator", "cli"] {
        recipe = recipe.tree(&root.join(directory))?;
    }
    let recipe = recipe.key();
    let tag = format!("localhost/holdfast:{recipe}");
    if !engine.has(&tag, &recipe)? {
        report::step("holdfast image, from source", || {
            engine.build(&Build {
                tag: &tag,
                containerfile: text,
                context: root,
                target: Some("runtime"),
                arguments: &[],
                recipe: &recipe,
            })
        })?;
    }
    Ok(tag)
}
