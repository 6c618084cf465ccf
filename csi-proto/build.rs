//! Compiles the protocol definitions in `proto/`, without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let definitions =
        protox::compile(["csi.proto", "pluginregistration.proto", "holdfast/node.proto"], ["proto"])?;
    tonic_prost_build::configure().emit_rerun_if_changed(false).compile_fds(definitions)?;
    Ok(())
}
