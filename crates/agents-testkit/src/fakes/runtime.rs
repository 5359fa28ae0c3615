//! A runtime without containers, whose processes follow scripts.

use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agents_core::{
    AdapterInfo, Admitted, Availability, ByteStream, ContainerHandle, ContainerId, ContainerInfo, ContainerRuntime,
    ContainerState, ContainerStats, CopyFromRequest, CopyToRequest, EffectiveMount, EffectiveState, Error, ErrorKind,
    ExecControl, ExecEvent, ExecInput, ExecRequest, ExecSession, Exit, KillReason, MountSource, Process,
    ProvisionRequest, Provisioned, Result, RuntimeCapabilities, StartFailure, StartRequest, Support,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

/// What a scripted process does, step by step. Without an ending it exits with code 0.
#[derive(Clone, Debug, Default)]
pub struct Script(Vec<Step>);

#[derive(Clone, Debug)]
enum Step {
    Stdout(Bytes),
    Stderr(Bytes),
    Sleep(Duration),
    EchoStdin,
    WriteFile(String, Bytes),
    Hang,
    End(Exit),
}

impl Script {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn then(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }

    /// Writes to standard output.
    #[must_use]
    pub fn stdout(self, bytes: impl Into<Bytes>) -> Self {
        self.then(Step::Stdout(bytes.into()))
    }

    /// Writes to standard error.
    #[must_use]
    pub fn stderr(self, bytes: impl Into<Bytes>) -> Self {
        self.then(Step::Stderr(bytes.into()))
    }

    /// Waits. Time may be paused by `tokio::time::pause`.
    #[must_use]
    pub fn sleep(self, duration: Duration) -> Self {
        self.then(Step::Sleep(duration))
    }

    /// Writes what comes in to standard output, until the input ends.
    #[must_use]
    pub fn echo_stdin(self) -> Self {
        self.then(Step::EchoStdin)
    }

    /// Makes a file in the container, such as `/output/report`.
    #[must_use]
    pub fn write_file(self, path: impl Into<String>, content: impl Into<Bytes>) -> Self {
        self.then(Step::WriteFile(path.into(), content.into()))
    }

    /// Never ends by itself.
    #[must_use]
    pub fn hang(self) -> Self {
        self.then(Step::Hang)
    }

    /// Exits with a code.
    #[must_use]
    pub fn exit(self, code: i32) -> Self {
        self.end(Exit::Exited { code })
    }

    /// Ends in any way, such as [`Exit::OutOfMemory`].
    #[must_use]
    pub fn end(self, exit: Exit) -> Self {
        self.then(Step::End(exit))
    }
}

type Handler = Arc<dyn Fn(&Process) -> Option<Script> + Send + Sync>;
type Distortion = Arc<dyn Fn(&ProvisionRequest, &mut EffectiveState) + Send + Sync>;

/// A runtime whose containers are records in memory. Clones share them.
///
/// Deadlines, kills and dropped sessions are honoured; files come from scripts and `copy_to`, and leave through `copy_from`.
/// It declares what it is told to, and by default enforces everything but GPUs, terminals and seccomp profiles.
#[derive(Clone)]
pub struct ScriptedRuntime {
    state: Arc<Mutex<State>>,
    capabilities: RuntimeCapabilities,
    images: Vec<String>,
    handler: Handler,
    distortion: Option<Distortion>,
    archives: BTreeMap<String, Bytes>,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<ContainerId, Container>,
    operations: Vec<&'static str>,
}

#[derive(Debug)]
struct Container {
    info: ContainerInfo,
    request: ProvisionRequest,
    /// Folders have no content.
    files: BTreeMap<String, Option<Bytes>>,
    running: Vec<watch::Sender<Option<Exit>>>,
}

impl ScriptedRuntime {
    /// A runtime that knows every image and no command.
    pub fn new() -> Self {
        let capabilities = RuntimeCapabilities::none()
            .with_memory_limit(Support::Enforced)
            .with_cpu_limit(Support::Enforced)
            .with_pids_limit(Support::Enforced)
            .with_nofile_limit(Support::Enforced)
            .with_disk_limit(Support::Enforced)
            .with_network_isolation(Support::Enforced)
            .with_egress_allow_list(Support::Enforced)
            .with_ingress_ports(Support::Enforced)
            .with_add_capabilities(Support::Enforced)
            .with_seccomp(Support::Enforced)
            .with_user(Support::Enforced)
            .with_read_only_rootfs(Support::Enforced)
            .with_writable_rootfs(Support::Enforced)
            .with_bind_mounts(Support::Enforced)
            .with_writable_bind_mounts(Support::Enforced)
            .with_secrets(Support::Enforced)
            .with_main_process(Support::Enforced)
            .with_quiesce(Support::Enforced);
        Self {
            state: Arc::default(),
            capabilities,
            images: Vec::new(),
            handler: Arc::new(|_| None),
            distortion: None,
            archives: BTreeMap::new(),
        }
    }

    /// Sets what it declares.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: RuntimeCapabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Knows only these images.
    #[must_use]
    pub fn with_images(mut self, images: impl IntoIterator<Item = String>) -> Self {
        self.images.extend(images);
        self
    }

    /// Runs a script for exactly this command.
    #[must_use]
    pub fn with_script(self, command: impl IntoIterator<Item = impl Into<String>>, script: Script) -> Self {
        let command: Vec<String> = command.into_iter().map(Into::into).collect();
        self.with_handler(move |process| (process.command == command).then(|| script.clone()))
    }

    /// Chooses the script by the process; what gives `None` is left to earlier handlers, and at last is a command that does
    /// not exist.
    #[must_use]
    pub fn with_handler(mut self, handler: impl Fn(&Process) -> Option<Script> + Send + Sync + 'static) -> Self {
        let earlier = self.handler;
        self.handler = Arc::new(move |process| handler(process).or_else(|| earlier(process)));
        self
    }

    /// Changes the effective state that is read back, to lie or to be strange.
    #[must_use]
    pub fn with_effective_state(
        mut self,
        distortion: impl Fn(&ProvisionRequest, &mut EffectiveState) + Send + Sync + 'static,
    ) -> Self {
        self.distortion = Some(Arc::new(distortion));
        self
    }

    /// Gives these bytes when this path is copied from, such as a [hostile archive](crate::hostile::hostile_archives).
    #[must_use]
    pub fn with_copy_from(mut self, path: impl Into<String>, archive: impl Into<Bytes>) -> Self {
        self.archives.insert(path.into(), archive.into());
        self
    }

    /// The operations so far, by the names of the trait's methods, without questions such as `info`.
    pub fn operations(&self) -> Vec<&'static str> {
        self.state().operations.clone()
    }

    /// The containers that nobody has destroyed.
    pub fn containers(&self) -> Vec<ContainerInfo> {
        self.state()
            .containers
            .values()
            .map(|container| container.info.clone())
            .collect()
    }

    /// The request that a container was made from.
    pub fn request_of(&self, id: &ContainerId) -> Option<ProvisionRequest> {
        self.state()
            .containers
            .get(id)
            .map(|container| container.request.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, operation: &'static str) {
        self.state().operations.push(operation);
    }

    /// Works on a container.
    fn with<T>(&self, id: &ContainerId, work: impl FnOnce(&mut Container) -> Result<T>) -> Result<T> {
        match self.state().containers.get_mut(id) {
            Some(container) => work(container),
            None => Err(Error::not_found(format!("there is no container {id}"))),
        }
    }

    fn run(&self, id: &ContainerId, process: &Process, deadline: Option<Duration>, main: bool) -> Result<ExecSession> {
        let (end, ended) = watch::channel(None);
        self.with(id, |container| {
            container.running.push(end.clone());
            Ok(())
        })?;
        let script = (self.handler)(process).unwrap_or_else(|| {
            let command = process.command.first().map(String::as_str).unwrap_or_default();
            Script::new().end(Exit::NotStarted {
                reason: StartFailure::NotFound,
                message: format!("{command}: not found"),
            })
        });
        let (events, received) = mpsc::channel(8);
        let (input, stdin) = match process.stdin {
            true => {
                let (send, receive) = mpsc::channel(1);
                (Some(Box::new(Input(send)) as Box<dyn ExecInput>), Some(receive))
            }
            false => (None, None),
        };
        let (runtime, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let steps = runtime.follow(&id, script, stdin, &events);
            let exit = tokio::select! {
                // The kill comes first: a script that could go on must not.
                biased;
                exit = killed(ended) => exit,
                () = until(deadline) => Exit::Deadline,
                exit = steps => exit,
            };
            if main {
                let _ = runtime.with(&id, |container| {
                    container.info.state = ContainerState::Exited;
                    // The container's end is the end of its other processes.
                    for other in container.running.drain(..) {
                        let _ = other.send(Some(Exit::Signalled { signal: 9 }));
                    }
                    Ok(())
                });
            }
            let _ = events.send(Ok(ExecEvent::Exit(exit))).await;
        });
        let received = stream::unfold(received, |mut received| async move {
            let event = received.recv().await?;
            Some((event, received))
        });
        Ok(ExecSession::new(received.boxed(), input, Arc::new(Control(end))))
    }

    async fn follow(
        &self,
        id: &ContainerId,
        script: Script,
        mut stdin: Option<mpsc::Receiver<Bytes>>,
        events: &mpsc::Sender<Result<ExecEvent>>,
    ) -> Exit {
        for step in script.0 {
            match step {
                Step::Stdout(bytes) => drop(events.send(Ok(ExecEvent::Stdout(bytes))).await),
                Step::Stderr(bytes) => drop(events.send(Ok(ExecEvent::Stderr(bytes))).await),
                Step::Sleep(duration) => tokio::time::sleep(duration).await,
                Step::EchoStdin => {
                    while let Some(bytes) = match &mut stdin {
                        Some(stdin) => stdin.recv().await,
                        None => None,
                    } {
                        drop(events.send(Ok(ExecEvent::Stdout(bytes))).await);
                    }
                }
                Step::WriteFile(path, content) => {
                    let _ = self.with(id, |container| {
                        write_file(&mut container.files, &path, Some(content));
                        Ok(())
                    });
                }
                Step::Hang => std::future::pending().await,
                Step::End(exit) => return exit,
            }
        }
        Exit::Exited { code: 0 }
    }
}

impl Default for ScriptedRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ScriptedRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScriptedRuntime({} containers)", self.state().containers.len())
    }
}

async fn killed(mut ended: watch::Receiver<Option<Exit>>) -> Exit {
    let killed = ended.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
    match killed {
        Some(exit) => exit,
        // Nobody is left who could kill.
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline).await,
        None => std::future::pending().await,
    }
}

/// Makes a file, or a folder without content, with the folders above it.
fn write_file(files: &mut BTreeMap<String, Option<Bytes>>, path: &str, content: Option<Bytes>) {
    for (end, _) in path.match_indices('/').skip(1) {
        files.entry(path[..end].to_owned()).or_default();
    }
    files.insert(path.to_owned(), content);
}

/// What an honest runtime reads back: what was asked for, with the secure defaults.
pub fn as_requested(request: &ProvisionRequest) -> EffectiveState {
    let mut state = EffectiveState::unread();
    let security = &request.security;
    let user = security.user.unwrap_or(agents_core::User { uid: 1000, gid: 1000 });
    state.capabilities = Some(security.capabilities.clone());
    state.no_new_privileges = Some(true);
    state.seccomp_filter = Some(true);
    state.uid = Some(user.uid);
    state.gid = Some(user.gid);
    state.read_only_rootfs = Some(security.read_only_rootfs);
    let mount = |mount: &agents_core::Mount| EffectiveMount {
        destination: mount.destination.clone(),
        read_only: mount.read_only,
    };
    state.mounts = Some(request.mounts.iter().map(mount).collect());
    state.memory_bytes = request.resources.memory_bytes;
    state.cpu_cores = request.resources.cpu_cores;
    state.pids = request.resources.pids;
    state.nofile = request.resources.nofile;
    state.disk_bytes = request.resources.disk_bytes;
    state.network_interfaces = Some(vec!["lo".to_owned()]);
    state.allowed_endpoints = Some(request.network.allowed_endpoints.clone());
    state.ingress_ports = Some(request.network.ingress_ports.clone());
    state.private_namespaces = Some(["ipc", "mnt", "net", "pid", "uts"].map(str::to_owned).to_vec());
    state
}

#[async_trait]
impl ContainerRuntime for ScriptedRuntime {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("scripted", env!("CARGO_PKG_VERSION"))
    }

    fn capabilities(&self) -> RuntimeCapabilities {
        self.capabilities.clone()
    }

    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }

    async fn provision(&self, request: Admitted) -> Result<Provisioned> {
        self.note("provision");
        let request = request.into_request();
        if !self.images.is_empty() && !self.images.contains(&request.image) {
            return Err(Error::not_found(format!("there is no image {:?}", request.image)));
        }
        let mut files = BTreeMap::new();
        for mount in &request.mounts {
            if let MountSource::Bind { path } = &mount.source
                && !path.exists()
            {
                return Err(Error::not_found(format!(
                    "the mount source {} does not exist",
                    path.display()
                )));
            }
            write_file(&mut files, &mount.destination, None);
        }
        let mut effective = as_requested(&request);
        if let Some(distortion) = &self.distortion {
            distortion(&request, &mut effective);
        }
        let state = match request.process {
            Some(_) => ContainerState::Created,
            None => ContainerState::Running,
        };
        let (id, session) = (request.name.clone(), request.session_id.clone());
        let info = ContainerInfo::found(
            id.clone(),
            session.clone(),
            state,
            request.image.clone(),
            Timestamp::now(),
        )
        .with_labels(request.labels.clone());
        let mut all = self.state();
        if all.containers.contains_key(&id) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("there is a container {id}"),
            ));
        }
        let container = Container {
            info,
            request,
            files,
            running: Vec::new(),
        };
        all.containers.insert(id.clone(), container);
        Ok(Provisioned::new(id, session, effective))
    }

    async fn start(&self, request: StartRequest) -> Result<ExecSession> {
        self.note("start");
        let id = &request.container.id;
        let process = self.with(id, |container| {
            match (&container.request.process, container.info.state) {
                (Some(process), ContainerState::Created) => {
                    container.info.state = ContainerState::Running;
                    Ok(process.clone())
                }
                (Some(_), _) => Err(Error::new(ErrorKind::Conflict, "the main process was started already")),
                (None, _) => Err(Error::new(ErrorKind::Conflict, "the container has no main process")),
            }
        })?;
        self.run(id, &process, request.deadline, true)
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        self.note("exec");
        let id = &request.container.id;
        self.with(id, |container| match container.info.state {
            ContainerState::Running => Ok(()),
            _ => Err(Error::new(ErrorKind::Conflict, "the container is not running")),
        })?;
        self.run(id, &request.process, request.deadline, false)
    }

    async fn copy_from(&self, request: CopyFromRequest) -> Result<ByteStream> {
        self.note("copy_from");
        let path = request.path.trim_end_matches('/');
        let files = self.with(&request.container.id, |container| Ok(container.files.clone()))?;
        let archive = match self.archives.get(path) {
            Some(archive) => archive.clone(),
            None => pack(&files, path)?.into(),
        };
        // In pieces that end anywhere, as from a socket.
        let pieces: Vec<_> = archive.chunks(1000).map(Bytes::copy_from_slice).map(Ok).collect();
        Ok(stream::iter(pieces).boxed())
    }

    async fn copy_to(&self, request: CopyToRequest) -> Result<()> {
        self.note("copy_to");
        let path = request.path.trim_end_matches('/');
        let chunks: Vec<Bytes> = request.archive.try_collect().await?;
        let broken = |error| Error::io("the archive is broken", error);
        self.with(&request.container.id, |container| {
            if container.files.get(path) != Some(&None) {
                return Err(Error::not_found(format!("there is no folder {path:?}")));
            }
            for entry in tar::Archive::new(&*chunks.concat()).entries().map_err(broken)? {
                let mut entry = entry.map_err(broken)?;
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                if name.split('/').any(|component| component == "..") {
                    return Err(Error::new(
                        ErrorKind::DataInvalid,
                        format!("{name:?} leaves its folder"),
                    ));
                }
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(broken)?;
                let content = entry.header().entry_type().is_file().then(|| content.into());
                write_file(
                    &mut container.files,
                    &format!("{path}/{}", name.trim_matches('/')),
                    content,
                );
            }
            Ok(())
        })
    }

    async fn stats(&self, container: &ContainerHandle) -> Result<ContainerStats> {
        self.note("stats");
        self.with(&container.id, |container| {
            let mut stats = ContainerStats::default();
            let limit = container.request.resources.memory_bytes.unwrap_or_default();
            stats.memory_limit_mb = limit as f64 / f64::from(1 << 20);
            Ok(stats)
        })
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>> {
        self.note("list");
        let matches = |info: &ContainerInfo| labels.iter().all(|(key, value)| info.labels.get(key) == Some(value));
        Ok(self.containers().into_iter().filter(matches).collect())
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.note("inspect");
        self.with(id, |container| Ok(container.info.clone()))
    }

    async fn destroy(&self, id: &ContainerId) -> Result<()> {
        self.note("destroy");
        if let Some(container) = self.state().containers.remove(id) {
            for process in container.running {
                let reason = "the container was destroyed".to_owned();
                let _ = process.send(Some(Exit::RuntimeLost { reason }));
            }
        }
        Ok(())
    }

    async fn reap(&self) -> Result<Vec<String>> {
        self.note("reap");
        Ok(Vec::new())
    }
}

/// The archive of a path, with names relative to its parent.
fn pack(files: &BTreeMap<String, Option<Bytes>>, path: &str) -> Result<Vec<u8>> {
    let parent = path.rfind('/').map_or(0, |slash| slash + 1);
    let mut archive = crate::hostile::RawArchive::new();
    let mut found = false;
    for (name, content) in files {
        let inside = name == path || name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        if !inside {
            continue;
        }
        found = true;
        archive = match content {
            Some(content) => archive.file(&name[parent..], content),
            None => archive.folder(&format!("{}/", &name[parent..]), 0o755),
        };
    }
    match found {
        true => Ok(archive.finish()),
        false => Err(Error::not_found(format!("there is no {path:?} in the container"))),
    }
}

#[derive(Debug)]
struct Control(watch::Sender<Option<Exit>>);

impl Control {
    fn end(&self, exit: Exit) {
        // The first ending wins.
        self.0
            .send_if_modified(|ending| ending.is_none() && ending.replace(exit).is_none());
    }
}

#[async_trait]
impl ExecControl for Control {
    async fn kill(&self, reason: KillReason) -> Result<()> {
        self.end(match reason {
            KillReason::Deadline => Exit::Deadline,
            KillReason::Cancelled => Exit::Cancelled,
        });
        Ok(())
    }

    async fn signal(&self, signal: i32) -> Result<()> {
        self.end(Exit::Signalled { signal });
        Ok(())
    }

    async fn resize(&self, _: u16, _: u16) -> Result<()> {
        Err(Error::unsupported("a scripted process has no terminal"))
    }

    fn abandon(&self) {
        self.end(Exit::Cancelled);
    }
}

#[derive(Debug)]
struct Input(mpsc::Sender<Bytes>);

#[async_trait]
impl ExecInput for Input {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let sent = self.0.send(bytes).await;
        sent.map_err(|_| Error::new(ErrorKind::Conflict, "the process has closed its input"))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
