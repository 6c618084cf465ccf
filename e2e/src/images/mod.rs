//! Container images: each is made once per recipe, by whichever engine the machine has.
//!
//! Where a registry answers, images are based on the stock Debian image; elsewhere on a root file system made
//! from Debian packages. The rest of each recipe is the same.

mod context;
mod node;
mod postgres;
mod product;
mod single;

use crate::{
    Result,
    cache::Recipe,
    debian,
    engine::{Build, Engine, STOCK_DEBIAN},
    programs::Program,
};

use context::Context;
pub use node::node;
pub use postgres::postgres;
pub use product::{PROGRAMS, Profile, build_programs, product};
pub use single::{SIDECARS, sidecar_tag, sidecars};

/// The image that others are based on, with these packages if it had to be made here.
///
/// A recipe based on it must install the packages itself if they are absent, since the stock image has none.
fn base(engine: &Engine, name: &str, packages: &[&str]) -> Result<String> {
    if engine.reaches_registry() {
        return Ok(STOCK_DEBIAN.into());
    }
    let containerfile = "FROM scratch\nADD root.tar /\n";
    let recipe = debian::recipe(packages).part(containerfile).key();
    let tag = format!("localhost/holdfast-base-{name}:{recipe}");
    if !engine.has(&tag, &recipe)? {
        let context = Context::new()?;
        context.link("root.tar", &debian::root(name, packages)?)?;
        engine.build(&Build {
            tag: &tag,
            containerfile,
            context: context.path(),
            target: None,
            arguments: &[],
            recipe: &recipe,
        })?;
    }
    Ok(tag)
}

/// The recipe of an image that holds one program of ours.
fn recipe_of(kind: &str, program: Program, module: &Recipe) -> Recipe {
    Recipe::new(kind).part(module.key()).part(program.name)
}
