//! `kubectl holdfast`, as a person has it: the command in the PATH under the name of a plugin of kubectl.

use std::{env, ffi::OsString, os::unix::fs::symlink, path::PathBuf};

use tempfile::TempDir;

use crate::{
    Result,
    error::Named,
    images::{self, Profile},
    kind::Cluster,
    process::Cmd,
};

/// The plugin, in a directory of its own that goes with this value.
#[derive(Debug)]
pub struct Plugin {
    directory: TempDir,
}

impl Plugin {
    /// Builds the command and links it under the plugin's name.
    pub fn build(profile: Profile) -> Result<Self> {
        let program = images::build_programs(profile)?.join("holdfast");
        let directory = tempfile::Builder::new()
            .prefix("holdfast-plugin-")
            .tempdir()
            .named("create a directory in", env::temp_dir())?;
        let link = directory.path().join("kubectl-holdfast");
        symlink(&program, &link).named("create", &link)?;
        Ok(Plugin { directory })
    }

    /// `kubectl holdfast` for a cluster.
    pub fn command(&self, cluster: &Cluster) -> Cmd {
        let mut path = OsString::from(PathBuf::from(self.directory.path()));
        if let Some(others) = env::var_os("PATH") {
            path.push(":");
            path.push(others);
        }
        cluster.kubectl().env("PATH", path).arg("holdfast")
    }
}
