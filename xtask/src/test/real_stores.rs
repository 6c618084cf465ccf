//! The engine's tests of stores on real ones, and its refusal of unsound ones.

use std::fs;

use clap::ValueEnum;
use holdfast_e2e::{
    Error, Result,
    process::Cmd,
    report,
    stores::{S3rver, S3sFs, Store},
};

use crate::stores::Kind;

use super::{
    Tally,
    code::{cargo, run_tests},
};

/// Directories of pool files, by which the engine's tests find the stores.
const SOUND: &str = "HOLDFAST_TEST_STORES";
const UNSOUND: &str = "HOLDFAST_TEST_UNSOUND_STORES";

/// Starts every store and runs the tests.
pub(super) fn check() -> Result<Tally> {
    let sound = Kind::value_variants().iter().map(|kind| kind.start()).collect::<Result<Vec<_>>>()?;
    let unsound: [Box<dyn Store>; 2] = [
        Box::new(report::step("start s3rver", S3rver::start)?),
        Box::new(report::step("start s3s-fs", S3sFs::start)?),
    ];
    let files = tempfile::tempdir()
        .map_err(|source| Error::System { what: "making a temporary directory", source })?;
    let command = tests_on(SOUND, &sound, &files, cargo())?;
    let command = tests_on(UNSOUND, &unsound, &files, command)?;
    run_tests(command.args([
        "test",
        "--locked",
        "--quiet",
        "--no-fail-fast",
        "--package",
        "holdfast-engine",
        "--test",
        "stores",
    ]))
}

/// Writes a pool file for each store and tells the tests where they are.
fn tests_on(
    variable: &str,
    stores: &[Box<dyn Store>],
    files: &tempfile::TempDir,
    command: Cmd,
) -> Result<Cmd> {
    let directory = files.path().join(variable);
    let write = |path: &std::path::Path, text: &str| {
        fs::write(path, text).map_err(|source| Error::File { action: "write", path: path.into(), source })
    };
    fs::create_dir(&directory).map_err(|source| Error::File {
        action: "create",
        path: directory.clone(),
        source,
    })?;
    for store in stores {
        let name = store.name();
        write(&directory.join(format!("{name}.yaml")), &store.location(name).pool_file()?)?;
    }
    Ok(command.env(variable, directory))
}
