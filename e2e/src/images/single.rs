//! Images that hold one program: Kubernetes' own, and the standard CSI sidecars.
//!
//! They carry the names under which Kubernetes' projects publish theirs, so that kubeadm and the chart's defaults
//! find them in the node image. Where a registry answers they are not made: the nodes pull them.

use std::path::Path;

use crate::{
    Result,
    engine::{Build, Engine},
    programs::{self, Module, Program},
};

use super::{Context, recipe_of};

/// The sidecars of the chart and the cluster's snapshot controller, with the module that gives their version.
pub const SIDECARS: [(Program, &str); 5] = [
    (programs::CSI_PROVISIONER, "github.com/kubernetes-csi/external-provisioner/v6"),
    (programs::CSI_ATTACHER, "github.com/kubernetes-csi/external-attacher/v4"),
    (programs::CSI_SNAPSHOTTER, "github.com/kubernetes-csi/external-snapshotter/v8"),
    (programs::CSI_RESIZER, "github.com/kubernetes-csi/external-resizer/v2"),
    (programs::SNAPSHOT_CONTROLLER, "github.com/kubernetes-csi/external-snapshotter/v8"),
];

/// The published name of a sidecar's image.
pub fn sidecar_tag(program: Program, module: &str) -> Result<String> {
    Ok(format!("registry.k8s.io/sig-storage/{}:{}", program.name, Module::Tools.version_of(module)?))
}

/// Makes the images of [`SIDECARS`] and returns their names.
pub fn sidecars(engine: &Engine) -> Result<Vec<String>> {
    let paths = programs::build(SIDECARS.map(|(program, _)| program))?;
    let module = Module::Tools.recipe()?;
    let mut tags = Vec::new();
    for ((program, go_module), path) in SIDECARS.into_iter().zip(paths) {
        let tag = sidecar_tag(program, go_module)?;
        let recipe = recipe_of("sidecar", program, &module).key();
        single(engine, &tag, program, &path, "scratch", &recipe)?;
        tags.push(tag);
    }
    Ok(tags)
}

/// Makes an image of one program on a base, unless the engine has it.
pub(super) fn single(
    engine: &Engine,
    tag: &str,
    program: Program,
    path: &Path,
    base: &str,
    recipe: &str,
) -> Result<()> {
    if engine.has(tag, recipe)? {
        return Ok(());
    }
    let context = Context::new()?;
    context.link(program.name, path)?;
    let name = program.name;
    let containerfile =
        format!("FROM {base}\nCOPY {name} /usr/local/bin/{name}\nENTRYPOINT [\"/usr/local/bin/{name}\"]\n");
    engine.build(&Build {
        tag,
        containerfile: &containerfile,
        context: context.path(),
        target: None,
        arguments: &[],
        recipe,
    })
}
