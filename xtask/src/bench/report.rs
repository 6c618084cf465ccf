//! The table, and `docs/performance.md` around it.

use std::fs;

use holdfast_e2e::{Error, Result, report, repository};

use super::line::Row;

const FILE: &str = "docs/performance.md";
const TEMPLATE: &str = include_str!("performance.md");
const HEAD: &str =
    "| what | against | Holdfast | the other | ratio | goal | |\n|---|---|---:|---:|---:|---:|---|";

/// All lines as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut out = HEAD.to_owned();
    for row in rows {
        out.push('\n');
        out.push_str(&row.markdown());
    }
    out
}

/// Writes the file of the documentation.
pub fn write(rows: &[Row], runs: usize) -> Result<()> {
    let text = document(rows, runs, &machine());
    let path = repository().join(FILE);
    fs::write(&path, text).map_err(|source| Error::File { action: "write", path, source })?;
    report::note(&format!("written: {FILE}"));
    Ok(())
}

fn document(rows: &[Row], runs: usize, machine: &str) -> String {
    TEMPLATE
        .replace("{machine}", machine)
        .replace("{runs}", &runs.to_string())
        .replace("{table}", &table(rows))
        .replace("{missed}", &missed(rows))
}

/// The goals that were missed, with their causes.
fn missed(rows: &[Row]) -> String {
    let missed: Vec<String> = rows
        .iter()
        .filter(|row| row.reached() == Some(false))
        .map(|row| {
            let cause =
                if row.line.cause.is_empty() { "The cause is not known yet." } else { row.line.cause };
            format!("- **{}**: {cause}", row.line.what)
        })
        .collect();
    if missed.is_empty() { "None.".into() } else { missed.join("\n") }
}

/// Processors, memory and kernel; nothing that names the machine.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let of = |text: &str, field: &str| {
        text.lines()
            .find(|line| line.starts_with(field))
            .and_then(|line| line.split_once(':'))
            .map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let model = of(&processors, "model name");
    let memory: u64 = of(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{count} processors ({model}), {:.0} GiB of memory, Linux {}",
        memory as f64 / (1 << 20) as f64,
        kernel.trim().split('-').next().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use crate::bench::line::{Goal, Line, Seen, Unit};

    use super::*;

    fn row(cause: &'static str, ours: f64) -> Row {
        let line =
            Line { what: "a thing", against: "", unit: Unit::PerSecond, goal: Goal::AtLeast(10.0), cause };
        Row::of(line, &[Seen::Numbers(ours, None)])
    }

    #[test]
    fn the_document_has_machine_table_and_what_was_missed() {
        let text = document(&[row("It is slow.", 9.0), row("", 11.0)], 3, "2 processors");
        for part in ["2 processors", "| a thing |  | 9/s |", "- **a thing**: It is slow.", "**missed**"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("{table}") && !text.contains("{runs}"));
    }

    #[test]
    fn nothing_missed_is_said() {
        assert_eq!(missed(&[row("", 11.0)]), "None.");
    }
}
