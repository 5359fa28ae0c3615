//! The helper's main loop: answers requests, watches the deadline, and ends with its owner.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use agents_core::{ContainerState, ErrorKind, Exit, KillReason, StartFailure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};

use super::{
    Container,
    archive::{self, Live},
    end, exec,
    init::{Answer, Order},
    process::{Ended, Launch, Left},
    walk,
};
use crate::{
    cgroup::Usage,
    spec::{Control, Counters, Failure, Reply, Request},
    state,
    sys::{CloneFlags, exit_now, fork},
    wire,
};

/// How long the first process may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// How far the container has come.
#[derive(Debug)]
enum Stage {
    /// Its main process has not been started, or it has none.
    Created,
    /// Its main process runs.
    Running(Run),
    /// Its processes have ended; its files are still there.
    Ended,
}

/// The main process while it runs.
#[derive(Debug)]
struct Run {
    client: UnixStream,
    deadline: Option<Instant>,
    killed: Option<KillReason>,
}

#[derive(Debug)]
struct Server<'a> {
    container: &'a Container,
    stage: Stage,
    /// Processes that serve one request each.
    workers: Vec<Pid>,
    left: Left,
    since: Instant,
    /// Whether a worker was asked to stop the container's processes, and may have left them so.
    stops: bool,
}

/// Serves requests until the owner is gone or the container is destroyed.
pub(super) fn serve(container: Container, owner: &UnixStream, listener: &UnixListener) {
    let mut server = Server {
        container: &container,
        stage: Stage::Created,
        workers: Vec::new(),
        left: Left::default(),
        since: Instant::now(),
        stops: false,
    };
    // The same for one that does not read what it is told.
    let _ = container.socket.set_write_timeout(Some(PATIENCE));
    let destroyed = server.run(owner, listener);
    server.end_all();
    if let Some(client) = destroyed {
        let reply = match state::remove(&container.spec.identity) {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Failed(Failure::io("cannot remove the container", error)),
        };
        let _ = wire::send(&client, &reply, &[]);
        // The mounts lie in namespaces that only we hold, and end with us. Unmounting the writable space takes the kernel a
        // while, which nobody needs to wait for.
        drop(container);
    }
}

impl Server<'_> {
    /// Returns the connection that asked for the end, if one did.
    fn run(&mut self, owner: &UnixStream, listener: &UnixListener) -> Option<UnixStream> {
        loop {
            let alive = !matches!(self.stage, Stage::Ended);
            let (client, deadline) = match &self.stage {
                Stage::Running(run) => (Some(&run.client), run.deadline.filter(|_| run.killed.is_none())),
                _ => (None, None),
            };
            let mut fds = vec![PollFd::new(owner, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            if alive {
                fds.push(PollFd::new(&self.container.socket, PollFlags::IN));
            }
            if let Some(client) = client {
                fds.push(PollFd::new(client, PollFlags::IN));
            }
            let timeout = deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
            let polled = poll(&mut fds, timeout.as_ref());
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            self.workers
                .retain(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
            match polled {
                Err(_) => continue,
                Ok(0) => {
                    self.kill(KillReason::Deadline);
                    continue;
                }
                Ok(_) => {}
            }
            if ready[0] {
                return None;
            }
            if alive && ready[2] {
                self.hear();
            }
            if alive && ready.get(3) == Some(&true) {
                self.control();
            }
            if ready[1]
                && let Ok((client, _)) = listener.accept()
                && let Some(client) = self.answer(client)
            {
                return Some(client);
            }
        }
    }

    /// Kills all processes of the container; the first process's end is heard afterwards.
    fn kill(&mut self, reason: KillReason) {
        if let Stage::Running(run) = &mut self.stage {
            run.killed.get_or_insert(reason);
            let _ = kill_process(self.container.pid, Signal::KILL);
            self.go_on();
        }
    }

    /// Lets stopped processes go on, since with cgroups of version 1 these do not even end.
    fn go_on(&self) {
        if self.stops
            && let Some(group) = &self.container.spec.identity.group
        {
            let _ = group.freeze(false);
        }
    }

    /// What the client of the main process says; its silence is a cancellation.
    fn control(&mut self) {
        let Stage::Running(run) = &self.stage else { return };
        match wire::receive::<Control>(&run.client) {
            Ok(Some((Control::Kill(reason), _))) => self.kill(reason),
            Ok(Some((Control::Signal(number), _))) => {
                let _ = wire::send(&self.container.socket, &Order::Signal(number), &[]);
            }
            Ok(None) | Err(_) => self.kill(KillReason::Cancelled),
        }
    }

    /// What the first process says; its silence is its end.
    fn hear(&mut self) {
        match wire::receive::<Answer>(&self.container.socket) {
            Ok(Some((Answer::Ended(ended, left), _))) => self.ended(Some(ended), left),
            Ok(Some((Answer::Disk(disk), _))) => self.left.disk = disk,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => self.ended(None, self.left),
        }
    }

    fn ended(&mut self, ended: Option<Ended>, left: Left) {
        self.left = left;
        // Returns when the kernel has ended every process of the pid namespace.
        end(self.container.pid);
        if let Stage::Running(run) = std::mem::replace(&mut self.stage, Stage::Ended) {
            let exit = match run.killed {
                Some(reason) => killed(reason),
                None => exit_of(ended, Usage::default(), self.usage(), left),
            };
            let _ = wire::send(&run.client, &Reply::Exited(exit), &[]);
        }
    }

    fn usage(&self) -> Usage {
        if let Some(group) = &self.container.spec.identity.group {
            return group.usage();
        }
        let mut roots = self.workers.clone();
        if !matches!(self.stage, Stage::Ended) {
            roots.push(self.container.pid);
        }
        walk::usage(&roots)
    }

    /// Answers one request; returns the connection when it asks for the end.
    fn answer(&mut self, client: UnixStream) -> Option<UnixStream> {
        // A client that connects and says nothing must not stop the others.
        let _ = client.set_read_timeout(Some(Duration::from_secs(5)));
        let Ok(Some((request, fds))) = wire::receive::<Request>(&client) else {
            return None;
        };
        let _ = client.set_read_timeout(None);
        let refusal = match request {
            Request::Start { deadline_ms } => self.start(&client, deadline_ms, fds),
            Request::Exec { process, deadline_ms } => self.when_running(|server| {
                server.work(|container| exec::run(container, &client, process, deadline_ms, fds))
            }),
            Request::CopyFrom { path, quiesce } => {
                let live = match self.stage {
                    Stage::Ended => Live::Ended,
                    _ if quiesce => Live::ToBeStopped,
                    _ => Live::Running,
                };
                self.work(|container| archive::copy_from(container, &client, &path, live, fds))
            }
            Request::CopyTo { path } => self.work(|container| archive::copy_to(container, &client, &path, fds)),
            Request::Stats => {
                let counters = self.counters();
                let _ = wire::send(&client, &Reply::Stats(counters), &[]);
                Ok(())
            }
            Request::State => {
                let state = match self.stage {
                    Stage::Created if self.container.spec.process.is_some() => ContainerState::Created,
                    Stage::Created | Stage::Running(_) => ContainerState::Running,
                    Stage::Ended => ContainerState::Exited,
                };
                let pid = self.container.pid.as_raw_nonzero().get().unsigned_abs();
                let _ = wire::send(&client, &Reply::State { state, pid }, &[]);
                Ok(())
            }
            Request::Destroy => return Some(client),
        };
        if let Err(failure) = refusal {
            let _ = wire::send(&client, &Reply::Failed(failure), &[]);
        }
        None
    }

    fn when_running(&mut self, f: impl FnOnce(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        let refusal = match self.stage {
            Stage::Created if self.container.spec.process.is_some() => "the main process has not been started",
            Stage::Ended => "the container's processes have ended",
            Stage::Created | Stage::Running(_) => return f(self),
        };
        Err(Failure::new(ErrorKind::Conflict, refusal))
    }

    /// Lets a process of its own serve a request, so that a slow one holds nobody up.
    fn work(&mut self, job: impl FnOnce(&Container)) -> Result<(), Failure> {
        match fork(CloneFlags::NONE) {
            Ok(None) => {
                job(self.container);
                exit_now(0)
            }
            Ok(Some(worker)) => {
                self.workers.push(worker);
                Ok(())
            }
            Err(error) => Err(Failure::io("cannot start a process for the request", error)),
        }
    }

    fn start(&mut self, client: &UnixStream, deadline_ms: Option<u64>, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let Some(process) = &self.container.spec.process else {
            return Err(Failure::new(ErrorKind::Conflict, "the container has no main process"));
        };
        if !matches!(self.stage, Stage::Created) {
            return Err(Failure::new(
                ErrorKind::Conflict,
                "the main process has been started already",
            ));
        }
        let terminal = process.tty.is_some();
        let (launch, ours) = order_start(&self.container.socket, fds)?;
        match launch {
            Launch::Running(_) => {
                let kept = client
                    .try_clone()
                    .map_err(|error| Failure::io("cannot keep the connection", error))?;
                let ours: Vec<_> = ours.iter().filter(|_| terminal).map(AsFd::as_fd).collect();
                let deadline = deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
                self.stage = Stage::Running(Run {
                    client: kept,
                    deadline,
                    killed: None,
                });
                let _ = wire::send(client, &Reply::Started, &ours);
            }
            Launch::NotStarted { reason, message } => {
                end(self.container.pid);
                self.stage = Stage::Ended;
                let _ = wire::send(client, &Reply::Exited(Exit::NotStarted { reason, message }), &[]);
            }
        }
        Ok(())
    }

    fn counters(&mut self) -> Counters {
        // Whatever else is on its way, such as the main process's end, is heard as usual.
        if !matches!(self.stage, Stage::Ended) && wire::send(&self.container.socket, &Order::Disk, &[]).is_ok() {
            // One that is stopped, or has more to take off than it can, answers later or never, and must not hold up the rest.
            let mut answer = [PollFd::new(&self.container.socket, PollFlags::IN)];
            if poll(&mut answer, Some(&timespec(PATIENCE))).is_ok_and(|ready| ready > 0) {
                self.hear();
            }
        }
        let memory_limit_bytes = self.container.spec.limits.memory_bytes;
        Counters {
            usage: self.usage(),
            disk_used_bytes: self.left.disk.map(|(used, _)| used),
            memory_limit_bytes,
            age_seconds: self.since.elapsed().as_secs_f64(),
        }
    }

    /// Ends every process that belongs to the container.
    fn end_all(&mut self) {
        for worker in &self.workers {
            let _ = kill_process(*worker, Signal::KILL);
        }
        // One that was copying may have stopped the container's processes, and one of those may be another worker.
        while !self.workers.is_empty() {
            self.go_on();
            self.workers
                .retain(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
            if !self.workers.is_empty() {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        self.go_on();
        if !matches!(self.stage, Stage::Ended) {
            end(self.container.pid);
            if let Stage::Running(run) = std::mem::replace(&mut self.stage, Stage::Ended) {
                let exit = run.killed.map_or(Exit::Cancelled, killed);
                let _ = wire::send(&run.client, &Reply::Exited(exit), &[]);
            }
        }
    }
}

/// Tells a first process or a supervisor to start its process.
pub(super) fn order_start(socket: &UnixStream, fds: Vec<OwnedFd>) -> Result<(Launch, Option<OwnedFd>), Failure> {
    let gone = || {
        Failure::new(
            ErrorKind::Unavailable,
            "the container went away while the process was being started",
        )
    };
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    wire::send(socket, &Order::Start, &borrowed).map_err(|_| gone())?;
    drop(fds);
    match wire::receive::<Answer>(socket) {
        Ok(Some((Answer::Launched(launch), ours))) => Ok((launch, ours.into_iter().next())),
        Ok(Some((Answer::Failed(failure), _))) => Err(failure),
        _ => Err(gone()),
    }
}

pub(super) fn killed(reason: KillReason) -> Exit {
    match reason {
        KillReason::Deadline => Exit::Deadline,
        KillReason::Cancelled => Exit::Cancelled,
    }
}

/// The typed ending: what the kernel counted explains a failure, never a success.
pub(super) fn exit_of(ended: Option<Ended>, before: Usage, after: Usage, left: Left) -> Exit {
    if ended == Some(Ended::Code(0)) {
        return Exit::Exited { code: 0 };
    }
    let code = match ended {
        Some(Ended::Code(code)) => Some(code),
        Some(Ended::Signal(signal)) => Some(128 + signal),
        None => None,
    };
    if after.oom_kills > before.oom_kills {
        return Exit::OutOfMemory;
    }
    if after.pids_refused > before.pids_refused || left.no_processes {
        return Exit::PidsLimit { code };
    }
    // A file system may refuse a whole write that needs more than what is left, and writes are up to 2 MiB long.
    if left
        .disk
        .is_some_and(|(used, free)| used > 0 && free <= (2 << 20).min((used + free) / 8))
    {
        return Exit::DiskLimit { code };
    }
    match ended {
        Some(Ended::Code(code)) => Exit::Exited { code },
        Some(Ended::Signal(signal)) => Exit::Signalled { signal },
        None => Exit::RuntimeLost {
            reason: "the container's first process was killed".to_owned(),
        },
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// The ending of a process that could not be started for a reason of our own.
pub(super) fn refused(failure: &Failure) -> Exit {
    Exit::NotStarted {
        reason: StartFailure::Refused,
        message: failure.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_counted_explains_a_failure_only() {
        let nothing = Usage::default();
        let oom = Usage {
            oom_kills: 1,
            ..nothing
        };
        let killed = Some(Ended::Signal(9));
        assert_eq!(
            exit_of(Some(Ended::Code(0)), nothing, oom, Left::default()),
            Exit::Exited { code: 0 }
        );
        assert_eq!(exit_of(killed, nothing, oom, Left::default()), Exit::OutOfMemory);
        assert_eq!(
            exit_of(killed, oom, oom, Left::default()),
            Exit::Signalled { signal: 9 }
        );
        assert_eq!(exit_of(None, nothing, nothing, Left::default()).kind(), "runtime_lost");
        let pids = Usage {
            pids_refused: 2,
            ..nothing
        };
        assert_eq!(
            exit_of(Some(Ended::Code(1)), nothing, pids, Left::default()),
            Exit::PidsLimit { code: Some(1) }
        );
        assert_eq!(
            exit_of(
                Some(Ended::Code(1)),
                nothing,
                nothing,
                Left {
                    disk: Some((5, 0)),
                    ..Left::default()
                }
            ),
            Exit::DiskLimit { code: Some(1) }
        );
        assert_eq!(
            exit_of(
                Some(Ended::Code(1)),
                nothing,
                nothing,
                Left {
                    disk: Some((5, 1 << 20)),
                    ..Left::default()
                }
            ),
            Exit::Exited { code: 1 }
        );
    }
}
