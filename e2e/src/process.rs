//! Commands with a time limit, and background processes that end with the value that started them.
//!
//! # Guarantees
//! - A [`Cmd`] returns within its limit. On a timeout, and when the user interrupts, its whole process group is
//!   killed, so no grandchild stays behind.
//! - A [`Daemon`] is ended (SIGTERM, then SIGKILL) when it is dropped. Signals go through a process descriptor
//!   that was opened at the start, so a recycled process id is never hit.
//! - What a command writes goes to unnamed temporary files, so a grandchild that keeps a pipe open delays nobody.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::{
    Error, Result,
    error::Named,
    interrupt::{self, Woken},
};

const DEFAULT_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const SHOWN_IN_ERRORS_BYTES: u64 = 4096;

/// A command that is to run to its end.
#[derive(Debug)]
pub struct Cmd {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Input,
    limit: Option<Duration>,
    interruptible: bool,
}

#[derive(Debug)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    File(File),
}

/// What a command wrote.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cmd {
    /// A command without arguments, with a limit of two minutes.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Cmd {
            program: program.as_ref().into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            input: Input::Nothing,
            limit: Some(DEFAULT_LIMIT),
            interruptible: true,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Adds arguments.
    pub fn args<I: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = I>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Runs in this directory.
    pub fn dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Gives these bytes as standard input. Secrets go this way, never as arguments.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives this file as standard input.
    pub fn input_file(mut self, file: File) -> Self {
        self.input = Input::File(file);
        self
    }

    /// Must end within this time.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Runs also when the user has interrupted: for what cleans up.
    pub fn cleanup(mut self) -> Self {
        self.interruptible = false;
        self
    }

    /// Runs the command; anything but success is an error.
    pub fn run(self) -> Result<Output> {
        let shown = self.to_string();
        let output = self.output()?;
        if output.status.success() {
            return Ok(output);
        }
        let text = if output.stderr.trim().is_empty() { &output.stdout } else { &output.stderr };
        Err(Error::Failed { command: shown, status: output.status, output: tail(text).into() })
    }

    /// Runs the command and returns its standard output without surrounding blanks.
    pub fn read(self) -> Result<String> {
        Ok(self.run()?.stdout.trim().to_owned())
    }

    /// Runs the command; how it ended is for the caller to judge.
    pub fn output(self) -> Result<Output> {
        let mut out = temporary()?;
        let mut err = temporary()?;
        let status = self.finish(
            Stdio::from(out.try_clone().map_err(temporary_failed)?),
            Stdio::from(err.try_clone().map_err(temporary_failed)?),
            |limit, command| Error::TimedOut { command, limit, output: String::new() },
        );
        let stderr = read_from_start(&mut err)?;
        match status {
            Ok(status) => Ok(Output { status, stdout: read_from_start(&mut out)?, stderr }),
            Err(Error::TimedOut { command, limit, .. }) => {
                Err(Error::TimedOut { command, limit, output: tail(&stderr).into() })
            }
            Err(error) => Err(error),
        }
    }

    /// Runs the command with its output on ours; anything but success is an error.
    pub fn show(self) -> Result<()> {
        let shown = self.to_string();
        let status = self.finish(Stdio::inherit(), Stdio::inherit(), |limit, command| Error::TimedOut {
            command,
            limit,
            output: String::new(),
        })?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Failed { command: shown, status, output: String::new() })
    }

    /// Hands the terminal to the command, without a limit, until it ends.
    pub fn interact(self) -> Result<ExitStatus> {
        let mut command = self.command();
        command.status().map_err(|source| self.cannot_start(source))
    }

    /// Starts the command in the background, with its output in `log`.
    pub fn spawn(self, name: &str, log: &Path) -> Result<Daemon> {
        let file = File::create(log).named("create", log)?;
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().named("open", log)?)
            .stderr(file)
            .process_group(0);
        let child = command.spawn().map_err(|source| self.cannot_start(source))?;
        Daemon::of(child, name, log)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    fn cannot_start(&self, source: std::io::Error) -> Error {
        Error::Start { program: self.program.to_string_lossy().into(), source }
    }

    fn finish(
        self,
        out: Stdio,
        err: Stdio,
        timed_out: impl FnOnce(Duration, String) -> Error,
    ) -> Result<ExitStatus> {
        if self.interruptible {
            interrupt::check()?;
        }
        let shown = self.to_string();
        let mut command = self.command();
        let stdin = match self.input {
            Input::Nothing => Stdio::null(),
            Input::Bytes(ref bytes) => {
                let mut file = temporary()?;
                file.write_all(bytes).and_then(|()| file.rewind()).map_err(temporary_failed)?;
                file.into()
            }
            Input::File(ref file) => file.try_clone().map_err(temporary_failed)?.into(),
        };
        let mut child = command
            .stdin(stdin)
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|source| self.cannot_start(source))?;
        match wait_for(&mut child, self.limit, self.interruptible)? {
            Ended::Status(status) => Ok(status),
            Ended::TimedOut(limit) => Err(timed_out(limit, shown)),
            Ended::Interrupted => Err(Error::Interrupted),
        }
    }
}

impl std::fmt::Display for Cmd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.program.to_string_lossy())?;
        for argument in &self.arguments {
            let argument = argument.to_string_lossy();
            match argument.char_indices().nth(160) {
                Some((end, _)) => write!(f, " {}…", &argument[..end])?,
                None => write!(f, " {argument}")?,
            }
        }
        Ok(())
    }
}

enum Ended {
    Status(ExitStatus),
    TimedOut(Duration),
    Interrupted,
}

/// Waits for a child that leads its own process group, and kills the group when it must not go on.
fn wait_for(child: &mut Child, limit: Option<Duration>, interruptible: bool) -> Result<Ended> {
    let system = |source| Error::System { what: "waiting for a process", source };
    let descriptor = descriptor_of(child)?;
    let woken = interrupt::wait(Some(descriptor.as_fd()), limit, interruptible).map_err(system)?;
    if woken != Woken::Ready {
        // The child has not been waited for, so the group of its id is still its own. A group that has ended
        // in this very moment needs no signal.
        let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    }
    let status = child.wait().map_err(system)?;
    Ok(match (woken, limit) {
        (Woken::Ready, _) => Ended::Status(status),
        (Woken::TimedOut, Some(limit)) => Ended::TimedOut(limit),
        (Woken::TimedOut, None) | (Woken::Interrupted, _) => Ended::Interrupted,
    })
}

fn descriptor_of(child: &Child) -> Result<OwnedFd> {
    pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .map_err(|source| Error::System { what: "opening a process descriptor", source: source.into() })
}

/// A process in the background.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
    descriptor: OwnedFd,
}

impl Daemon {
    fn of(child: Child, name: &str, log: &Path) -> Result<Self> {
        Ok(Daemon { name: name.into(), log: log.into(), descriptor: descriptor_of(&child)?, child })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.descriptor, signal)
            .map_err(|source| Error::System { what: "signalling a process", source: source.into() })
    }

    /// Fails if the process has ended.
    pub fn check(&mut self) -> Result<()> {
        let status = self.child.try_wait().map_err(|source| Error::System { what: "waiting", source })?;
        let Some(status) = status else { return Ok(()) };
        let output = std::fs::read_to_string(&self.log).unwrap_or_default();
        Err(Error::DaemonEnded {
            name: self.name.clone(),
            status: status.to_string(),
            log: self.log.clone(),
            output: tail(&output).into(),
        })
    }

    /// Kills it without warning, and waits until it is gone.
    pub fn kill(mut self) {
        self.end(Signal::KILL);
    }

    /// Leaves the process running when this program ends: for `stores up`, which writes down its id.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    fn end(&mut self, signal: Signal) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // A stopped process acts on SIGTERM only once it goes on. Errors mean that it has just ended.
        let _ = self.signal(signal);
        let _ = self.signal(Signal::CONT);
        let ended = interrupt::wait(Some(self.descriptor.as_fd()), Some(STOP_LIMIT), false);
        if !matches!(ended, Ok(Woken::Ready)) {
            let _ = self.signal(Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end(Signal::TERM);
    }
}

/// Whether a program is in the PATH.
pub fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn temporary() -> Result<File> {
    tempfile::tempfile().map_err(temporary_failed)
}

fn temporary_failed(source: std::io::Error) -> Error {
    Error::System { what: "using a temporary file", source }
}

fn read_from_start(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(temporary_failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn tail(text: &str) -> &str {
    let text = text.trim_end();
    let mut start = text.len().saturating_sub(SHOWN_IN_ERRORS_BYTES as usize);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_failure_carries_what_the_command_said() {
        let error = Cmd::new("sh").args(["-c", "echo out of cheese >&2; exit 3"]).run().unwrap_err();
        assert!(matches!(error, Error::Failed { .. }));
        assert!(error.to_string().contains("out of cheese"), "{error}");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(Cmd::new("cat").input("a\nb").read().unwrap(), "a\nb");
    }

    #[test]
    fn a_command_over_its_limit_is_killed_with_its_children() {
        let start = Instant::now();
        let error = Cmd::new("sh")
            .args(["-c", "sleep 60 & echo $! >&2; wait"])
            .limit(Duration::from_secs(2))
            .run()
            .unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(10));
        let Error::TimedOut { output, .. } = error else { panic!("{error}") };
        let pid: u32 = output.trim().parse().unwrap();
        let grandchild = PathBuf::from(format!("/proc/{pid}"));
        let gone = || match std::fs::read_to_string(grandchild.join("stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        interrupt::until("the grandchild is gone", Duration::from_secs(5), Duration::from_millis(10), || {
            Ok(if gone() { interrupt::Seen::Reached(()) } else { interrupt::Seen::NotYet("alive".into()) })
        })
        .unwrap();
    }

    #[test]
    fn a_daemon_ends_with_its_value_even_when_stopped() {
        let scratch = tempfile::tempdir().unwrap();
        let daemon = Cmd::new("sleep").arg("60").spawn("sleeper", &scratch.path().join("log")).unwrap();
        let process = PathBuf::from(format!("/proc/{}", daemon.pid()));
        daemon.signal(Signal::STOP).unwrap();
        assert!(process.exists());
        drop(daemon);
        assert!(!process.exists());
    }

    #[test]
    fn a_daemon_that_ended_is_noticed_with_its_log() {
        let scratch = tempfile::tempdir().unwrap();
        let mut daemon = Cmd::new("sh")
            .args(["-c", "echo no port; exit 1"])
            .spawn("server", &scratch.path().join("log"))
            .unwrap();
        let error = loop {
            match daemon.check() {
                Ok(()) => interrupt::pause(Duration::from_millis(5)).unwrap(),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("no port"), "{error}");
    }
}
