//! Running the distribution's programs.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::MountError;

/// How much of a program's words goes into an error.
const MAX_DETAIL_BYTES: usize = 1024;

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    program: String,
    status: String,
    detail: String,
}

impl Output {
    /// What it said last, for an error.
    pub fn detail(&self) -> String {
        self.detail.clone()
    }

    /// The error that this end of the program is.
    pub fn error(&self) -> MountError {
        MountError::Tool {
            program: self.program.clone(),
            status: self.status.clone(),
            detail: self.detail.clone(),
        }
    }
}

/// Arguments of several types, as a command line.
pub trait Arguments {
    /// The arguments in order.
    fn list(&self) -> Vec<&OsStr>;
}

impl Arguments for (&[&str], &Path) {
    fn list(&self) -> Vec<&OsStr> {
        self.0.iter().map(OsStr::new).chain([self.1.as_os_str()]).collect()
    }
}

impl Arguments for (&[&str], &Path, &Path) {
    fn list(&self) -> Vec<&OsStr> {
        self.0.iter().map(OsStr::new).chain([self.1.as_os_str(), self.2.as_os_str()]).collect()
    }
}

/// Runs `program` and waits for it at most `limit`; it is killed then.
///
/// # Errors
/// [`MountError::ToolMissing`], [`MountError::ToolTimedOut`]. That it reports a failure is no error here.
pub async fn run(program: &str, arguments: impl Arguments, limit: Duration) -> Result<Output, MountError> {
    let output = tokio::process::Command::new(program)
        .args(arguments.list())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(limit, output)
        .await
        .map_err(|_| MountError::ToolTimedOut { program: program.into(), limit })?
        .map_err(|source| MountError::ToolMissing { program: program.into(), source })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let words = if stderr.trim().is_empty() { stdout.as_str() } else { &stderr };
    Ok(Output {
        code: output.status.code(),
        detail: last_words(words),
        program: program.into(),
        status: output.status.to_string(),
        stdout,
    })
}

fn last_words(text: &str) -> String {
    let text = text.trim();
    let mut start = text.len().saturating_sub(MAX_DETAIL_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].lines().map(str::trim).collect::<Vec<_>>().join("; ")
}
