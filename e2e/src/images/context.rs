//! The directory that an image is built from, without copying what is large.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{Error, Result, cache, error::Named};

/// A directory that lives as long as the build.
pub(super) struct Context(TempDir);

impl Context {
    /// An empty one. It lies in the cache, so that cached files can be linked into it.
    pub fn new() -> Result<Self> {
        tempfile::Builder::new()
            .prefix("context-")
            .tempdir_in(cache::root()?)
            .map(Context)
            .map_err(|source| Error::System { what: "making a build context", source })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Adds a file of the cache, or a copy of any other.
    pub fn link(&self, name: &str, file: &Path) -> Result<()> {
        let target = self.path().join(name);
        if fs::hard_link(file, &target).is_err() {
            fs::copy(file, &target).named("copy", file)?;
        }
        Ok(())
    }

    /// Adds a file with this text.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let target = self.path().join(name);
        fs::write(&target, text).named("write", target)
    }

    /// Adds a copy of a directory, writable whatever the source is.
    pub fn copy_tree(&self, name: &str, source: &Path) -> Result<()> {
        copy_tree(source, &self.path().join(name))
    }
}

fn copy_tree(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).named("create", target)?;
    for entry in fs::read_dir(source).named("list", source)? {
        let entry = entry.named("list", source)?;
        let (from, to): (PathBuf, PathBuf) = (entry.path(), target.join(entry.file_name()));
        if from.is_dir() {
            copy_tree(&from, &to)?;
        } else {
            let bytes = fs::read(&from).named("read", &from)?;
            fs::write(&to, bytes).named("write", &to)?;
        }
    }
    Ok(())
}
