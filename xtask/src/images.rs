//! `cargo xtask images`: the container images, in this machine's engine.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use holdfast_e2e::{
    Result,
    engine::Engine,
    images::{self, Profile},
};

/// Which images, and how.
#[derive(Args)]
pub struct Options {
    /// Only these
    #[arg(value_enum)]
    only: Vec<Image>,
    /// Build unoptimised programs
    #[arg(long)]
    dev: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Image {
    /// Driver, operator and command line
    Holdfast,
    /// PostgreSQL and fio, for tests and the demo
    Postgres,
    /// The CSI sidecars and the snapshot controller; pulled by the nodes where a registry answers
    Sidecars,
    /// The kind node; pulled where a registry answers
    Node,
}

/// Builds the images and prints their names.
pub fn run(options: &Options) -> Result<ExitCode> {
    let engine = Engine::find()?;
    let profile = if options.dev { Profile::Dev } else { Profile::Release };
    let wants = |image| options.only.is_empty() || options.only.contains(&image);
    let mut tags = Vec::new();
    if wants(Image::Holdfast) {
        tags.push(images::product(&engine, profile)?);
    }
    if wants(Image::Postgres) {
        tags.push(images::postgres(&engine)?);
    }
    if !engine.reaches_registry() {
        if wants(Image::Sidecars) {
            tags.extend(images::sidecars(&engine)?);
        }
        if wants(Image::Node) {
            tags.push(images::node(&engine)?);
        }
    }
    for tag in tags {
        println!("{tag}");
    }
    Ok(ExitCode::SUCCESS)
}
