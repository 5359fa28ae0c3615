//! The embedded runtime as a [`ContainerRuntime`].

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use agents_core::{
    AdapterInfo, Admitted, Availability, ByteStream, ContainerHandle, ContainerId, ContainerInfo, ContainerRuntime,
    ContainerState, ContainerStats, CopyFromRequest, CopyToRequest, Error, ErrorKind, ExecRequest, ExecSession,
    ImagePullPolicy, ProgressListener, ProvisionProgress, Provisioned, Result, RuntimeCapabilities, SessionId,
    StartRequest, User,
};
use agents_image::{ImageRef, ImageStore, Progress, PullPolicy, ResolveOptions, Resolved};
use async_trait::async_trait;

use crate::{
    HELPER_NAME,
    connection::{Connection, lost, unexpected},
    gvisor::{CLASS, Gvisor},
    host::Host,
    is_initialised, plan,
    spec::{ContainerSpec, Identity, Reply, Request},
    state, streams, take_ahead, wire,
};

/// The embedded runtime.
///
/// Containers end with the runtime that provisioned them: dropping the value, or the end of the process in whatever way,
/// destroys them. Another process can use them meanwhile through its own `NativeRuntime` over the same folder.
pub struct NativeRuntime {
    store: PathBuf,
    images: PathBuf,
    opened: OnceLock<ImageStore>,
    helper: Option<PathBuf>,
    host: Host,
    gvisor: Option<Gvisor>,
    owned: Mutex<HashMap<ContainerId, Owned>>,
    readings: Mutex<HashMap<ContainerId, (Instant, f64)>>,
}

/// What keeps a container alive.
#[derive(Debug)]
struct Owned {
    /// The helper ends when this is closed.
    _link: OwnedFd,
    /// Keeps the image's layers from being removed.
    _image: Resolved,
}

impl fmt::Debug for NativeRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativeRuntime")
            .field("store", &self.store)
            .field("images", &self.images)
            .finish_non_exhaustive()
    }
}

impl NativeRuntime {
    /// A runtime that keeps its containers' folders in `store` and its images in `images`, both made when needed.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a relative path.
    pub fn new(store: impl Into<PathBuf>, images: impl Into<PathBuf>, helper: Option<PathBuf>) -> Result<Self> {
        let (store, images) = (store.into(), images.into());
        for path in [&store, &images] {
            if !path.is_absolute() {
                return Err(Error::invalid(format!(
                    "the folder {} is relative; make it absolute",
                    path.display()
                )));
            }
        }
        let host = Host::detect();
        Ok(Self {
            store,
            images,
            opened: OnceLock::new(),
            helper,
            gvisor: Gvisor::find(None, &host),
            host,
            owned: Mutex::default(),
            readings: Mutex::default(),
        })
    }

    /// Takes this `runsc` for `runtime_class: gvisor`, and not the one of the search path.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a relative path, `NotFound` when there is no such program.
    pub fn with_runsc(mut self, runsc: impl Into<PathBuf>) -> Result<Self> {
        let runsc = runsc.into();
        if !runsc.is_absolute() {
            return Err(Error::invalid(format!(
                "runsc: {} is relative; write an absolute path",
                runsc.display()
            )));
        }
        if !runsc.is_file() {
            return Err(Error::not_found(format!(
                "runsc: there is no program {}",
                runsc.display()
            )));
        }
        self.gvisor = Gvisor::find(Some(&runsc), &self.host);
        Ok(self)
    }

    /// The sandboxes, for a container that is one.
    fn sandbox(&self, identity: &Identity) -> Result<Option<&Gvisor>> {
        match (&self.gvisor, identity.sandboxed) {
            (_, false) => Ok(None),
            (Some(gvisor), true) => Ok(Some(gvisor)),
            (None, true) => Err(Error::new(
                ErrorKind::Unavailable,
                "the container runs in gVisor, and there is no runsc here; set `runsc` in the runtime's configuration",
            )),
        }
    }

    /// Makes a container in a sandbox of gVisor.
    async fn create_sandboxed(
        &self,
        gvisor: &Gvisor,
        request: &agents_core::ProvisionRequest,
        image: Resolved,
    ) -> Result<Provisioned> {
        let spec = plan::specification(request, &image, &self.host, &self.store)?;
        let user = User {
            uid: spec.uid,
            gid: spec.gid,
        };
        let identity = spec.identity;
        make_folder(&identity)?;
        // Also when this future is dropped.
        let mut unfinished = Unfinished(Some(identity.clone()));
        let launcher = self
            .helper()
            .map_err(|reason| Error::new(ErrorKind::Unavailable, reason))?;
        let started = gvisor
            .start_sandbox(request, user, &image, &identity, &launcher)
            .await?;
        unfinished.0 = None;
        let id = request.name.clone();
        let (effective, link) = gvisor.keep(id.clone(), started);
        let owned = Owned {
            _link: link,
            _image: image,
        };
        self.owned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), owned);
        Ok(Provisioned::new(id, request.session_id.clone(), effective))
    }

    fn image_store(&self) -> Result<&ImageStore> {
        if let Some(store) = self.opened.get() {
            return Ok(store);
        }
        let store = ImageStore::open(&self.images)?;
        Ok(self.opened.get_or_init(|| store))
    }

    async fn resolve(&self, request: &agents_core::ProvisionRequest) -> Result<Resolved> {
        let image = ImageRef::parse(&request.image)?;
        let mut options = ResolveOptions::new().with_pull(match request.pull_policy {
            ImagePullPolicy::Always => PullPolicy::Always,
            ImagePullPolicy::Missing => PullPolicy::Missing,
            ImagePullPolicy::Never => PullPolicy::Never,
        });
        if let Some(listener) = &request.progress {
            options = options.with_progress(progress(listener.clone(), request.image.clone()));
        }
        self.image_store()?.resolve(&image, &options).await
    }

    /// The program that becomes the helper.
    fn helper(&self) -> Result<PathBuf, String> {
        if let Some(helper) = &self.helper {
            return if helper.is_file() {
                Ok(helper.clone())
            } else {
                Err(format!("there is no helper at {}", helper.display()))
            };
        }
        if is_initialised() {
            return Ok(PathBuf::from("/proc/self/exe"));
        }
        let beside = std::env::current_exe()
            .ok()
            .and_then(|own| Some(own.parent()?.join("agents-native-helper")));
        beside.filter(|path| path.is_file()).ok_or_else(|| {
            "this program has not called agents_sdk::init() first in main, and there is no agents-native-helper beside it"
                .to_owned()
        })
    }

    fn folder(&self, id: &ContainerId) -> PathBuf {
        self.store.join(id.as_str())
    }

    fn identity(&self, id: &ContainerId) -> Result<Identity> {
        state::identity(&self.folder(id)).map_err(|_| no_container(id))
    }

    fn connect(&self, id: &ContainerId) -> Result<Connection> {
        self.identity(id)?;
        let stream = state::connect(&self.folder(id)).map_err(|error| {
            Error::new(ErrorKind::Conflict, "the container is not running: its helper is gone")
                .with_context("container", id)
                .with_source(error)
        })?;
        Connection::new(stream).map_err(lost)
    }

    /// Starts the helper and lets it make the container.
    async fn create(&self, spec: ContainerSpec, image: Resolved) -> Result<Provisioned> {
        let identity = spec.identity.clone();
        let id = ContainerId::new(identity.id.as_str())?;
        let session_id = SessionId::new(identity.session_id.as_str())?;
        make_folder(&identity)?;
        let link = match self.spawn() {
            Ok(link) => link,
            Err(error) => {
                let _ = state::remove(&identity);
                return Err(error);
            }
        };
        // Sent before anything is awaited: from here on the helper cleans up, also when this future is dropped, which closes
        // the link. The helper reads at once, so that this does not wait.
        if let Err(error) = wire::send(&link, &spec, &[]) {
            let _ = state::remove(&identity);
            return Err(lost(error));
        }
        drop(spec);
        let kept = link.try_clone().map_err(lost)?;
        let mut connection = Connection::new(link).map_err(lost)?;
        match connection.receive().await {
            Ok(Some((Reply::Created(effective), _))) => {
                let owned = Owned {
                    _link: kept.into(),
                    _image: image,
                };
                self.owned
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(id.clone(), owned);
                Ok(Provisioned::new(id, session_id, *effective))
            }
            Ok(Some((reply, _))) => Err(unexpected(&reply)),
            Ok(None) | Err(_) => {
                state::remove(&identity).map_err(|error| Error::io("cannot remove a failed container", error))?;
                Err(Error::new(
                    ErrorKind::Unavailable,
                    "the helper ended before the container was made; see `agents doctor`",
                ))
            }
        }
    }

    /// Starts a helper, with a connection as its standard input.
    fn spawn(&self) -> Result<UnixStream> {
        if self.helper.is_none()
            && let Some(link) = take_ahead()
        {
            return Ok(link);
        }
        let helper = self.helper().map_err(|reason| {
            Error::new(
                ErrorKind::Unavailable,
                format!("{reason}; call agents_sdk::init() first in main, or set `helper`"),
            )
        })?;
        let broken = |error| Error::io(format!("cannot start the helper {}", helper.display()), error);
        let (ours, theirs) = UnixStream::pair().map_err(broken)?;
        let mut command = std::process::Command::new(&helper);
        command
            .arg0(HELPER_NAME)
            .env_clear()
            .current_dir("/")
            // A terminal's Ctrl-C is for the caller, who decides what it means for the container.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = tokio::process::Command::from(command).spawn().map_err(broken)?;
        tokio::spawn(async move {
            // Only takes the ended helper off.
            let _ = child.wait().await;
        });
        Ok(ours)
    }

    async fn state(&self, id: &ContainerId) -> (ContainerState, Option<u32>) {
        let Ok(mut connection) = self.connect(id) else {
            return (ContainerState::Exited, None);
        };
        match connection.ask(&Request::State, &[]).await {
            Ok((Reply::State { state, pid }, _)) => (state, Some(pid).filter(|_| state != ContainerState::Exited)),
            _ => (ContainerState::Exited, None),
        }
    }

    async fn info_of(&self, identity: Identity) -> Result<ContainerInfo> {
        let id = ContainerId::new(identity.id.as_str())?;
        let (state, pid) = match self.sandbox(&identity) {
            Ok(Some(gvisor)) => gvisor.state(&identity).await,
            Ok(None) => self.state(&id).await,
            Err(_) => (ContainerState::Exited, None),
        };
        let created_at = identity.created_at.parse().unwrap_or_default();
        let session_id = SessionId::new(identity.session_id)?;
        Ok(ContainerInfo::found(id, session_id, state, identity.image, created_at)
            .with_labels(identity.labels)
            .with_pid(pid))
    }
}

/// Removes what was made of a sandbox that has not come to be.
struct Unfinished(Option<Identity>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(identity) = self.0.take() {
            remove_sandbox(&identity).unwrap_or_else(|error| {
                tracing::warn!(container = identity.id, %error, "cannot remove a sandbox; `agents gc` will");
            });
        }
    }
}

/// Kills a sandbox and removes its folder.
fn remove_sandbox(identity: &Identity) -> io::Result<()> {
    // What runsc still writes while it ends may keep the folder for a moment.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(running) = state::running(&identity.folder) {
            state::kill_processes(identity);
            state::kill_helper(&running);
        }
        match state::remove(identity) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Makes a container's folder, which takes its name.
fn make_folder(identity: &Identity) -> Result<()> {
    state::create(identity).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::new(
            ErrorKind::AlreadyExists,
            format!("there is a container {} already", identity.id),
        ),
        _ => Error::io(
            format!("cannot make the container's folder {}", identity.folder.display()),
            error,
        ),
    })
}

fn no_container(id: &ContainerId) -> Error {
    Error::not_found(format!("there is no container {id}"))
}

fn progress(listener: ProgressListener, image: String) -> agents_image::ProgressFn {
    std::sync::Arc::new(move |progress| {
        let told = match progress {
            Progress::Resolving => ProvisionProgress::Resolving { image: image.clone() },
            Progress::Layer { digest, total, done } => ProvisionProgress::Pulling {
                layer: digest,
                done,
                total,
            },
            Progress::Unpacking { digest } => ProvisionProgress::Unpacking { layer: digest },
            Progress::Done => ProvisionProgress::ImageReady,
            _ => return,
        };
        listener.tell(told);
    })
}

fn milliseconds(duration: Option<Duration>) -> Option<u64> {
    duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[async_trait]
impl ContainerRuntime for NativeRuntime {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("native", env!("CARGO_PKG_VERSION"))
    }

    fn capabilities(&self) -> RuntimeCapabilities {
        let own = self.host.capabilities();
        match &self.gvisor {
            Some(gvisor) => own.clone().with_runtime_class(CLASS, gvisor.capabilities(&own)),
            None => own,
        }
    }

    async fn check_availability(&self) -> Result<Availability> {
        let helper = self.helper().map(|path| path.display().to_string());
        Ok(self.host.availability(helper))
    }

    async fn provision(&self, request: Admitted) -> Result<Provisioned> {
        let request = request.into_request();
        let image = self.resolve(&request).await?;
        if request.security.runtime_class.is_some()
            && let Some(gvisor) = &self.gvisor
        {
            return self
                .create_sandboxed(gvisor, &request, image)
                .await
                .map_err(|error| error.with_operation("provision"));
        }
        let spec = plan::specification(&request, &image, &self.host, &self.store)?;
        self.create(spec, image)
            .await
            .map_err(|error| error.with_operation("provision"))
    }

    async fn start(&self, request: StartRequest) -> Result<ExecSession> {
        let id = &request.container.id;
        let start = Request::Start {
            deadline_ms: milliseconds(request.deadline),
        };
        let identity = self.identity(id)?;
        if let Some(gvisor) = self.sandbox(&identity)? {
            return gvisor.start(&identity, &request).await;
        }
        // Without a main process the helper refuses.
        let main = identity.main.unwrap_or_default();
        streams::start(self.connect(id)?, start, main.stdin, main.tty, true).await
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        let process = plan::process(&request.process);
        if process.command.is_empty() {
            return Err(Error::invalid("the command is empty"));
        }
        let identity = self.identity(&request.container.id)?;
        if let Some(gvisor) = self.sandbox(&identity)? {
            return gvisor.exec(&identity, request).await;
        }
        let (stdin, tty) = (process.stdin, process.tty.is_some());
        let exec = Request::Exec {
            process,
            deadline_ms: milliseconds(request.deadline),
        };
        streams::start(self.connect(&request.container.id)?, exec, stdin, tty, false).await
    }

    async fn copy_from(&self, request: CopyFromRequest) -> Result<ByteStream> {
        let identity = self.identity(&request.container.id)?;
        if let Some(gvisor) = self.sandbox(&identity)? {
            absolute(&request.path)?;
            return gvisor.copy_from(&identity, &request).await;
        }
        if request.quiesce && self.host.hierarchy.is_err() {
            return Err(Error::unsupported(
                "the container's processes cannot be stopped without cgroups",
            ));
        }
        let copy = Request::CopyFrom {
            path: absolute(&request.path)?,
            quiesce: request.quiesce,
        };
        streams::read_archive(self.connect(&request.container.id)?, copy).await
    }

    async fn copy_to(&self, request: CopyToRequest) -> Result<()> {
        let identity = self.identity(&request.container.id)?;
        if let Some(gvisor) = self.sandbox(&identity)? {
            absolute(&request.path)?;
            return gvisor.copy_to(&identity, request).await;
        }
        let copy = Request::CopyTo {
            path: absolute(&request.path)?,
        };
        streams::write_archive(&mut self.connect(&request.container.id)?, copy, request.archive).await
    }

    async fn stats(&self, container: &ContainerHandle) -> Result<ContainerStats> {
        const MIB: f64 = (1u64 << 20) as f64;
        let identity = self.identity(&container.id)?;
        let (usage, memory_limit_bytes, disk_used_bytes, age_seconds) = match self.sandbox(&identity)? {
            Some(gvisor) => {
                let (usage, memory_limit) = gvisor.usage(&identity).await?;
                (usage, memory_limit, None, identity.age_seconds())
            }
            None => {
                let reply = self.connect(&container.id)?.ask(&Request::Stats, &[]).await?.0;
                let Reply::Stats(counters) = reply else {
                    return Err(unexpected(&reply));
                };
                (
                    counters.usage,
                    counters.memory_limit_bytes,
                    counters.disk_used_bytes,
                    counters.age_seconds,
                )
            }
        };
        let mut stats = ContainerStats::default();
        stats.memory_mb = usage.memory_bytes.unwrap_or(0) as f64 / MIB;
        stats.memory_limit_mb = memory_limit_bytes.unwrap_or(0) as f64 / MIB;
        stats.cpu_seconds = usage.cpu_seconds;
        stats.memory_peak_bytes = usage.memory_peak_bytes;
        stats.pids = usage.pids;
        stats.disk_used_bytes = disk_used_bytes;
        if let Some(seconds) = usage.cpu_seconds {
            let now = Instant::now();
            let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
            let before = readings.insert(container.id.clone(), (now, seconds));
            drop(readings);
            let (elapsed, used) = match before {
                Some((then, before)) => (now.duration_since(then).as_secs_f64(), seconds - before),
                None => (age_seconds, seconds),
            };
            stats.cpu_percent = if elapsed > 0.0 { used / elapsed * 100.0 } else { 0.0 };
        }
        Ok(stats)
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>> {
        let folders = state::folders(&self.store).map_err(|error| unreadable(&self.store, error))?;
        let mut found = Vec::new();
        for folder in folders {
            // A container that goes away meanwhile is not there.
            let Ok(identity) = state::identity(&folder) else {
                continue;
            };
            if labels
                .iter()
                .all(|(key, value)| identity.labels.get(key) == Some(value))
            {
                found.push(self.info_of(identity).await?);
            }
        }
        Ok(found)
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.info_of(self.identity(id)?).await
    }

    async fn destroy(&self, id: &ContainerId) -> Result<()> {
        let Ok(identity) = self.identity(id) else { return Ok(()) };
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if identity.sandboxed {
            if let Some(gvisor) = &self.gvisor {
                gvisor.forget(id);
            }
            let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            drop(owned);
            return tokio::task::spawn_blocking(move || remove_sandbox(&identity))
                .await
                .map_err(|error| Error::unexpected("the removal of a container panicked").with_source(error))?
                .map_err(|error| {
                    Error::io(format!("cannot remove the container {id}"), error).with_operation("destroy")
                });
        }
        let outcome = match self.connect(id) {
            Ok(mut connection) => match connection.ask(&Request::Destroy, &[]).await {
                Ok((Reply::Done, _)) => Ok(()),
                Ok((reply, _)) => Err(unexpected(&reply)),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        drop(owned);
        if outcome.is_ok() {
            return Ok(());
        }
        // The helper is gone, or goes: what it has not removed is removed here.
        let removed = tokio::task::spawn_blocking(move || {
            if let Some(running) = state::running(&identity.folder) {
                state::kill_helper(&running);
            }
            state::remove(&identity)
        });
        removed
            .await
            .map_err(|error| Error::unexpected("the removal of a container panicked").with_source(error))?
            .map_err(|error| Error::io(format!("cannot remove the container {id}"), error).with_operation("destroy"))
    }

    async fn reap(&self) -> Result<Vec<String>> {
        let store = self.store.clone();
        let reaped =
            tokio::task::spawn_blocking(move || state::reap(&store).map_err(|error| unreadable(&store, error)));
        reaped
            .await
            .map_err(|error| Error::unexpected("the clean-up panicked").with_source(error))?
    }
}

fn unreadable(store: &Path, error: io::Error) -> Error {
    Error::io(format!("cannot clean up in {}", store.display()), error)
}

fn absolute(path: &str) -> Result<String> {
    if agents_core::guard::is_clean_absolute(path) {
        Ok(path.to_owned())
    } else {
        Err(Error::invalid(format!(
            "{path:?} is not an absolute path in the container without '.', '..' and empty parts"
        )))
    }
}
