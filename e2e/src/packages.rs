//! Debian packages, installed by the piece that needs them when that is allowed.

use std::{sync::Mutex, time::Duration};

use crate::{
    Error, Result,
    process::{Cmd, is_in_path},
    report,
};

const INSTALL_LIMIT: Duration = Duration::from_secs(1200);
static INSTALLING: Mutex<()> = Mutex::new(());

/// Makes sure that these packages are installed: installs them as root, names what is missing otherwise.
pub fn ensure(purpose: &str, packages: &[&str]) -> Result<()> {
    // apt's own lock would make a second caller fail instead of wait.
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !rustix::process::geteuid().is_root() || !is_in_path("apt-get") {
        return Err(Error::MissingPackages { purpose: purpose.into(), packages: names });
    }
    report::step(&format!("Debian packages for {purpose}: {names}"), || {
        let apt = || {
            Cmd::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-q", "-o", "DPkg::Lock::Timeout=600"])
                .limit(INSTALL_LIMIT)
        };
        apt().arg("update").run()?;
        apt().args(["install", "-y", "--no-install-recommends"]).args(&missing).run()?;
        Ok(())
    })
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    if !is_in_path("dpkg-query") {
        return Ok(packages.to_vec());
    }
    let known = Cmd::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()?;
    let installed = |package: &str| known.stdout.lines().any(|l| l == format!("{package} installed"));
    Ok(packages.iter().copied().filter(|package| !installed(package)).collect())
}
