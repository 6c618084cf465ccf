//! Root file systems made from Debian packages, where no image registry answers.

use std::{path::PathBuf, time::Duration};

use crate::{
    Result,
    cache::{self, Recipe},
    packages,
    process::Cmd,
    report,
};

const SUITE: &str = "bookworm";
const LIMIT: Duration = Duration::from_secs(1800);

/// A minimal Debian with these packages, as a tar archive in the cache.
pub fn root(name: &str, include: &[&str]) -> Result<PathBuf> {
    cache::entry(&format!("root-{name}.tar"), &recipe(include), |path| {
        packages::ensure("making a root file system", &["mmdebstrap", "ca-certificates"])?;
        report::step(&format!("Debian root for {name}"), || {
            Cmd::new("mmdebstrap")
                .args(["--quiet", "--variant=minbase", "--format=tar"])
                .args(
                    ["doc", "man", "locale", "info"]
                        .map(|d| format!("--dpkgopt=path-exclude=/usr/share/{d}/*")),
                )
                .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
                .arg(format!("--include={}", include.join(",")))
                .arg(SUITE)
                .arg(path)
                .limit(LIMIT)
                .run()?;
            Ok(())
        })
    })
}

/// Everything that decides what [`root`] makes, but for the state of Debian's archive on the day.
pub fn recipe(include: &[&str]) -> Recipe {
    Recipe::new("debian root").part(SUITE).part(include.join(","))
}
