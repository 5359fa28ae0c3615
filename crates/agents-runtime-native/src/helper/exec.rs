//! A further process in a running container: a worker on the host, a supervisor inside, and the process itself.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use agents_core::{Exit, KillReason};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, pidfd_send_signal, waitpid},
};

use super::{
    Container, Namespaces,
    init::{self, Answer, Order, Role},
    process::{Ended, Launch, Left},
    server::{exit_of, killed, order_start, refused, timespec},
};
use crate::{
    cgroup::Usage,
    spec::{Context, Control, Failure, ProcessSpec, Reply},
    sys::{self, CloneFlags, exit_now, fork, setns},
    wire,
};

/// How long a supervisor may take to start its process. One that somebody inside has stopped never does.
const START: Duration = Duration::from_secs(30);

/// How long a supervisor may take to end its process tree. One that somebody inside has stopped, or that cannot kill as
/// fast as others fork, never does.
const GRACE: Duration = Duration::from_secs(2);

impl Namespaces {
    /// Enters what is needed to see the container's files with its ids.
    pub(super) fn enter_files(&self) -> Result<(), Failure> {
        setns(self.user.as_fd()).context("cannot enter the user namespace")?;
        setns(self.mnt.as_fd()).context("cannot enter the mount namespace")
    }

    /// Enters everything. Processes that are forked from now on are the container's.
    fn enter(&self) -> Result<(), Failure> {
        setns(self.user.as_fd()).context("cannot enter the user namespace")?;
        for (kind, namespace) in [
            ("cgroup", self.cgroup.as_ref()),
            ("ipc", Some(&self.ipc)),
            ("uts", Some(&self.uts)),
            ("network", Some(&self.net)),
            ("pid", Some(&self.pid)),
            ("mount", Some(&self.mnt)),
        ] {
            if let Some(namespace) = namespace {
                setns(namespace.as_fd()).context(format_args!("cannot enter the {kind} namespace"))?;
            }
        }
        Ok(())
    }
}

/// The worker.
pub(super) fn run(
    container: &Container,
    client: &UnixStream,
    process: ProcessSpec,
    deadline_ms: Option<u64>,
    fds: Vec<OwnedFd>,
) {
    let exit = match supervise(container, client, process, deadline_ms, fds) {
        Ok(exit) => exit,
        Err(failure) => refused(&failure),
    };
    let _ = wire::send(client, &Reply::Exited(exit), &[]);
}

fn supervise(
    container: &Container,
    client: &UnixStream,
    process: ProcessSpec,
    deadline_ms: Option<u64>,
    fds: Vec<OwnedFd>,
) -> Result<Exit, Failure> {
    let usage = || {
        container
            .spec
            .identity
            .group
            .as_ref()
            .map(crate::cgroup::Group::usage)
            .unwrap_or_default()
    };
    let before = usage();
    // By now its number may stand for another process at any time.
    let first = pidfd_open(container.pid, PidfdFlags::empty()).context("the container is gone")?;
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    // The worker stays outside of the container's cgroups, so that somebody is left to say so when the kernel ends all that
    // is in them for want of memory.
    let Some(gate) = fork(CloneFlags::NONE).context("cannot start a process")? else {
        drop(ours);
        gate(container, &process, theirs)
    };
    drop(theirs);
    let terminal = process.tty.is_some();
    ours.set_read_timeout(Some(START)).context("cannot set a time limit")?;
    let (launch, terminal_fd) = order_start(&ours, fds)?;
    ours.set_read_timeout(None).context("cannot lift the time limit")?;
    // One that is stopped does not read what it is told either.
    ours.set_write_timeout(Some(GRACE)).context("cannot set a time limit")?;
    match launch {
        Launch::NotStarted { reason, message } => {
            let _ = kill_process(gate, Signal::KILL);
            let _ = waitpid(Some(gate), WaitOptions::empty());
            return Ok(Exit::NotStarted { reason, message });
        }
        Launch::Running(_) => {
            let fds: Vec<_> = terminal_fd.iter().filter(|_| terminal).map(AsFd::as_fd).collect();
            let _ = wire::send(client, &Reply::Started, &fds);
        }
    }
    drop(terminal_fd);
    let deadline = deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let (ended, reason) = watch(client, &ours, deadline);
    if ended.is_none() {
        // Somebody inside has killed the supervisor or keeps it from its work, so that what it looked after can no longer be
        // told from the rest: the container ends, rather than that a deadline reaches only a part of it.
        let _ = pidfd_send_signal(&first, Signal::KILL);
    }
    let _ = waitpid(Some(gate), WaitOptions::empty());
    Ok(match (ended, reason) {
        (_, Some(reason)) => killed(reason),
        (Some((ended, left)), None) => exit_of(Some(ended), before, usage(), left),
        (None, None) => lost(before, usage()),
    })
}

/// The supervisor's end without a word: when the memory ran out, the kernel may have chosen it.
fn lost(before: Usage, after: Usage) -> Exit {
    if after.oom_kills > before.oom_kills {
        return Exit::OutOfMemory;
    }
    Exit::RuntimeLost {
        reason: "the process's supervisor was killed from inside, so the container was ended".to_owned(),
    }
}

type Ending = (Ended, Left);

/// Waits for the end, and passes on what the client says.
fn watch(
    client: &UnixStream,
    supervisor: &UnixStream,
    deadline: Option<Instant>,
) -> (Option<Ending>, Option<KillReason>) {
    let mut reason = None;
    let mut until = deadline;
    let mut client_open = true;
    loop {
        let mut fds = vec![PollFd::new(supervisor, PollFlags::IN)];
        if client_open {
            fds.push(PollFd::new(client, PollFlags::IN));
        }
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let polled = poll(&mut fds, left.map(timespec).as_ref());
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let killing = reason.is_some();
        let mut kill = |why| {
            if reason.is_none() {
                reason = Some(why);
                until = Some(Instant::now() + GRACE);
                let _ = wire::send(supervisor, &Order::Kill, &[]);
            }
        };
        match polled {
            Err(_) => continue,
            Ok(0) if killing => return (None, reason),
            Ok(0) => {
                kill(KillReason::Deadline);
                continue;
            }
            Ok(_) => {}
        }
        if ready.get(1) == Some(&true) {
            match wire::receive::<Control>(client) {
                Ok(Some((Control::Kill(why), _))) => kill(why),
                Ok(Some((Control::Signal(number), _))) => {
                    let _ = wire::send(supervisor, &Order::Signal(number), &[]);
                }
                Ok(None) | Err(_) => {
                    client_open = false;
                    kill(KillReason::Cancelled);
                }
            }
        }
        if ready[0] {
            match wire::receive::<Answer>(supervisor) {
                Ok(Some((Answer::Ended(ended, left), _))) => return (Some((ended, left)), reason),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return (None, reason),
            }
        }
    }
}

/// Enters the container, starts the supervisor in it, and ends with it.
fn gate(container: &Container, process: &ProcessSpec, socket: UnixStream) -> ! {
    let enter = || -> Result<Option<Pid>, Failure> {
        if let Some(group) = &container.spec.identity.group {
            group
                .add(std::process::id())
                .context("cannot join the container's cgroups")?;
        }
        container.namespaces.enter()?;
        // Entering the user namespace has reset it; the worker's end must be ours.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        sys::keep_only(&socket).context("cannot close the worker's files")?;
        fork(CloneFlags::NONE).context("cannot start a supervisor")
    };
    match enter() {
        Ok(None) => supervisor(container, process, &socket),
        Ok(Some(child)) => {
            // The worker reads the supervisor's end from the socket's.
            drop(socket);
            let _ = waitpid(Some(child), WaitOptions::empty());
        }
        Err(failure) => {
            let _ = wire::send(&socket, &Answer::Failed(failure), &[]);
        }
    }
    exit_now(0)
}

/// The supervisor: as unprivileged as the process that it starts.
fn supervisor(container: &Container, process: &ProcessSpec, socket: &UnixStream) -> ! {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let own = rustix::process::getpid();
    let ready = init::restrict(&container.spec, &container.filters)
        .and_then(|()| rustix::process::set_child_subreaper(Some(own)).context("cannot look after processes"));
    match ready {
        Ok(()) => init::serve(&container.spec, Some(process), socket, Role::Supervisor),
        Err(failure) => {
            // The answer to the order that is on its way.
            let _ = wire::send(socket, &Answer::Failed(failure), &[]);
        }
    }
    exit_now(1)
}
