//! A loop device on a file of the raw disk: what a local volume would be.

use std::path::{Path, PathBuf};

use holdfast_e2e::{Result, process::Cmd};

/// A loop device that is gone when it is dropped.
pub struct Loop {
    device: PathBuf,
}

impl Loop {
    /// Attaches a file with direct I/O.
    pub fn over(file: &Path) -> Result<Self> {
        let device = Cmd::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file).read()?;
        Ok(Loop { device: device.into() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // One that is in use goes when its last user has gone.
        let _ = Cmd::new("losetup").arg("--detach").arg(&self.device).cleanup().output();
    }
}
