//! Progress for a person: a line when a step begins, a line with its time when it has ended.

use std::time::Instant;

use crate::Result;

/// Runs one step of a longer task and tells its name and time.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("  … {name}");
    let start = Instant::now();
    let result = work();
    let mark = if result.is_ok() { '✓' } else { '✗' };
    println!("  {mark} {name} ({:.1} s)", start.elapsed().as_secs_f64());
    result
}

/// Tells something that takes no time.
pub fn note(text: &str) {
    println!("  · {text}");
}
