//! The container's first process, and the supervisor of a further one: one loop over everything that can happen.

use std::{
    fs::OpenOptions,
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::Path,
};

use agents_guest::protocol::{
    Decoder, Ended, FailureKind, FromGuest, INPUT_WINDOW, MAX_PAYLOAD, Spawn, Started, State, Status, ToGuest,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process},
};

use super::{
    counters::{Counters, disk_is_full},
    failure::{Context, Fault, fault},
    first_state,
    frames::say,
    process, read,
    report::report,
    setup,
    streams::{Stream, Streams},
    tree,
};

/// The folder of the secrets.
const SECRETS: &str = "/run/secrets";

/// How much output waits for the host before the process has to.
const BACKLOG: usize = 2 * MAX_PAYLOAD;

/// How long to wait between two looks at processes that are being killed.
const BETWEEN_KILLS: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000,
};

/// Whose processes are looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The container's first process: with the main process everything else ends.
    First,
    /// The supervisor of a further process: what its process leaves behind lives on.
    Supervisor,
}

/// The container's first process, which does not end.
pub(super) fn first(limits: setup::Limits) -> Result<(), Fault> {
    setup::prepare(limits)?;
    enter(State::Idle)?;
    say(&report())?;
    Server::new(Role::First)?.run()
}

/// The supervisor of one further process.
pub(super) fn supervisor() -> Result<(), Fault> {
    setup::prepare(setup::limits_of_first())?;
    Server::new(Role::Supervisor)?.run()
}

/// Says the state by the process's name.
fn enter(state: State) -> Result<(), Fault> {
    let name = std::ffi::CString::new(state.comm()).context("a state has no name")?;
    rustix::thread::set_name(&name).context("cannot take a name")
}

/// A process that was started and has not been told to have ended yet.
#[derive(Debug)]
struct Running {
    pid: Pid,
    streams: Streams,
    before: Counters,
    ended: Option<Status>,
    /// Whether there were as many processes as may be when it ended, where no cgroup says so.
    processes_used_up: Option<bool>,
    /// Whether everything that there is to answer for is being killed.
    killing: bool,
}

struct Server {
    role: Role,
    decoder: Decoder,
    /// Whether the host may still say something.
    hears: bool,
    /// What is to be said, and how much of it has been.
    out: Vec<u8>,
    said: usize,
    /// Whether the host listens.
    heard: bool,
    children: UnixStream,
    state: State,
    prepared: Option<Spawn>,
    outlives_client: bool,
    running: Option<Running>,
}

/// What a look at the descriptors showed.
#[derive(Default)]
struct Ready {
    host: bool,
    out: bool,
    streams: Vec<(Stream, PollFlags)>,
}

impl Server {
    fn new(role: Role) -> Result<Self, Fault> {
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own)).context("cannot look after processes")?;
        let (children, told) = UnixStream::pair().context("cannot make a socket")?;
        children.set_nonblocking(true).context("cannot make a socket")?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, told)
            .context("cannot be told of children")?;
        // Our own end of it alone: who reads has a description of its own.
        rustix::io::ioctl_fionbio(std::io::stdout(), true).context("cannot write without waiting")?;
        Ok(Self {
            role,
            decoder: Decoder::new(),
            hears: true,
            out: Vec::new(),
            said: 0,
            heard: true,
            children,
            state: State::Idle,
            prepared: None,
            outlives_client: false,
            running: None,
        })
    }

    fn run(mut self) -> Result<(), Fault> {
        loop {
            self.reap();
            self.look_after()?;
            let done = self.state == State::Exited || !self.hears;
            if self.role == Role::Supervisor && done && self.running.is_none() && self.is_said() {
                return Ok(());
            }
            let ready = self.wait();
            if ready.out {
                self.flush();
            }
            if ready.host {
                self.hear()?;
            }
            for (stream, flags) in ready.streams {
                self.serve(stream, flags);
            }
        }
    }

    /// Takes ended children off, ours and those that have lost their parents.
    fn reap(&mut self) {
        let mut bytes = [0; 64];
        while rustix::io::read(&self.children, &mut bytes).is_ok_and(|read| read > 0) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(running) = self.running.as_mut().filter(|running| running.pid == pid) {
                let status = status_of(status);
                // Looked for before anything else ends, and only where it explains something that no cgroup counts: it takes
                // a look at every process.
                if status != Status::Code(0) && !running.before.counts_processes() {
                    running.processes_used_up = setup::processes_are_used_up();
                }
                running.ended = Some(status);
            }
        }
    }

    /// Kills what is to be killed, and tells the end once it is one.
    fn look_after(&mut self) -> Result<(), Fault> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let ended = running.ended.is_some();
        // With the main process everything ends.
        running.killing |= ended && self.role == Role::First;
        if running.killing && tree::kill() || !ended {
            return Ok(());
        }
        let Some(mut running) = self.running.take() else {
            return Ok(());
        };
        running.streams.drain(&mut |message| self.say(message));
        let status = running.ended.take().unwrap_or(Status::Signal(9));
        let after = Counters::read();
        let ended = Ended {
            disk_full: status != Status::Code(0) && disk_is_full(),
            status,
            out_of_memory: after.out_of_memory_since(running.before),
            pids_limit: after.pids_refused_since(running.before).or(running.processes_used_up),
        };
        self.say(&FromGuest::Exit(ended));
        self.exited()
    }

    fn exited(&mut self) -> Result<(), Fault> {
        self.state = State::Exited;
        match self.role {
            Role::First => enter(State::Exited),
            Role::Supervisor => Ok(()),
        }
    }

    fn wait(&self) -> Ready {
        let stdin = std::io::stdin();
        let stdout = std::io::stdout();
        let mut wanted: Vec<(BorrowedFd<'_>, PollFlags)> = vec![(self.children.as_fd(), PollFlags::IN)];
        let host = self.hears.then(|| {
            wanted.push((stdin.as_fd(), PollFlags::IN));
            wanted.len() - 1
        });
        let out = (!self.is_said()).then(|| {
            wanted.push((stdout.as_fd(), PollFlags::OUT));
            wanted.len() - 1
        });
        let take_output = self.out.len() - self.said < BACKLOG;
        let mut streams = Vec::new();
        if let Some(running) = &self.running {
            for (stream, fd, flags) in running.streams.descriptors(take_output) {
                streams.push((stream, wanted.len()));
                wanted.push((fd, flags));
            }
        }
        let mut fds: Vec<PollFd<'_>> = wanted.iter().map(|(fd, flags)| PollFd::new(fd, *flags)).collect();
        let killing = self.running.as_ref().is_some_and(|running| running.killing);
        if poll(&mut fds, killing.then_some(&BETWEEN_KILLS)).is_err() {
            return Ready::default();
        }
        let is_ready = |at: usize| !fds[at].revents().is_empty();
        Ready {
            host: host.is_some_and(is_ready),
            out: out.is_some_and(is_ready),
            streams: streams
                .into_iter()
                .filter(|(_, at)| is_ready(*at))
                .map(|(stream, at)| (stream, fds[at].revents()))
                .collect(),
        }
    }

    fn serve(&mut self, stream: Stream, flags: PollFlags) {
        let Some(mut running) = self.running.take() else { return };
        let mut say = |message: &FromGuest<&[u8]>| self.say(message);
        match stream {
            Stream::Output(number) => running.streams.read(number, &mut say),
            Stream::Input if flags.contains(PollFlags::OUT) && !flags.contains(PollFlags::ERR) => {
                running.streams.write(&mut say);
            }
            Stream::Input => running.streams.input_is_closed(&mut say),
        }
        self.running = Some(running);
    }

    /// Hears what the host says.
    fn hear(&mut self) -> Result<(), Fault> {
        let mut bytes = [0; MAX_PAYLOAD];
        match rustix::io::read(std::io::stdin(), &mut bytes) {
            Ok(read) if read > 0 => self.decoder.push(&bytes[..read]),
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            _ => {
                self.client_is_gone();
                return Ok(());
            }
        }
        while self.hears {
            let message = self.decoder.next_message();
            match message.map(|message| message.map(|(kind, payload)| ToGuest::decode(kind, payload))) {
                Ok(Some(Ok(message))) => self.obey(message)?,
                Ok(None) => return Ok(()),
                // Nothing that follows can be understood.
                Ok(Some(Err(_))) | Err(_) => self.client_is_gone(),
            }
        }
        Ok(())
    }

    /// The host says nothing any more, which is a kill unless it was said otherwise.
    fn client_is_gone(&mut self) {
        self.hears = false;
        if !self.outlives_client {
            self.kill();
        }
    }

    fn kill(&mut self) {
        if let Some(running) = &mut self.running {
            running.killing = true;
        }
    }

    fn obey(&mut self, message: ToGuest) -> Result<(), Fault> {
        let first = self.role == Role::First;
        match message {
            ToGuest::Secrets(files) if first => {
                let written = self.not_started().and_then(|()| write_secrets(&files));
                self.answer(written);
            }
            ToGuest::Prepare(spawn) if first => {
                let prepared = match self.state {
                    State::Idle => enter(State::Created),
                    _ => Err(fault(
                        FailureKind::Conflict,
                        "the container has its main process already",
                    )),
                };
                if prepared.is_ok() {
                    self.state = State::Created;
                    self.prepared = Some(spawn);
                }
                self.answer(prepared);
            }
            ToGuest::Start { outlives_client } if first => match (self.not_started(), self.prepared.take()) {
                (Err(fault), _) => self.answer(Err(fault)),
                (Ok(()), None) => {
                    self.answer(Err(fault(FailureKind::Conflict, "the container has no main process")));
                }
                (Ok(()), Some(spawn)) => {
                    self.outlives_client = outlives_client;
                    enter(State::Running)?;
                    self.start(&spawn)?;
                }
            },
            ToGuest::Spawn(spawn) if !first => match self.may_spawn() {
                Ok(()) => self.start(&spawn)?,
                Err(fault) => {
                    self.state = State::Exited;
                    self.answer(Err(fault));
                }
            },
            ToGuest::Input(bytes) => {
                let room = self
                    .running
                    .as_mut()
                    .is_none_or(|running| running.streams.queue(&bytes, INPUT_WINDOW));
                if !room {
                    // The host sends more than it was given credit for.
                    self.client_is_gone();
                }
            }
            ToGuest::CloseInput => {
                if let Some(running) = &mut self.running {
                    running.streams.close_input();
                }
            }
            ToGuest::Signal(number) => {
                let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw);
                let living = self.running.as_ref().filter(|running| running.ended.is_none());
                if let (Some(running), Some(signal)) = (living, signal) {
                    let _ = kill_process(running.pid, signal);
                }
            }
            ToGuest::Kill => self.kill(),
            ToGuest::Resize { rows, columns } => {
                if let Some(running) = &self.running {
                    // Nobody waits for an answer, and a terminal that is gone has no size.
                    let _ = running.streams.resize(rows, columns);
                }
            }
            ToGuest::Read(path) if first => self.read(&path)?,
            _ => self.answer(Err(fault(FailureKind::Invalid, "this command does not take that"))),
        }
        Ok(())
    }

    /// Says a path as an archive, for which nothing else is left to do by then: the main process has ended and everything
    /// with it. So the engine need not run a further process to read what a run has made.
    fn read(&mut self, path: &str) -> Result<(), Fault> {
        if self.state != State::Exited {
            let why = "the container's main process has not ended yet";
            self.answer(Err(fault(FailureKind::Conflict, why)));
            return Ok(());
        }
        let waits = |waits: bool| {
            rustix::io::ioctl_fionbio(std::io::stdout(), !waits).context("cannot change how the output is written")
        };
        waits(true)?;
        while !self.is_said() {
            self.flush();
        }
        let written = read::write_archive(path, true);
        waits(false)?;
        self.answer(written);
        Ok(())
    }

    fn not_started(&self) -> Result<(), Fault> {
        match self.state {
            State::Idle | State::Created => Ok(()),
            State::Running | State::Exited => Err(fault(
                FailureKind::Conflict,
                "the container's main process has started already",
            )),
        }
    }

    /// Whether a further process may run now.
    fn may_spawn(&self) -> Result<(), Fault> {
        let why = match first_state() {
            _ if self.state != State::Idle => "this supervisor has its process already",
            Some(State::Created) => "the container's main process has not started yet",
            Some(State::Exited) => "the container's main process has ended",
            Some(State::Idle | State::Running) | None => return Ok(()),
        };
        Err(fault(FailureKind::Conflict, why))
    }

    fn start(&mut self, spawn: &Spawn) -> Result<(), Fault> {
        let before = Counters::read();
        match process::start(spawn) {
            Ok(process::Started { pid, streams }) => {
                self.state = State::Running;
                self.say(&FromGuest::Started(Started {
                    pid: u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0),
                    stdin: spawn.stdin,
                    tty: spawn.tty.is_some(),
                }));
                self.running = Some(Running {
                    pid,
                    streams,
                    before,
                    ended: None,
                    processes_used_up: None,
                    killing: false,
                });
                Ok(())
            }
            Err(status) => {
                self.say(&FromGuest::Exit(Ended::plain(status)));
                self.exited()
            }
        }
    }

    fn answer(&mut self, done: Result<(), Fault>) {
        self.say(&match done {
            Ok(()) => FromGuest::Done,
            Err(fault) => FromGuest::Failed(fault.into()),
        });
    }

    fn say(&mut self, message: &FromGuest<&[u8]>) {
        if self.heard {
            message.encode(&mut self.out);
        }
    }

    fn is_said(&self) -> bool {
        self.said == self.out.len()
    }

    /// Writes what the host takes.
    fn flush(&mut self) {
        match rustix::io::write(std::io::stdout(), &self.out[self.said..]) {
            Ok(written) => self.said += written,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => {
                self.heard = false;
                self.said = self.out.len();
                self.client_is_gone();
            }
        }
        if self.is_said() {
            self.out.clear();
            self.said = 0;
        } else if self.said >= BACKLOG {
            self.out.drain(..self.said);
            self.said = 0;
        }
    }
}

fn status_of(status: WaitStatus) -> Status {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Status::Code(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Some(signal)) => Status::Signal(signal.unsigned_abs()),
        (None, None) => Status::Signal(9),
    }
}

fn write_secrets(files: &[(String, Vec<u8>)]) -> Result<(), Fault> {
    for (name, content) in files {
        if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err(fault(FailureKind::Invalid, format!("{name:?} is not a file name")));
        }
        let path = Path::new(SECRETS).join(name);
        // Made anew, and by nobody else.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path);
        made.and_then(|mut file| file.write_all(content))
            .context(format_args!("cannot write the secret {name:?}"))?;
    }
    Ok(())
}
