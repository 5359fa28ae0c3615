//! Starting the agent's program.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    rc::Rc,
};

use agents_guest::protocol::{Spawn, Status};
use rustix::{
    fs::Access,
    io::Errno,
    process::Pid,
    pty::OpenptFlags,
    termios::{Winsize, tcsetwinsize},
};

use super::streams::{Channel, Streams};

/// What a program's environment has unless it is set otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// This program itself, wherever it is.
const SELF: &str = "/proc/self/exe";

/// A program that runs, and our sides of its streams.
pub(super) struct Started {
    pub(super) pid: Pid,
    pub(super) streams: Streams,
}

/// Starts a program.
///
/// # Errors
///
/// Why it does not run, as the ending that is told.
pub(super) fn start(spawn: &Spawn) -> Result<Started, Status> {
    let dir = match &spawn.working_dir {
        Some(dir) => PathBuf::from(dir),
        None => env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
    };
    let enterable = fs::metadata(&dir).and_then(|found| match found.is_dir() {
        true => rustix::fs::access(&dir, Access::EXEC_OK).map_err(io::Error::from),
        false => Err(Errno::NOTDIR.into()),
    });
    if let Err(error) = enterable {
        return Err(Status::Refused(format!(
            "the working directory {dir:?} cannot be entered: {error}"
        )));
    }
    let name = spawn.command.first().map(String::as_str).unwrap_or_default();
    // As execvp(3): a candidate that may not be executed is remembered, and the search goes on.
    let mut fault = io::Error::from(Errno::NOENT);
    for candidate in candidates(name, &spawn.env) {
        if let Err(error) = executable(&dir.join(&candidate)) {
            if error.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) {
                fault = error;
            }
            continue;
        }
        let started = match spawn.tty {
            Some(size) => in_terminal(&candidate, spawn, &dir, size),
            None => with_pipes(&candidate, spawn, &dir),
        };
        match started {
            Ok(started) => return Ok(started),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fault = error,
            Err(error) => {
                fault = error;
                break;
            }
        }
    }
    Err(not_started(name, &fault))
}

fn not_started(name: &str, fault: &io::Error) -> Status {
    match fault.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR) => Status::NotFound(format!("the command {name:?} is not in the image")),
        Some(Errno::TOOBIG) => {
            Status::NotExecutable("the command with its environment is too long for the kernel".to_owned())
        }
        Some(Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR | Errno::PERM | Errno::TXTBSY | Errno::LOOP) => {
            Status::NotExecutable(format!("the command {name:?} cannot be executed: {fault}"))
        }
        _ => Status::Refused(format!("cannot start a process: {fault}")),
    }
}

/// Where a command may be: as it says, or in the folders of `PATH`.
fn candidates(name: &str, env: &[(String, String)]) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains('/') {
        return vec![PathBuf::from(name)];
    }
    let own = || env::var_os("PATH");
    let asked = env
        .iter()
        .rev()
        .find(|(key, _)| key == "PATH")
        .map(|(_, value)| OsString::from(value));
    let path = asked.or_else(own).unwrap_or_else(|| DEFAULT_PATH.into());
    let folders = path.as_bytes().split(|byte| *byte == b':');
    folders
        .map(|folder| Path::new(OsStr::from_bytes(if folder.is_empty() { b"." } else { folder })).join(name))
        .collect()
}

/// Asked before it is tried, since a process is not made for nothing for every folder of `PATH`.
fn executable(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        return Err(Errno::ACCESS.into());
    }
    Ok(rustix::fs::access(path, Access::EXEC_OK)?)
}

/// The environment is ours, which is the container's, with the process's own added.
fn environment(command: &mut Command, spawn: &Spawn) {
    let defaults = [("PATH", Some(DEFAULT_PATH)), ("TERM", spawn.tty.map(|_| "xterm"))];
    for (name, value) in defaults {
        if let (None, Some(value)) = (env::var_os(name), value) {
            command.env(name, value);
        }
    }
    command.envs(spawn.env.iter().map(|(name, value)| (name, value)));
}

fn with_pipes(candidate: &Path, spawn: &Spawn, dir: &Path) -> io::Result<Started> {
    let mut command = Command::new(candidate);
    // Its own process group, so that a signal to the group does not reach us.
    command
        .arg0(&spawn.command[0])
        .args(&spawn.command[1..])
        .current_dir(dir)
        .process_group(0);
    environment(&mut command, spawn);
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let input = if spawn.stdin {
        let (theirs, ours) = pipe()?;
        command.stdin(theirs);
        Some(ours)
    } else {
        command.stdin(Stdio::null());
        None
    };
    let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
    command.stdout(their_stdout).stderr(their_stderr);
    for ours in [input.as_ref(), Some(&stdout), Some(&stderr)].into_iter().flatten() {
        rustix::io::ioctl_fionbio(ours, true)?;
    }
    let pid = pid_of(command.spawn()?.id())?;
    Ok(Started {
        pid,
        streams: Streams::new([Channel::pipe(stdout), Channel::pipe(stderr)], input.map(Channel::pipe)),
    })
}

fn pid_of(id: u32) -> io::Result<Pid> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("the kernel gave a process no number"))
}

/// A terminal of the container's own: our side and the agent's.
fn open_terminal((rows, columns): (u16, u16)) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&ours)?;
    // Kernels that are not Linux's may lack this call.
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags).or_else(|_| {
        let name = rustix::pty::ptsname(&ours, Vec::new())?;
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())
    })?;
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&ours, size)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// A process takes its terminal itself, between its birth and the agent's program. So this very program is started there,
/// with the terminal as its input and output and with a pipe as its standard error that tells of a fault, and becomes the
/// agent's program.
fn in_terminal(candidate: &Path, spawn: &Spawn, dir: &Path, size: (u16, u16)) -> io::Result<Started> {
    let (ours, theirs) = open_terminal(size)?;
    let (fault, their_fault) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new(SELF);
    command
        .arg("terminal")
        .arg(candidate)
        .args(&spawn.command)
        .current_dir(dir);
    environment(&mut command, spawn);
    command.stdin(theirs.try_clone()?).stdout(theirs).stderr(their_fault);
    let pid = pid_of(command.spawn()?.id())?;
    // Our copies of the terminal and of the pipe are the command's.
    drop(command);
    let mut text = String::new();
    File::from(fault).read_to_string(&mut text)?;
    if let Ok(number) = text.trim().parse() {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        return Err(io::Error::from_raw_os_error(number));
    }
    let ours = Rc::new(ours);
    let input = spawn.stdin.then(|| Channel::terminal(Rc::clone(&ours)));
    Ok(Started {
        pid,
        streams: Streams::new([Channel::terminal(ours)], input),
    })
}

/// The other side of [`in_terminal`]: the program's path, then its words.
pub(super) fn take_terminal(words: &[OsString]) -> ExitCode {
    let fault = match become_program(words) {
        Ok(never) => match never {},
        Err((report, error)) => (report, error),
    };
    if let (Some(report), error) = fault {
        let number = error.raw_os_error().unwrap_or(Errno::INVAL.raw_os_error());
        let _ = File::from(report).write_all(number.to_string().as_bytes());
    }
    ExitCode::FAILURE
}

fn become_program(words: &[OsString]) -> Result<std::convert::Infallible, (Option<OwnedFd>, io::Error)> {
    // Closed when the program begins.
    let report = rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3).map_err(|error| (None, error.into()))?;
    let prepared = || -> io::Result<()> {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(io::stdin())?;
        rustix::stdio::dup2_stderr(io::stdin())?;
        Ok(())
    };
    let error = match (prepared(), words) {
        (Err(error), _) => error,
        (Ok(()), [path, name, arguments @ ..]) => Command::new(path).arg0(name).args(arguments).exec(),
        (Ok(()), _) => Errno::INVAL.into(),
    };
    Err((Some(report), error))
}
