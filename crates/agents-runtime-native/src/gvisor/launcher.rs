//! The process between the runtime and `runsc`: it joins the container's cgroup before `runsc` starts, so that everything
//! of the sandbox is in it, and ends the sandbox when the runtime's process goes away.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io,
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    mount::{MountPropagationFlags, mount_change},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{state, sys};

/// The name under which a program that calls [`init`](crate::init) runs as the launcher.
pub(crate) const NAME: &str = "isolated-agents-gvisor";

/// Where the messages of `runsc` go.
pub(super) const MESSAGES: &str = "runsc.txt";

/// Runs the launcher: `NAME FOLDER RUNSC ARGUMENT…`. Its standard streams are those of the guest program. Never returns.
pub(crate) fn main() -> ! {
    let mut arguments = std::env::args_os().skip(1);
    let code = match (arguments.next(), arguments.next()) {
        (Some(folder), Some(runsc)) => launch(Path::new(&folder), &runsc, arguments).unwrap_or(125),
        _ => 2,
    };
    std::process::exit(code)
}

fn launch(folder: &Path, runsc: &OsString, arguments: impl Iterator<Item = OsString>) -> io::Result<i32> {
    let identity = state::identity(folder)?;
    if let Some(group) = &identity.group {
        group.add(std::process::id())?;
    }
    if rustix::process::geteuid().is_root() {
        // Of what `runsc` mounts nothing stays behind on the host.
        sys::unshare_mounts()?;
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    }
    let messages = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(MESSAGES))?;
    let mut child = Command::new(runsc)
        .args(arguments)
        .stderr(Stdio::from(messages))
        .spawn()?;
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::NotFound)?;
    // Who kills this child kills the sandbox, since `runsc run` asks the kernel for that.
    state::write_running(folder, Some(pid))?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    let stdin = io::stdin();
    let mut owner_lives = true;
    loop {
        // The runtime keeps its end of the guest's standard input open for as long as the container is to live.
        let mut watched = vec![PollFd::new(&ended, PollFlags::IN)];
        if owner_lives {
            watched.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::empty()));
        }
        match poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !watched[0].revents().is_empty() {
            return Ok(child.wait()?.code().unwrap_or(125));
        }
        if watched.get(1).is_some_and(|owner| !owner.revents().is_empty()) {
            owner_lives = false;
            pidfd_send_signal(&ended, Signal::KILL)?;
        }
    }
}
