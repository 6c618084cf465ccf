//! `cargo xtask bench`: how fast Holdfast is, each number beside that of something else in the same run.
//!
//! A *group* measures some lines of the table together. Every group is run several times; the table has the medians
//! and the extremes. A run of everything writes `docs/performance.md`.

mod archive;
mod cache;
mod disk;
mod engine;
mod ground;
mod kill;
mod line;
mod peers;
mod points;
mod postgres;
mod report;
mod stream;
mod sync;
mod write;

use std::process::ExitCode;

use clap::Args;
use holdfast_e2e::{Error, Result};

use ground::{Ground, Scale};
use line::{Line, Row, Seen};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Only these groups, separated by commas; `--list` names them
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How often each is measured
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Short runs over little data: to see that everything works
    #[arg(long)]
    quick: bool,
    /// Print the groups and measure nothing
    #[arg(long)]
    list: bool,
    /// Where the programs were built already, instead of building them: target/release of a checkout
    #[arg(long)]
    programs: Option<std::path::PathBuf>,
}

/// Lines that are measured together.
struct Group {
    name: &'static str,
    lines: &'static [Line],
    /// Whether it wants Ceph, which takes a while to start.
    ceph: bool,
    /// One run: something for each of the lines, in their order.
    measure: fn(&mut Ground) -> Result<Vec<Seen>>,
}

static GROUPS: [Group; 13] = [
    Group { name: "write", lines: &write::LINES, ceph: false, measure: write::measure },
    Group { name: "requests", lines: &write::REQUESTS, ceph: false, measure: write::requests },
    Group { name: "fsync", lines: &sync::LINES, ceph: true, measure: sync::measure },
    Group { name: "read", lines: &cache::LINES, ceph: false, measure: cache::measure },
    Group { name: "stream", lines: &stream::LINES, ceph: true, measure: stream::measure },
    Group { name: "seal", lines: &stream::SEALED, ceph: false, measure: stream::sealed },
    Group { name: "points", lines: &points::LINES, ceph: false, measure: points::measure },
    Group { name: "open", lines: &engine::OPEN, ceph: false, measure: engine::open },
    Group { name: "archive", lines: &archive::LINES, ceph: false, measure: archive::measure },
    Group { name: "codec", lines: &engine::CODEC, ceph: false, measure: engine::codec },
    Group { name: "pgbench", lines: &postgres::LINES, ceph: false, measure: postgres::measure },
    Group { name: "kill", lines: &kill::LINES, ceph: false, measure: kill::measure },
    Group { name: "peers", lines: peers::LINES.as_flattened(), ceph: true, measure: peers::measure },
];

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        for Group { name, lines, .. } in &GROUPS {
            println!("{name}");
            lines.iter().for_each(|line| println!("    {}", line.what));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = options.only.iter().find(|name| GROUPS.iter().all(|group| group.name != **name)) {
        return Err(Error::Machine(format!("there is no group `{unknown}`; `--list` names them")));
    }
    let wanted = |group: &&Group| options.only.is_empty() || options.only.iter().any(|n| n == group.name);
    let scale = if options.quick { Scale::QUICK } else { Scale::FULL };
    let ceph = GROUPS.iter().filter(wanted).any(|group| group.ceph);
    let mut ground = Ground::prepare(scale, options.programs.as_deref(), ceph)?;
    let mut rows = Vec::new();
    let mut failed = false;
    for group in GROUPS.iter().filter(wanted) {
        let (found, has_failed) = repeat(group, &mut ground, options.runs.max(1))?;
        rows.extend(found);
        failed |= has_failed;
    }
    drop(ground);
    println!("\n{}", report::table(&rows));
    if options.only.is_empty() && !options.quick {
        report::write(&rows, options.runs.max(1))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Measures a group several times. A run that fails is told in the table, and ends the group but not the others.
fn repeat(group: &Group, ground: &mut Ground, runs: usize) -> Result<(Vec<Row>, bool)> {
    let mut seen: Vec<Vec<Seen>> = vec![Vec::new(); group.lines.len()];
    let mut failed = false;
    for run in 1..=runs {
        println!("  … {} ({run} of {runs})", group.name);
        let found = match (group.measure)(ground) {
            Ok(found) => found,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                eprintln!("  ✗ {}: {error}", group.name);
                failed = true;
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                vec![Seen::Nothing(format!("failed: {reason}")); group.lines.len()]
            }
        };
        seen.iter_mut().zip(found).for_each(|(all, one)| all.push(one));
        if failed {
            break;
        }
    }
    let rows: Vec<Row> = group.lines.iter().zip(&seen).map(|(line, seen)| Row::of(*line, seen)).collect();
    rows.iter().for_each(|row| println!("{row}"));
    Ok((rows, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_by_what_it_measures_and_against_what() {
        let lines = GROUPS.iter().flat_map(|group| group.lines);
        let mut names: Vec<_> = lines.map(|line| (line.what, line.against)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "two lines have one name");
    }
}
