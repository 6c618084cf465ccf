//! The stages that cargo runs.

use std::time::Duration;

use holdfast_e2e::{Error, Result, packages, process::Cmd, repository};

use super::Tally;

const CARGO_LIMIT: Duration = Duration::from_secs(3 * 3600);
/// What the front end's tests mount, format and load volumes with.
const PACKAGES: [&str; 6] = ["e2fsprogs", "fio", "mount", "postgresql", "util-linux", "xfsprogs"];

/// Runs of the simulator.
const SIMULATED_SEEDS: &str = "3000";

/// A cargo command in the repository.
pub(super) fn cargo() -> Cmd {
    Cmd::new("cargo").dir(repository()).limit(CARGO_LIMIT)
}

/// rustfmt.
pub(super) fn format() -> Result<Tally> {
    cargo().args(["fmt", "--all", "--check"]).show().map(|()| Tally::one(true))
}

/// clippy, with every warning an error.
pub(super) fn lints() -> Result<Tally> {
    cargo()
        .args(["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"])
        .show()
        .map(|()| Tally::one(true))
}

/// `cargo xtask generate --check`.
pub(super) fn generated() -> Result<Tally> {
    let stale = crate::generate::stale()?;
    for path in stale.keys() {
        println!("{} is out of date: run `cargo xtask generate`", path.display());
    }
    Ok(Tally::one(stale.is_empty()))
}

/// The tests of all packages.
pub(super) fn unit() -> Result<Tally> {
    packages::ensure("the tests of the front end", &PACKAGES)?;
    let cargo = cargo().env("HOLDFAST_SEEDS", SIMULATED_SEEDS);
    run_tests(cargo.args(["test", "--workspace", "--locked", "--no-fail-fast", "--quiet"]))
}

/// Runs `cargo test` and counts what it reports. What failed is printed in full.
pub(super) fn run_tests(command: Cmd) -> Result<Tally> {
    let shown = command.to_string();
    let output = command.output()?;
    let tally = count(&output.stdout);
    if output.status.success() {
        return Ok(tally);
    }
    println!("{}{}", output.stdout, output.stderr);
    if tally.failed > 0 {
        return Ok(tally);
    }
    Err(Error::Failed { command: shown, status: output.status, output: String::new() })
}

/// Adds up lines such as `test result: ok. 10 passed; 0 failed; …`.
fn count(output: &str) -> Tally {
    let mut total = Tally::default();
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        let number_before = |word: &str| {
            line.split(word)
                .next()
                .and_then(|before| before.split_whitespace().last())
                .and_then(|n| n.parse().ok())
        };
        total += Tally {
            passed: number_before(" passed;").unwrap_or(0),
            failed: number_before(" failed;").unwrap_or(0),
        };
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_packages_are_added_up() {
        let output = "test result: ok. 10 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\n\
                      test a ... FAILED\n\
                      test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(count(output), Tally { passed: 13, failed: 2 });
    }
}
