//! The engine's tests of stores on real ones, its refusal of unsound ones, and a volume through a store's faults.

use std::fs;

use holdfast_e2e::{
    Error, Named, Result,
    process::Cmd,
    report,
    stores::{Ceph, S3rver, S3sFs, Store},
};

use crate::stores::Kind;

use super::{
    Tally,
    code::{cargo, run_tests},
    store_faults,
};

/// Directories of pool files, by which the engine's tests find the stores.
const SOUND: &str = "HOLDFAST_TEST_STORES";
const UNSOUND: &str = "HOLDFAST_TEST_UNSOUND_STORES";

/// Starts every store and runs the tests.
pub(super) fn check() -> Result<Tally> {
    let mut ceph = report::step("start ceph", Ceph::start)?;
    let (moto, azurite, gcs) = (Kind::Moto.start()?, Kind::Azurite.start()?, Kind::Gcs.start()?);
    let s3rver = report::step("start s3rver", S3rver::start)?;
    let s3s_fs = report::step("start s3s-fs", S3sFs::start)?;
    let files = tempfile::tempdir()
        .map_err(|source| Error::System { what: "making a temporary directory", source })?;
    let command = tests_on(SOUND, &[&ceph, &*moto, &*azurite, &*gcs], &files, cargo())?;
    let command = tests_on(UNSOUND, &[&s3rver, &s3s_fs], &files, command)?;
    let mut tally = run_tests(command.args([
        "test",
        "--locked",
        "--quiet",
        "--no-fail-fast",
        "--package",
        "holdfast-engine",
        "--test",
        "stores",
    ]))?;
    drop((moto, azurite, gcs, s3rver, s3s_fs));
    tally += store_faults::check(&mut ceph)?;
    Ok(tally)
}

/// Writes a pool file for each store and tells the tests where they are.
fn tests_on(variable: &str, stores: &[&dyn Store], files: &tempfile::TempDir, command: Cmd) -> Result<Cmd> {
    let directory = files.path().join(variable);
    fs::create_dir(&directory).named("create", &directory)?;
    for store in stores {
        let name = store.name();
        let file = directory.join(format!("{name}.yaml"));
        fs::write(&file, store.location(name).pool_file()?).named("write", &file)?;
    }
    Ok(command.env(variable, directory))
}
