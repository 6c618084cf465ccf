//! A line of the table: what was measured, against what, and what was aimed at.

use std::fmt;

/// What is compared and what is aimed at.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// What is measured.
    pub what: &'static str,
    /// What it is compared with; empty if with nothing.
    pub against: &'static str,
    /// How its numbers are told.
    pub unit: Unit,
    /// What is aimed at.
    pub goal: Goal,
    /// Why the goal is missed, where it is.
    pub cause: &'static str,
}

/// How numbers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Requests or transactions a second.
    PerSecond,
    /// Bytes a second.
    BytesPerSecond,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// A count.
    Count,
}

/// What is aimed at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Nothing: the line is there to compare.
    None,
    /// Our number is at least this.
    AtLeast(f64),
    /// Our number is at most this.
    AtMost(f64),
    /// Our number is at least this much of the other.
    RatioAtLeast(f64),
    /// Our number is at most this much of the other.
    RatioAtMost(f64),
}

/// What one run saw.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// Numbers: ours, and that of what it is compared with.
    Numbers(f64, Option<f64>),
    /// There is nothing to measure here, for this reason.
    Nothing(String),
}

/// Median and extremes of repeated runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// A line with all its runs.
#[derive(Debug, Clone)]
pub struct Row {
    pub line: Line,
    pub ours: Option<Spread>,
    pub theirs: Option<Spread>,
    pub ratio: Option<Spread>,
    /// Why there are no numbers.
    pub missing: Option<String>,
}

impl Row {
    /// The row of what the runs have seen. Ratios are taken run by run.
    pub fn of(line: Line, seen: &[Seen]) -> Self {
        let numbers: Vec<(f64, Option<f64>)> = seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Numbers(ours, theirs) => Some((*ours, *theirs)),
                Seen::Nothing(_) => None,
            })
            .collect();
        let missing = seen.iter().find_map(|seen| match seen {
            Seen::Nothing(reason) => Some(reason.clone()),
            Seen::Numbers(..) => None,
        });
        let ratios = numbers.iter().filter_map(|(ours, theirs)| theirs.map(|theirs| ours / theirs));
        Row {
            line,
            ours: Spread::of(numbers.iter().map(|numbers| numbers.0)),
            theirs: Spread::of(numbers.iter().filter_map(|numbers| numbers.1)),
            ratio: Spread::of(ratios),
            missing,
        }
    }

    /// Whether the median reaches the goal; `None` if there is no goal or no number.
    pub fn reached(&self) -> Option<bool> {
        let ours = self.ours.map(|spread| spread.median);
        let ratio = self.ratio.map(|spread| spread.median);
        match self.line.goal {
            Goal::None => None,
            Goal::AtLeast(aim) => ours.map(|ours| ours >= aim),
            Goal::AtMost(aim) => ours.map(|ours| ours <= aim),
            Goal::RatioAtLeast(aim) => ratio.map(|ratio| ratio >= aim),
            Goal::RatioAtMost(aim) => ratio.map(|ratio| ratio <= aim),
        }
    }

    /// The row as Markdown has it, without anything that differs from run to run but numbers.
    pub fn markdown(&self) -> String {
        let Line { what, against, unit, goal, .. } = self.line;
        if let (None, Some(reason)) = (&self.ours, &self.missing) {
            let goal = goal.tell(unit);
            return format!("| {what} | {against} | not measured: {reason} | | | {goal} | |");
        }
        let of = |spread: Option<Spread>| spread.map(|spread| spread.tell(|n| unit.tell(n)));
        let ratio = self.ratio.map(|spread| spread.tell(|n| format!("{n:.2}")));
        let reached = match self.reached() {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "",
        };
        format!(
            "| {what} | {against} | {} | {} | {} | {} | {reached} |",
            of(self.ours).unwrap_or_default(),
            of(self.theirs).unwrap_or_default(),
            ratio.unwrap_or_default(),
            goal.tell(unit),
        )
    }
}

impl Spread {
    fn of(numbers: impl Iterator<Item = f64>) -> Option<Self> {
        let mut numbers: Vec<f64> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        let middle = numbers.len() / 2;
        let median = match numbers.len() % 2 {
            0 => (numbers[middle - 1] + numbers[middle]) / 2.0,
            _ => numbers[middle],
        };
        Some(Spread { median, least, most })
    }

    /// The median, and the extremes where they differ as told.
    fn tell(&self, number: impl Fn(f64) -> String) -> String {
        let [median, least, most] = [self.median, self.least, self.most].map(number);
        if least == most { median } else { format!("{median} ({least}–{most})") }
    }
}

impl Unit {
    fn tell(self, number: f64) -> String {
        match self {
            Unit::PerSecond => format!("{}/s", thousands(number)),
            Unit::BytesPerSecond => format!("{:.0} MB/s", number / 1e6),
            Unit::Bytes if number < 1e4 => format!("{number:.1} B"),
            Unit::Bytes => format!("{:.2} MB", number / 1e6),
            Unit::Seconds if number < 0.01 => format!("{:.2} ms", number * 1e3),
            Unit::Seconds if number < 10.0 => format!("{:.0} ms", number * 1e3),
            Unit::Seconds => format!("{number:.1} s"),
            Unit::Count => format!("{number:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        }
    }
}

impl Goal {
    fn tell(self, unit: Unit) -> String {
        match self {
            Goal::None => String::new(),
            Goal::AtLeast(aim) => format!("≥ {}", unit.tell(aim)),
            Goal::AtMost(aim) => format!("≤ {}", unit.tell(aim)),
            Goal::RatioAtLeast(aim) => format!("≥ {aim} ×"),
            Goal::RatioAtMost(aim) => format!("≤ {aim} ×"),
        }
    }
}

fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.markdown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Line = Line {
        what: "4 KiB random write",
        against: "raw disk",
        unit: Unit::PerSecond,
        goal: Goal::RatioAtLeast(0.5),
        cause: "",
    };

    #[test]
    fn the_ratio_is_taken_run_by_run_and_the_median_decides() {
        let seen = [(1000.0, 1000.0), (1200.0, 3000.0), (900.0, 1000.0)];
        let row = Row::of(LINE, &seen.map(|(ours, theirs)| Seen::Numbers(ours, Some(theirs))));
        assert_eq!(row.ratio, Some(Spread { median: 0.9, least: 0.4, most: 1.0 }));
        assert_eq!(row.reached(), Some(true));
        assert_eq!(
            row.markdown(),
            "| 4 KiB random write | raw disk | 1,000/s (900/s–1,200/s) | 1,000/s (1,000/s–3,000/s) | \
             0.90 (0.40–1.00) | ≥ 0.5 × | reached |"
        );
    }

    #[test]
    fn a_missed_goal_and_a_missing_number_are_told() {
        let row = Row::of(LINE, &[Seen::Numbers(400.0, Some(1000.0))]);
        assert_eq!(row.reached(), Some(false));
        let row = Row::of(LINE, &[Seen::Nothing("it does not run here".into())]);
        assert_eq!(row.reached(), None);
        assert_eq!(
            row.markdown(),
            "| 4 KiB random write | raw disk | not measured: it does not run here | | | ≥ 0.5 × | |"
        );
    }

    #[test]
    fn numbers_are_told_in_their_units() {
        let told = [
            (Unit::PerSecond, 1_234_567.0, "1,234,567/s"),
            (Unit::BytesPerSecond, 123_456_789.0, "123 MB/s"),
            (Unit::Bytes, 16.04, "16.0 B"),
            (Unit::Bytes, 10_485_760.0, "10.49 MB"),
            (Unit::Seconds, 0.00123, "1.23 ms"),
            (Unit::Seconds, 2.0, "2000 ms"),
            (Unit::Count, 3.0, "3"),
            (Unit::Count, 1.1, "1.1"),
        ];
        for (unit, number, text) in told {
            assert_eq!(unit.tell(number), text);
        }
    }
}
