//! Starting a program: in the container's first process, and in the supervisor of a further one.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use agents_core::StartFailure;
use rustix::{
    process::{Pid, Signal, WaitOptions, WaitStatus, wait, waitpid},
    pty::OpenptFlags,
};
use serde::{Deserialize, Serialize};

use crate::{
    spec::{Context, Failure, ProcessSpec},
    sys::{CloneFlags, close_on_exec_from, execve, exit_now, fork, install_stdio, reset_signals},
};

/// What a program's environment has unless it is set otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a program reads and writes.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Three descriptors; nothing to read without the first.
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The agent's side of a terminal.
    Terminal(OwnedFd),
}

/// Whether a program was started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Launch {
    Running(u32),
    NotStarted { reason: StartFailure, message: String },
}

/// A terminal of the container's own: our side and the agent's.
pub(crate) fn open_terminal(rows: u16, columns: u16) -> Result<(OwnedFd, OwnedFd), Failure> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let ours = rustix::fs::open("/dev/pts/ptmx", flags, rustix::fs::Mode::empty()).context("cannot open a terminal")?;
    rustix::pty::unlockpt(&ours).context("cannot unlock the terminal")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs =
        rustix::pty::ioctl_tiocgptpeer(&ours, flags).context("cannot open the agent's side of the terminal")?;
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&ours, size).context("cannot set the terminal's size")?;
    Ok((ours, theirs))
}

/// Starts a program as a child. Its environment is the container's, overridden by its own.
pub(crate) fn launch(
    process: &ProcessSpec,
    container_env: &[(String, String)],
    container_dir: &str,
    streams: Streams,
) -> Result<Launch, Failure> {
    let plan = Plan::new(process, container_env, container_dir)?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let Some(child) = fork(CloneFlags::NONE).context("cannot start a process")? else {
        let (step, error) = plan.run(&streams);
        let number = error.raw_os_error().unwrap_or(0);
        let _ = rustix::io::write(&write, format!("{number} {step}").as_bytes());
        exit_now(127);
    };
    drop((write, streams));
    let mut report = String::new();
    File::from(read)
        .read_to_string(&mut report)
        .context("cannot learn whether the process started")?;
    let Some((number, step)) = report.split_once(' ') else {
        return Ok(Launch::Running(child.as_raw_nonzero().get().unsigned_abs()));
    };
    let _ = waitpid(Some(child), WaitOptions::empty());
    let error = io::Error::from_raw_os_error(number.parse().unwrap_or(0));
    let command = &process.command[0];
    let (reason, message) = match (step, error.raw_os_error()) {
        ("execute", Some(libc::ENOENT | libc::ENOTDIR)) => (
            StartFailure::NotFound,
            format!("the command {command:?} is not in the image"),
        ),
        ("execute", Some(libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::EPERM)) => (
            StartFailure::NotExecutable,
            format!("the command {command:?} cannot be executed: {error}"),
        ),
        ("execute", Some(libc::E2BIG)) => (
            StartFailure::NotExecutable,
            "the command with its environment is too long for the kernel".to_owned(),
        ),
        ("enter", _) => (
            StartFailure::Refused,
            format!("the working directory {:?} cannot be entered: {error}", plan.dir),
        ),
        _ => (StartFailure::Refused, format!("cannot {step} the process: {error}")),
    };
    Ok(Launch::NotStarted { reason, message })
}

/// Everything that needs memory, made before the fork.
struct Plan {
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    dir: String,
}

impl Plan {
    fn new(process: &ProcessSpec, container_env: &[(String, String)], container_dir: &str) -> Result<Self, Failure> {
        let mut env: Vec<(&str, &str)> = vec![("PATH", DEFAULT_PATH)];
        if process.tty.is_some() {
            env.push(("TERM", "xterm"));
        }
        for (name, value) in container_env.iter().chain(&process.env) {
            match env.iter_mut().find(|(known, _)| known == name) {
                Some(entry) => entry.1 = value,
                None => env.push((name, value)),
            }
        }
        let path = env
            .iter()
            .find(|(name, _)| *name == "PATH")
            .map_or(DEFAULT_PATH, |(_, value)| value);
        let command = process.command.first().map(String::as_str).unwrap_or_default();
        let candidates: Vec<String> = if command.contains('/') {
            vec![command.to_owned()]
        } else if command.is_empty() {
            Vec::new()
        } else {
            path.split(':')
                .map(|folder| format!("{}/{command}", if folder.is_empty() { "." } else { folder }))
                .collect()
        };
        let words = |words: Vec<String>| -> Result<Vec<CString>, Failure> {
            words
                .into_iter()
                .map(CString::new)
                .collect::<Result<_, _>>()
                .map_err(io::Error::other)
                .context("a word holds NUL")
        };
        Ok(Self {
            candidates: words(candidates)?,
            arguments: words(process.command.clone())?,
            environment: words(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())?,
            dir: process.working_dir.clone().unwrap_or_else(|| container_dir.to_owned()),
        })
    }

    /// In the child: becomes the program, or says which step failed.
    fn run(&self, streams: &Streams) -> (&'static str, io::Error) {
        match self.try_run(streams) {
            Ok(error) => ("execute", error),
            Err((step, error)) => (step, error),
        }
    }

    fn try_run(&self, streams: &Streams) -> Result<io::Error, (&'static str, io::Error)> {
        let at = |step: &'static str| move |error: io::Error| (step, error);
        rustix::process::setsid().map_err(|error| ("detach", error.into()))?;
        // A supervisor's death must not leave its process behind.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        match streams {
            Streams::Terminal(terminal) => {
                rustix::process::ioctl_tiocsctty(terminal).map_err(|error| ("give a terminal to", error.into()))?;
                for number in 0..3 {
                    install_stdio(terminal, number).map_err(at("connect"))?;
                }
            }
            Streams::Pipes { stdin, stdout, stderr } => {
                match stdin {
                    Some(stdin) => install_stdio(stdin, 0).map_err(at("connect"))?,
                    None => {
                        let nothing = File::open("/dev/null").map_err(at("connect"))?;
                        install_stdio(nothing.as_fd(), 0).map_err(at("connect"))?;
                    }
                }
                install_stdio(stdout, 1).map_err(at("connect"))?;
                install_stdio(stderr, 2).map_err(at("connect"))?;
            }
        }
        rustix::process::chdir(Path::new(std::ffi::OsStr::from_bytes(self.dir.as_bytes())))
            .map_err(|error| ("enter", error.into()))?;
        close_on_exec_from(3).map_err(at("close the files of"))?;
        reset_signals();
        // As execvp(3): a candidate that may not be executed is remembered, and the search goes on.
        let mut fault = io::Error::from_raw_os_error(libc::ENOENT);
        for candidate in &self.candidates {
            let error = execve(candidate, &self.arguments, &self.environment);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => fault = error,
                _ => return Ok(error),
            }
        }
        Ok(fault)
    }
}

/// How a process ended, as it travels between our processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

impl Ended {
    pub(crate) fn of(status: WaitStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Signal(libc::SIGKILL),
        }
    }
}

/// What a container had left when a process of it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    /// The bytes of writable space that are used and free.
    pub(crate) disk: Option<(u64, u64)>,
    /// Whether there were as many processes as are allowed, where no cgroup counts refusals.
    pub(crate) no_processes: bool,
}

/// Takes every ended child off, and returns the ending of one of them if it is among them.
pub(crate) fn reap(wanted: Option<Pid>) -> Option<Ended> {
    let mut found = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if Some(pid) == wanted {
            found = Some(Ended::of(status));
        }
    }
    found
}
