//! The long-lived form: [`Session`], and [`SessionHandle`], which works from any process.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use agents_core::{
    ArtifactInfo, ByteStream, ContainerHandle, ContainerStats, CopyFromRequest, CopyToRequest, Error, ErrorKind,
    EventType, ExecControl, ExecEvent, ExecRequest, ExecSession, Exit, KillReason, Process, Result, SessionId,
};
use agents_layers::audit::Trail;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    AgentResult, Engine, RefusedArtifact, SessionInfo, SessionRequest,
    active::{Active, Outcome},
    audit::Recorded,
    blocking,
    collect::Collected,
    extract::{Export, ExportDir, Extractor, Limits},
    plan,
    pump::AbortOnDrop,
};

/// What is copied out of a container at once, at most.
const DOWNLOAD_LIMITS: Limits = Limits {
    entries: 100_000,
    output_bytes: None,
    plausible_bytes: 64 << 30,
};

/// What is copied into a container.
#[non_exhaustive]
pub enum Upload {
    /// A file or a folder of the host. Links are copied as links.
    Path(PathBuf),
    /// A tar stream, unpacked into the destination.
    Tar(ByteStream),
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Tar(_) => f.write_str("Tar"),
        }
    }
}

/// What was copied out of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Downloaded {
    /// How many files were written.
    pub files: u64,
    /// How many bytes they hold.
    pub bytes: u64,
    /// What was left out, and why.
    pub refused: Vec<RefusedArtifact>,
}

/// Artifacts that were stored while the session goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// What was stored.
    pub artifacts: Vec<ArtifactInfo>,
    /// What was left out, and why.
    pub refused: Vec<RefusedArtifact>,
}

/// A running session, seen from any process that uses the same state folder.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    pub(crate) engine: Engine,
    pub(crate) recorded: Recorded,
    pub(crate) info: SessionInfo,
    pub(crate) container: ContainerHandle,
    /// Of processes that are given none.
    pub(crate) deadline: Option<Duration>,
}

impl SessionHandle {
    /// The session.
    pub fn id(&self) -> &SessionId {
        &self.info.session_id
    }

    /// What was known of it when the handle was made.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// Its container.
    pub fn container(&self) -> &ContainerHandle {
        &self.container
    }

    /// Runs a process in its container. Its end is on record before the stream tells it.
    ///
    /// # Errors
    ///
    /// The audit sink's, when the intent cannot be recorded; the runtime's.
    pub async fn exec(&self, process: Process, deadline: Option<Duration>) -> Result<ExecSession> {
        let Recorded { adapters, trail } = &self.recorded;
        let runtime = &adapters.runtime;
        plan::check_tty(&process, &runtime.capabilities())?;
        let launched = trail
            .event(EventType::AgentLaunched)
            .with_fact("command", trail.command(&process.command))
            .with_fact("exec", true);
        let started = trail.event(EventType::AgentStarted).with_fact("exec", true);
        trail.note(launched);
        if process.tty.is_some() {
            trail.note(trail.event(EventType::AgentInteractiveStart));
        }
        let request = ExecRequest::new(self.container.clone(), process).with_deadline(deadline.or(self.deadline));
        let mut session = match runtime.exec(request).await {
            Ok(session) => session,
            Err(error) => {
                let failed = trail.event(EventType::AgentFailed).with_fact("error", error.report());
                trail.record([failed]).await?;
                return Err(error);
            }
        };
        let control = Control(session.control());
        let stdin = session.take_stdin();
        let state = Some((session, trail.clone(), started));
        let events = futures_util::stream::unfold(state, |state| async {
            let (mut session, trail, started) = state?;
            match session.next().await? {
                Ok(ExecEvent::Exit(exit)) => {
                    let mut events = vec![ended(&trail, &exit)];
                    if !matches!(exit, Exit::NotStarted { .. }) {
                        events.insert(0, started);
                    }
                    let recorded = trail.record(events).await;
                    Some((recorded.map(|()| ExecEvent::Exit(exit)), None))
                }
                other => Some((other, Some((session, trail, started)))),
            }
        });
        Ok(ExecSession::new(events.boxed(), stdin, Arc::new(control)))
    }

    /// Copies into the container. A path goes into the destination when that is a folder, and becomes the destination
    /// otherwise; a tar stream is unpacked into the destination.
    ///
    /// # Errors
    ///
    /// `NotFound` when the source, or the folder that the destination is in, does not exist; the runtime's.
    pub async fn upload(&self, source: Upload, destination: &str) -> Result<()> {
        let uploaded = self.copy_into(source, destination).await;
        // The caller may be the last to do anything in this process.
        uploaded.and(self.recorded.trail.flush().await)
    }

    async fn copy_into(&self, source: Upload, destination: &str) -> Result<()> {
        let runtime = &self.recorded.adapters.runtime;
        let copy = |folder: &str, archive| runtime.copy_to(CopyToRequest::new(self.container.clone(), folder, archive));
        let path = match source {
            Upload::Tar(archive) => return copy(destination, archive).await,
            Upload::Path(path) => path,
        };
        let path = std::fs::canonicalize(&path).map_err(|error| {
            Error::io("cannot read what is to be copied", error).with_context("path", path.display())
        })?;
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let trimmed = destination.trim_end_matches('/');
        let folder = if trimmed.is_empty() { "/" } else { trimmed };
        let (_packer, archive) = pack(path.clone(), name);
        let copied = copy(folder, archive).await;
        let Err(error) = copied else { return Ok(()) };
        let is_file = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict);
        let Some((parent, name)) = trimmed.rsplit_once('/').filter(|_| is_file && trimmed == destination) else {
            return Err(error);
        };
        let (_packer, archive) = pack(path, name.into());
        copy(if parent.is_empty() { "/" } else { parent }, archive).await
    }

    /// Copies a file or a folder of the container into a folder of the host, by the hardened extractor: only regular
    /// files, and no link is followed on either side. At most 100,000 entries and 64 GiB.
    ///
    /// # Errors
    ///
    /// `NotFound` when the path does not exist; when the folder cannot be written.
    pub async fn download(&self, path: &str, host_dir: &Path) -> Result<Downloaded> {
        let path = path.trim_end_matches('/');
        let Some((_, root)) = path.rsplit_once('/').filter(|(_, root)| !root.is_empty()) else {
            return Err(Error::invalid("name an absolute path below /").with_context("path", path));
        };
        let runtime = &self.recorded.adapters.runtime;
        let quiesce = runtime.capabilities().quiesce.is_enforced();
        let request = CopyFromRequest::new(self.container.clone(), path).with_quiesce(quiesce);
        let archive = runtime.copy_from(request).await?;
        let host_dir = host_dir.to_owned();
        let target = Arc::new(blocking(move || ExportDir::open(&host_dir)).await?);
        let mut extractor = Extractor::new(archive, root, true, DOWNLOAD_LIMITS);
        let mut downloaded = Downloaded::default();
        while let Some(file) = extractor.next().await? {
            let mut export = Export::begin(&target, &file).await?;
            while let Some(bytes) = extractor.chunk().await? {
                export = export.write(bytes).await?;
            }
            export.commit().await?;
            downloaded.files += 1;
            downloaded.bytes += file.size;
        }
        downloaded.refused = std::mem::take(&mut extractor.refusals).finish();
        self.recorded.trail.flush().await?;
        Ok(downloaded)
    }

    /// What the container has used.
    ///
    /// # Errors
    ///
    /// The runtime's.
    pub async fn stats(&self) -> Result<ContainerStats> {
        self.recorded.adapters.runtime.stats(&self.container).await
    }

    /// As [`Engine::stop`].
    ///
    /// # Errors
    ///
    /// As [`Engine::stop`].
    pub async fn stop(&self) -> Result<SessionInfo> {
        self.engine.stop(self.id()).await
    }
}

fn ended(trail: &Trail, exit: &Exit) -> agents_core::AuditEvent {
    let event_type = match exit {
        Exit::Deadline => EventType::AgentTimeout,
        _ if exit.is_success() => EventType::AgentCompleted,
        _ => EventType::AgentFailed,
    };
    trail
        .event(event_type)
        .with_fact("exec", true)
        .with_fact("ending", serde_json::json!(exit))
        .with_fact("exit_code", exit.code())
}

/// The control of a session inside of a session: the inner one abandons by itself when it is dropped.
#[derive(Debug)]
struct Control(Arc<dyn ExecControl>);

#[async_trait]
impl ExecControl for Control {
    async fn kill(&self, reason: KillReason) -> Result<()> {
        self.0.kill(reason).await
    }

    async fn signal(&self, signal: i32) -> Result<()> {
        self.0.signal(signal).await
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        self.0.resize(rows, columns).await
    }

    fn abandon(&self) {}
}

/// Packs a path of the host under a name, with memory that does not depend on its size.
fn pack(path: PathBuf, name: PathBuf) -> (AbortOnDrop, ByteStream) {
    let (sender, receiver) = mpsc::channel::<Result<Bytes>>(2);
    let work = tokio::task::spawn_blocking(move || {
        let mut builder = tar::Builder::new(io::BufWriter::with_capacity(128 << 10, ChannelWriter(sender.clone())));
        builder.follow_symlinks(false);
        let packed = if path.is_dir() {
            builder.append_dir_all(&name, &path)
        } else {
            builder.append_path_with_name(&path, &name)
        };
        let packed = packed.and_then(|()| {
            builder
                .into_inner()?
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
        });
        if let Err(error) = packed {
            let error = Error::io("cannot read what is to be copied", error).with_context("path", path.display());
            // Nobody listens when the runtime has given up.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    });
    (AbortOnDrop(work), stream.boxed())
}

struct ChannelWriter(mpsc::Sender<Result<Bytes>>);

impl io::Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A long-lived session: a container in which processes are run until [`finish`](Self::finish).
///
/// Somebody else may stop it, and its caller's token may cancel it; it is collected and ended then as by `finish`.
/// Dropping it destroys the container in the background, without collecting artifacts.
#[derive(Debug)]
pub struct Session {
    handle: SessionHandle,
    shared: Arc<Shared>,
    _monitor: AbortOnDrop,
    _closed: DropGuard,
}

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
enum State {
    Open(Box<Active>),
    Ended(Box<AgentResult>),
    /// Only while it is being ended; for good when that was given up half-way.
    Ending,
}

impl Shared {
    async fn end(&self, ending: Exit) -> Option<AgentResult> {
        let mut state = self.0.lock().await;
        let result = match std::mem::replace(&mut *state, State::Ending) {
            State::Open(active) => active.finish(ending).await,
            State::Ended(result) => *result,
            State::Ending => return None,
        };
        *state = State::Ended(Box::new(result.clone()));
        Some(result)
    }
}

impl Session {
    pub(crate) async fn open(engine: &Engine, request: SessionRequest) -> Result<Self> {
        let (mut active, agent, policy) = Active::begin(engine, request).await?;
        let plan = match active.prepare(&agent, policy, true).await {
            Ok(plan) => plan,
            Err(error) => {
                active.close(Outcome::refused(&error)).await;
                return Err(error);
            }
        };
        let container = match active.provision_idle(plan.request).await {
            Ok(container) => container,
            Err(outcome) => {
                let result = active.close(outcome).await;
                let kind = result.error_kind.unwrap_or(ErrorKind::Unexpected);
                let message = result
                    .error
                    .unwrap_or_else(|| "the session could not be opened".to_owned());
                return Err(Error::new(kind, message).with_context("session", &result.session_id));
            }
        };
        let mut info = active.record.info(None);
        info.container_id = Some(container.id.clone());
        let handle = SessionHandle {
            engine: engine.clone(),
            recorded: active.recorded.clone(),
            info,
            container: container.clone(),
            deadline: active.deadline(),
        };
        let monitor = active.monitor(&container);
        let (interrupt, closed) = (active.interrupt.clone(), CancellationToken::new());
        let shared = Arc::new(Shared(Mutex::new(State::Open(Box::new(active)))));
        tokio::spawn(end_when_interrupted(Arc::downgrade(&shared), interrupt, closed.clone()));
        Ok(Self {
            handle,
            shared,
            _monitor: monitor,
            _closed: closed.drop_guard(),
        })
    }

    /// The part that works from any process.
    pub fn handle(&self) -> &SessionHandle {
        &self.handle
    }

    /// The session.
    pub fn id(&self) -> &SessionId {
        self.handle.id()
    }

    /// As [`SessionHandle::exec`]. Without a deadline, the policy's `timeout_seconds` is one.
    ///
    /// # Errors
    ///
    /// As [`SessionHandle::exec`].
    pub async fn exec(&self, process: Process, deadline: Option<Duration>) -> Result<ExecSession> {
        self.handle.exec(process, deadline).await
    }

    /// As [`SessionHandle::upload`].
    ///
    /// # Errors
    ///
    /// As [`SessionHandle::upload`].
    pub async fn upload(&self, source: Upload, destination: &str) -> Result<()> {
        self.handle.upload(source, destination).await
    }

    /// As [`SessionHandle::download`].
    ///
    /// # Errors
    ///
    /// As [`SessionHandle::download`].
    pub async fn download(&self, path: &str, host_dir: &Path) -> Result<Downloaded> {
        self.handle.download(path, host_dir).await
    }

    /// As [`SessionHandle::stats`].
    ///
    /// # Errors
    ///
    /// As [`SessionHandle::stats`].
    pub async fn stats(&self) -> Result<ContainerStats> {
        self.handle.stats().await
    }

    /// Stores what is in the output folder now, as new versions. The processes are stopped meanwhile where the runtime
    /// can do that.
    ///
    /// # Errors
    ///
    /// `Conflict` when the session has ended; the first failure of runtime, storage or audit.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let state = self.shared.0.lock().await;
        let State::Open(active) = &*state else {
            return Err(Error::new(ErrorKind::Conflict, "the session has ended").with_context("session", self.id()));
        };
        let mut collected = Collected::default();
        active.take_artifacts(&mut collected).await;
        active.recorded.trail.flush().await?;
        match collected.error {
            Some(error) => Err(error),
            None => Ok(Snapshot {
                artifacts: collected.artifacts,
                refused: collected.refused,
            }),
        }
    }

    /// Collects the artifacts, destroys the container and ends the session. When somebody stopped it, this is the result
    /// of that.
    ///
    /// # Errors
    ///
    /// `Unexpected` when the end was given up half-way, with the program's own end.
    pub async fn finish(self) -> Result<AgentResult> {
        let ended = self.shared.end(Exit::Exited { code: 0 }).await;
        ended.ok_or_else(|| Error::unexpected("the session was not ended properly").with_context("session", self.id()))
    }
}

/// Ends the session when its caller cancels it or somebody stops it, unless it is gone before.
async fn end_when_interrupted(shared: Weak<Shared>, interrupt: CancellationToken, closed: CancellationToken) {
    tokio::select! {
        biased;
        () = closed.cancelled() => {}
        () = interrupt.cancelled() => {
            if let Some(shared) = shared.upgrade() {
                shared.end(Exit::Cancelled).await;
            }
        }
    }
}
