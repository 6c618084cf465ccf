//! Printing results: tables and YAML for people, JSON for programs.

use std::io::{self, Write};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::error::CliError;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Lists as tables, single things as YAML
    #[default]
    Text,
    /// JSON
    Json,
}

/// A line of a table.
pub trait Row: Serialize {
    /// The heads of the columns.
    const HEADS: &'static [&'static str];

    /// The cells, as many as heads.
    fn cells(&self) -> Vec<String>;
}

/// Prints a list.
pub fn list<T: Row>(format: Format, rows: &[T]) -> Result<(), CliError> {
    match format {
        Format::Json => json(&rows),
        Format::Text => {
            let lines: Vec<Vec<String>> =
                std::iter::once(T::HEADS.iter().map(|&head| head.to_owned()).collect())
                    .chain(rows.iter().map(Row::cells))
                    .collect();
            print(&table(&lines))
        }
    }
}

/// Prints one thing.
pub fn one<T: Serialize>(format: Format, thing: &T) -> Result<(), CliError> {
    match format {
        Format::Json => json(thing),
        Format::Text => {
            let text = serde_yaml::to_string(thing).map_err(|error| CliError::Print(error.to_string()))?;
            print(&text)
        }
    }
}

/// Prints what was done: for people a sentence, for programs the thing.
pub fn done<T: Serialize>(format: Format, thing: &T, sentence: &str) -> Result<(), CliError> {
    match format {
        Format::Json => json(thing),
        Format::Text => print(&format!("{sentence}\n")),
    }
}

/// A time as people read it, from milliseconds since the Unix epoch.
pub fn time(at_ms: u64) -> String {
    let timestamp = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| format!("{at_ms} ms"), |timestamp| timestamp.strftime("%FT%TZ").to_string())
}

/// A sign on the terminal that something is under way, until it is dropped.
pub struct Working(ProgressBar);

/// Shows `what` is being done; nothing where standard error is no terminal.
pub fn working(what: impl Into<String>) -> Working {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
        .expect("the template is valid: it never changes");
    let bar = ProgressBar::new_spinner().with_style(style).with_message(what.into());
    bar.enable_steady_tick(Duration::from_millis(100));
    Working(bar)
}

/// How far something is, in bytes, on the terminal, until it is dropped.
pub struct Progress(ProgressBar);

/// Shows how far `what` is; nothing where standard error is no terminal.
pub fn progress(what: impl Into<String>) -> Progress {
    let style = ProgressStyle::with_template(
        "{msg} {bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
    )
    .expect("the template is valid: it never changes");
    Progress(ProgressBar::new(0).with_style(style).with_message(what.into()))
}

impl Progress {
    /// Shows that `done_bytes` of `total_bytes` are done.
    pub fn set(&self, done_bytes: u64, total_bytes: u64) {
        self.0.set_length(total_bytes);
        self.0.set_position(done_bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn json<T: Serialize>(thing: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(thing).map_err(|error| CliError::Print(error.to_string()))?;
    print(&format!("{text}\n"))
}

fn print(text: &str) -> Result<(), CliError> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|source| CliError::System { what: "write to standard output", source }),
    }
}

fn table(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| lines.iter().filter_map(|l| l.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let line = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let lines = [line(["NAME", "SIZE"]), line(["datä", "1Gi"]), line(["x", ""])];
        assert_eq!(table(&lines), "NAME  SIZE\ndatä  1Gi\nx\n");
    }

    #[test]
    fn times_are_in_utc_and_absurd_ones_are_shown_as_they_are() {
        assert_eq!(time(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX));
    }
}
