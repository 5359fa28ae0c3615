//! `agents run`.

use std::{
    io::{self, IsTerminal},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agents_sdk::{
    core::{Error, ErrorKind, ExecControl, Exit, ProvisionProgress, SessionId},
    session::{AgentResult, CancellationToken, Engine, Observer, OutputStream, Phase, PhaseState, SessionRequest},
};
use async_trait::async_trait;
use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::RunArgs,
    context::Context,
    detach,
    failure::{self, CODE_CANCELLED, CODE_PIPE, Failure, Outcome},
    output,
    progress::Progress,
    request, terminal,
};

/// A pipe that is ready takes this much without blocking (`PIPE_BUF`).
const READY: usize = 4096;
/// How long a reader who does not read may hold up a run that was cancelled.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) async fn run(context: &Context, args: RunArgs) -> Outcome {
    if args.detach && !context.common.supervise {
        return detach::start(context).await;
    }
    if context.common.supervise {
        detach::leave_terminal()?;
    }
    let loaded = context.load(&args.adapters)?;
    let plan = request::plan(&args, &loaded).await?;
    let state_dir = loaded.dirs.state.clone();
    let engine = context.build(loaded).await?;
    let mut agent = plan.agent;
    if !plan.image_named && engine.adapters().runtime.info().adapter_type == "native" {
        agent = agent.with_image(Some("host".to_owned()));
    }

    let cancel = CancellationToken::new();
    watch_signals(&cancel, context.common.quiet)?;
    let view = Arc::new(View {
        passthrough: !context.json() && !args.detach,
        raw: plan.tty && plan.interactive && terminal::stdin_is_terminal(),
        quiet: context.common.quiet,
        supervised: args.detach.then_some(state_dir),
        progress: Progress::new(context.common.verbose, context.common.quiet || args.detach),
        cancel: cancel.clone(),
        sinks: [Sink::new(OutputStream::Stdout), Sink::new(OutputStream::Stderr)],
        control: Mutex::new(None),
    });
    if plan.tty {
        watch_size(Arc::clone(&view))?;
    }
    recover(&engine, context).await?;
    let request = SessionRequest::new(agent, plan.policy)
        .with_user_id(Some(user()))
        .with_observer(Some(Arc::<View>::clone(&view)))
        .with_cancel(cancel.clone())
        .with_export_dir(
            args.output
                .as_deref()
                .map(std::path::absolute)
                .transpose()
                .map_err(|error| Error::io("cannot find the folder of --output", error))?,
        );
    let result = engine.run(request).await;
    terminal::restore();
    view.progress.release();
    finish(context, &view, result?)
}

fn finish(context: &Context, view: &View, result: AgentResult) -> Outcome {
    if let Some(error) = view.sinks[0].fault() {
        return match error.kind() {
            io::ErrorKind::BrokenPipe => Ok(CODE_PIPE),
            _ => Err(Error::io("cannot write the agent's output to standard output", error).into()),
        };
    }
    if view.supervised.is_none() && !context.common.quiet && !context.json() {
        view.progress.summary(&result);
    }
    match (&result.error, &result.ending) {
        (Some(error), _) if result.error_kind == Some(ErrorKind::Unsupported) => {
            output::error(&format!("{error}{}", waivers(error)));
        }
        (Some(error), _) if result.error_kind.is_some() || failure::is_ours(&result) => output::error(error),
        (_, Exit::NotStarted { message, .. }) => output::error(message),
        _ => {}
    }
    if context.json() && view.supervised.is_none() {
        output::json(&result.to_json())?;
    }
    // A run that was cancelled before its agent began ends with an error of that kind.
    if result.error_kind == Some(ErrorKind::Cancelled) {
        return Ok(CODE_CANCELLED);
    }
    Ok(failure::exit_code(&result))
}

/// Cleans up after owners that died. What cannot be cleaned up does not keep an agent from running.
async fn recover(engine: &Engine, context: &Context) -> Result<(), Failure> {
    let report = engine.recover().await?;
    if context.common.verbose {
        for id in &report.ended_sessions {
            output::note(&format!("session {id} was lost and has been cleaned up"));
        }
    }
    if !context.common.quiet {
        for problem in &report.problems {
            output::warning(problem);
        }
    }
    Ok(())
}

/// How to waive, with flags, the limits that a refusal names by their fields.
fn waivers(error: &str) -> String {
    let flags: Vec<_> = [
        ("memory_mb: ", "--memory unlimited"),
        ("cpu_cores: ", "--cpus unlimited"),
        ("pids_limit: ", "--pids unlimited"),
        ("disk_mb: ", "--disk unlimited"),
    ]
    .into_iter()
    .filter(|(field, _)| error.contains(field))
    .map(|(_, flag)| flag)
    .collect();
    match flags.is_empty() {
        true => String::new(),
        false => format!(" ({} runs it without)", flags.join(" ")),
    }
}

/// Who asks for the run, for the records.
fn user() -> String {
    std::env::var("USER")
        .ok()
        .filter(|user| !user.is_empty())
        .unwrap_or_else(|| format!("uid:{}", rustix::process::getuid().as_raw()))
}

/// The first signal cancels, the second ends this process at once.
pub(crate) fn watch_signals(cancel: &CancellationToken, quiet: bool) -> Result<(), Failure> {
    let cannot = |error| Error::io("cannot watch for signals", error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;
    let cancel = cancel.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if cancel.is_cancelled() {
                terminal::exit(CODE_CANCELLED);
            }
            cancel.cancel();
            if !quiet && io::stderr().is_terminal() {
                output::note("stopping, and collecting what is there; once more ends at once");
            }
        }
    });
    Ok(())
}

fn watch_size(view: Arc<View>) -> Result<(), Failure> {
    let mut changes =
        signal(SignalKind::window_change()).map_err(|error| Error::io("cannot watch the terminal's size", error))?;
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            let control = view.control.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let (Some(control), Some((rows, columns))) = (control, terminal::size()) {
                // A process that has ended has no terminal to tell.
                let _ = control.resize(rows, columns).await;
            }
        }
    });
    Ok(())
}

/// What hears of the run.
#[derive(Debug)]
struct View {
    /// The agent's output goes to ours.
    passthrough: bool,
    /// The terminal is the agent's while it runs.
    raw: bool,
    quiet: bool,
    /// This process is a detached session's; the state folder.
    supervised: Option<PathBuf>,
    progress: Progress,
    cancel: CancellationToken,
    sinks: [Sink; 2],
    control: Mutex<Option<Arc<dyn ExecControl>>>,
}

#[async_trait]
impl Observer for View {
    fn session(&self, session_id: &SessionId) {
        if let Some(state_dir) = &self.supervised {
            detach::begun(session_id, state_dir);
        }
    }

    fn phase(&self, phase: Phase, state: PhaseState) {
        if phase == Phase::Run && matches!(state, PhaseState::End(_)) && self.raw {
            terminal::restore();
            self.progress.release();
        }
        self.progress.phase(phase, state);
    }

    fn progress(&self, progress: ProvisionProgress) {
        self.progress.pull(&progress);
    }

    fn started(&self, control: Arc<dyn ExecControl>) {
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = Some(control);
        if self.raw {
            self.progress.hold();
            if let Err(error) = terminal::make_raw() {
                output::warning(&error.report());
            }
        }
    }

    async fn output(&self, stream: OutputStream, bytes: Bytes) {
        if !self.passthrough {
            return;
        }
        let sink = &self.sinks[stream as usize];
        if sink.is_terminal {
            self.progress.wrote(&bytes);
        }
        sink.write(bytes, &self.cancel).await;
        // Nobody reads the agent's output, so there is no reason to go on.
        if stream == OutputStream::Stdout && sink.failed.load(Ordering::Relaxed) {
            self.cancel.cancel();
        }
    }

    fn retry(&self, attempt: u32, reason: &str) {
        self.progress.retry(attempt, reason);
    }

    fn warning(&self, message: &str) {
        if !self.quiet {
            output::warning(message);
        }
    }
}

/// Our standard output or error, as the end of the agent's. A reader that is slow slows the agent, and never this
/// process's event loop.
#[derive(Debug)]
pub(crate) struct Sink {
    stream: OutputStream,
    /// Writing never waits for anybody.
    is_file: bool,
    pub(crate) is_terminal: bool,
    failed: AtomicBool,
    fault: Mutex<Option<io::Error>>,
}

impl Sink {
    pub(crate) fn new(stream: OutputStream) -> Self {
        let fd = descriptor(stream);
        let is_file = rustix::fs::fstat(fd)
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile);
        Self {
            stream,
            is_file,
            is_terminal: fd.is_terminal(),
            failed: AtomicBool::new(false),
            fault: Mutex::new(None),
        }
    }

    /// Why writing failed.
    pub(crate) fn fault(&self) -> Option<io::Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Writes everything, unless writing has failed before.
    pub(crate) async fn write(&self, bytes: Bytes, cancel: &CancellationToken) {
        if self.has_failed() {
            return;
        }
        let fd = descriptor(self.stream);
        let written = if self.is_file || bytes.len() <= READY && is_ready(fd) {
            write_all(fd, &bytes)
        } else {
            let writing = tokio::task::spawn_blocking(move || write_all(fd, &bytes));
            tokio::select! {
                written = writing => written.unwrap_or_else(|error| Err(io::Error::other(error))),
                () = given_up(cancel) => {
                    self.failed.store(true, Ordering::Relaxed);
                    return;
                }
            }
        };
        if let Err(error) = written {
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

async fn given_up(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(PATIENCE).await;
}

fn descriptor(stream: OutputStream) -> BorrowedFd<'static> {
    match stream {
        OutputStream::Stdout => rustix::stdio::stdout(),
        OutputStream::Stderr => rustix::stdio::stderr(),
    }
}

fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            // Whoever shares the terminal or the pipe with us may have made it non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                let _ = poll(&mut fds, None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The log of a detached session's own process.
pub(crate) fn supervisor_log(state_dir: &Path, session_id: &SessionId) -> PathBuf {
    state_dir
        .join("sessions")
        .join(session_id.as_str())
        .join("supervisor.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_limit_is_waived_by_its_flag() {
        let error = "the native runtime cannot enforce what was requested: memory_mb: no. cpu_cores: no";
        assert_eq!(waivers(error), " (--memory unlimited --cpus unlimited runs it without)");
        assert_eq!(waivers("gpus: no"), "");
    }
}
