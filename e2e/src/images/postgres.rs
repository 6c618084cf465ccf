//! PostgreSQL and fio: what the tests and the demo run on volumes.

use std::path::Path;

use crate::{
    Result,
    cache::Recipe,
    engine::{Build, Engine},
    report,
};

use super::{Context, base};

const CONTAINERFILE: &str = include_str!("../../images/postgres/Containerfile");
const START: &str = include_str!("../../images/postgres/start-postgres");
const PACKAGES: &[&str] = &["fio", "postgresql-15", "procps"];

/// Makes the image unless the engine has it, and returns its name. It runs as user and group 999, and keeps its
/// data below `/var/lib/postgresql/data`.
pub fn postgres(engine: &Engine) -> Result<String> {
    let base = base(engine, "postgres", PACKAGES)?;
    let recipe = Recipe::new("postgres").part(CONTAINERFILE).part(START).part(&base).key();
    let tag = format!("localhost/holdfast-postgres:{recipe}");
    if !engine.has(&tag, &recipe)? {
        let context = Context::new()?;
        context.copy_tree(".", Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/images/postgres")))?;
        report::step("PostgreSQL image", || {
            engine.build(&Build {
                tag: &tag,
                containerfile: CONTAINERFILE,
                context: context.path(),
                target: None,
                arguments: &[("BASE", &base)],
                recipe: &recipe,
            })
        })?;
    }
    Ok(tag)
}
