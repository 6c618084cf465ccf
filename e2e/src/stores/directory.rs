//! The embedded default: a directory.

use tempfile::TempDir;

use crate::Result;

use super::{Location, Store, scratch};

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Directory(TempDir);

impl Directory {
    /// An empty one.
    pub fn start() -> Result<Self> {
        scratch().map(Directory)
    }
}

impl Store for Directory {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn location(&self, prefix: &str) -> Location {
        Location::directory(&format!("{}/{prefix}", self.0.path().display()))
    }
}
