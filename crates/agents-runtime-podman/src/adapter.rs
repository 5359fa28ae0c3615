//! Podman as a [`ContainerRuntime`].

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use agents_core::{
    AdapterInfo, Admitted, Availability, BuildImageRequest, ByteStream, ContainerHandle, ContainerId, ContainerInfo,
    ContainerRuntime, ContainerState, ContainerStats, CopyFromRequest, CopyToRequest, Error, ErrorKind, ExecRequest,
    ExecSession, Problem, Provisioned, Result, RuntimeCapabilities, StartRequest,
};
use agents_guest::{
    Afterwards, Plan, Recollection, SpawnRequest, StartOptions, container_info, exec_command, read_command,
    status_command, write_command,
};
use async_trait::async_trait;

use crate::{
    address::Address,
    assets::Assets,
    build, capabilities,
    client::Client,
    config::PodmanConfig,
    connect::Connector,
    containers::Attached,
    engine::{self, Engine},
    image::{self, Pulls},
    ingress::{Bound, Ports},
    judge::PodmanJudge,
    kernel::{self, Counted},
    model::{self, View},
    provision::{self, LABEL_ATTEMPT, Waiting},
    remote::{self, Volumes},
    spec::{self, Delivery, ProgramMount},
};

/// The podman runtime.
///
/// Containers outlive the value and the process, and are found again by their labels; only a main process that has not been
/// started can be started by nobody but who provisioned it.
pub struct PodmanRuntime {
    client: Arc<Client>,
    config: PodmanConfig,
    pulls: Pulls,
    recollection: Recollection,
    assets: Assets,
    volumes: Volumes,
    engine: RwLock<Option<Arc<Engine>>>,
    waiting: Mutex<HashMap<ContainerId, Waiting>>,
    /// The connections that main processes were started over.
    started: Mutex<HashMap<ContainerId, Afterwards>>,
    readings: Mutex<HashMap<ContainerId, (Instant, f64)>>,
    ports: Mutex<HashMap<ContainerId, Ports>>,
}

impl fmt::Debug for PodmanRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodmanRuntime")
            .field("address", &self.client.address().to_string())
            .finish_non_exhaustive()
    }
}

impl PodmanRuntime {
    /// A runtime over the engine that the configuration names. What can be made again is kept in `folder`, which is made
    /// when needed: the guest program, seccomp profiles, and what is known of the engine.
    ///
    /// Nothing is connected to; [`learn`](Self::learn) asks the engine what it can do.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key, also for certificates that cannot be read.
    pub fn new(config: PodmanConfig, folder: impl Into<PathBuf>) -> Result<Self> {
        config.check()?;
        let folder = folder.into();
        let address = Address::resolve(&config)?;
        let connector = Connector::new(address, &config)?;
        Ok(Self {
            client: Arc::new(Client::new(connector, config.timeout())),
            pulls: Pulls {
                platform: config.platform.clone(),
                auth_file: config.auth_file.clone(),
                idle: config.timeout() * 5,
            },
            recollection: Recollection::new(folder.clone(), engine::BELIEVED),
            assets: Assets::new(folder),
            volumes: Volumes::default(),
            config,
            engine: RwLock::new(None),
            waiting: Mutex::default(),
            started: Mutex::default(),
            readings: Mutex::default(),
            ports: Mutex::default(),
        })
    }

    /// Asks the engine what it can do, if it can be reached. Until then [`capabilities`](ContainerRuntime::capabilities) are
    /// those of an engine that can do everything, and each request is compared again before anything is created.
    pub async fn learn(&self) {
        if let Err(error) = self.engine().await {
            tracing::debug!(%error, "podman cannot be asked");
        }
    }

    /// Whether an engine answers. Quick: one small call.
    pub async fn answers(&self) -> bool {
        engine::version(&self.client).await.is_ok()
    }

    fn known(&self) -> Option<Arc<Engine>> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn engine(&self) -> Result<Arc<Engine>> {
        if let Some(engine) = self.known() {
            return Ok(engine);
        }
        let version = engine::version(&self.client).await?;
        let address = self.client.address();
        if let Some(engine) = self
            .recollection
            .recall(&address.to_string(), address.socket(), &version)
        {
            return Ok(self.remember(engine));
        }
        self.ask(&version).await
    }

    async fn ask(&self, version: &str) -> Result<Arc<Engine>> {
        let engine = Engine::ask(&self.client).await?;
        let address = self.client.address();
        self.recollection
            .keep(&address.to_string(), address.socket(), version, &engine);
        Ok(self.remember(engine))
    }

    fn remember(&self, engine: Engine) -> Arc<Engine> {
        let engine = Arc::new(engine);
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&engine));
        engine
    }

    /// Brings what is ours to where the engine finds it.
    async fn delivery(&self, plan: &Plan, engine: &Engine, image: &str) -> Result<Delivery> {
        let readable = engine.is_gvisor(plan.runtime_class.as_deref());
        if !self.client.address().is_local() {
            let profile = &plan.seccomp_profile;
            return self.volumes.deliver(&self.client, image, profile, readable).await;
        }
        let program = self.assets.program(readable)?;
        let profile = self.assets.profile(&plan.seccomp_profile)?;
        Ok(Delivery {
            program: ProgramMount::Folder(spec::utf8(&program)?.to_owned()),
            seccomp_profile: spec::utf8(&profile)?.to_owned(),
        })
    }

    /// A connection to a command of the guest program in a running container.
    async fn guest(&self, id: &ContainerId, command: &[String]) -> Result<Attached> {
        self.client
            .exec(id.as_str(), command)
            .await
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => no_container(id).with_source(error),
                _ => error.with_context("container", id),
            })
    }

    async fn view(&self, id: &ContainerId) -> Result<View> {
        self.client
            .inspect(id.as_str())
            .await
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => no_container(id).with_source(error),
                _ => error,
            })
    }

    /// What is known of a container from an item of a list or an inspection; `None` for one that is not of this SDK.
    async fn info_of(
        &self,
        name: &str,
        status: &str,
        labels: BTreeMap<String, String>,
        pid: Option<i64>,
        view: &View,
    ) -> Result<Option<ContainerInfo>> {
        let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let Some(info) = container_info(name, &labels, model::state(status), model::created(view)) else {
            return Ok(None);
        };
        let mut labels = labels;
        labels.remove(LABEL_ATTEMPT);
        let mut info = info
            .with_labels(labels)
            .with_pid(pid.filter(|_| self.client.address().is_local()));
        if info.state == ContainerState::Running {
            info.state = self.main_state(&info.handle.id, info.pid).await?;
        }
        Ok(Some(info))
    }

    /// The state of the main process of a container that runs: the guest program tells it by its name, and when asked.
    async fn main_state(&self, id: &ContainerId, pid: Option<u32>) -> Result<ContainerState> {
        if let Some(state) = pid
            .and_then(kernel::comm)
            .as_deref()
            .and_then(agents_guest::protocol::State::of_comm)
        {
            return Ok(state.into());
        }
        match self.guest(id, &status_command()).await {
            Ok(attached) => {
                let asked = tokio::time::timeout(self.client.deadline(), attached.connection.status()).await;
                match asked {
                    Ok(state) => state,
                    Err(_) => Err(
                        Error::new(ErrorKind::Timeout, "the container's guest program does not answer")
                            .with_context("container", id),
                    ),
                }
            }
            // It ended meanwhile.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(ContainerState::Exited),
            Err(error) => Err(error),
        }
    }

    fn judge(&self, id: &ContainerId, attached: &Attached, group: Option<kernel::Group>) -> Arc<PodmanJudge> {
        Arc::new(PodmanJudge::new(
            Arc::clone(&self.client),
            id.as_str().to_owned(),
            attached.complaint.clone(),
            group,
        ))
    }
}

fn no_container(id: &ContainerId) -> Error {
    Error::not_found(format!("there is no container {id}"))
}

fn absolute(path: &str) -> Result<()> {
    if agents_core::guard::is_clean_absolute(path) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{path:?} is not an absolute path in the container without '.', '..' and empty parts"
    )))
}

#[async_trait]
impl ContainerRuntime for PodmanRuntime {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("podman", env!("CARGO_PKG_VERSION")).with_name(self.client.address().to_string())
    }

    fn capabilities(&self) -> RuntimeCapabilities {
        match self.known() {
            Some(engine) => capabilities::of_engine(&engine, self.client.address()),
            None => capabilities::unknown(),
        }
    }

    async fn check_availability(&self) -> Result<Availability> {
        let asked = match engine::version(&self.client).await {
            Ok(version) => self.ask(&version).await,
            Err(error) => Err(error),
        };
        let engine = match asked {
            Ok(engine) => engine,
            Err(error) => {
                let (reason, remedy) = match error.message().split_once("; ") {
                    Some((reason, remedy)) => (reason.to_owned(), remedy.to_owned()),
                    None => (
                        error.message().to_owned(),
                        "check that `podman info` works there".to_owned(),
                    ),
                };
                let source = std::error::Error::source(&error).map(|source| format!(" ({source})"));
                return Ok(Availability::unavailable(
                    format!("{reason}{}", source.unwrap_or_default()),
                    remedy,
                ));
            }
        };
        let mode = if engine.rootless { "rootless" } else { "as root" };
        let cgroups = if engine.cgroup_v2 { "v2" } else { "v1" };
        let mut availability = Availability::ready()
            .with_fact(format!(
                "podman {} at {}, {mode}",
                engine.version,
                self.client.address()
            ))
            .with_fact(format!(
                "cgroup {cgroups} with {}, kernel {}, {}",
                engine.controllers.join(", "),
                engine.kernel,
                engine.arch
            ))
            .with_fact(format!(
                "runtimes: {}; {} by default",
                engine.runtimes.join(", "),
                engine.default_runtime
            ));
        for (name, support) in self.capabilities().entries() {
            if let agents_core::Support::Refused { reason, remedy } = support
                && ["memory_limit", "cpu_limit", "pids_limit", "seccomp"].contains(&name)
            {
                availability = availability.with_problem(Problem::new(format!("{name}: {reason}"), remedy.clone()));
            }
        }
        if !engine.at_least(4, 0) {
            return Ok(Availability::unavailable(
                format!("podman {} is too old", engine.version),
                "use podman 4.0 or later; 4.3 or later for mounts in rootless containers",
            ));
        }
        Ok(availability)
    }

    async fn provision(&self, request: Admitted) -> Result<Provisioned> {
        agents_guest::check_engine_image(&request.request().image)
            .map_err(|error| error.with_operation("provision"))?;
        let engine = self.engine().await?;
        // The engine may have become known only now.
        let mut request = Admitted::new(self, request.into_request())?.into_request();
        provision::choose_user(&mut request, &engine);
        // What is wrong with the request itself is found before an image is pulled for it.
        provision::check_binds(&Plan::new(&request, None)?, &engine)?;
        let image = image::ensure(
            &self.client,
            &self.pulls,
            &request.image,
            request.pull_policy,
            request.progress.as_ref(),
        )
        .await?;
        let mut plan = Plan::new(&request, Some(&image.user))?;
        if engine.is_gvisor(plan.runtime_class.as_deref()) {
            plan = plan.on_gvisor();
        }
        provision::check_binds(&plan, &engine)?;
        let delivery = self.delivery(&plan, &engine, &image.id).await?;
        let specification = spec::specification(&plan, &image.id, &engine, &delivery, self.config.relabel)?;
        let id = request.name.clone();
        let bound = Bound::take(&plan.ingress_ports).await?;
        let made = provision::make(&self.client, request, plan, &engine, specification).await;
        if made.is_err() {
            // The next one looks whether what is ours is still there.
            self.volumes.forget().await;
        }
        let made = made?;
        let ports = bound.carry(&self.client, id.as_str());
        self.ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), ports);
        if let Some(waiting) = made.waiting {
            self.waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id, waiting);
        }
        Ok(made.provisioned)
    }

    async fn start(&self, request: StartRequest) -> Result<ExecSession> {
        let id = &request.container.id;
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let Some(waiting) = waiting else {
            self.view(id).await?;
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container has no main process that waits: it has started, there is none, or another process provisioned it",
            )
            .with_context("container", id));
        };
        let judge = self.judge(id, &waiting.attached, waiting.group);
        let options = StartOptions::new().with_deadline(request.deadline);
        let (session, afterwards) = waiting.attached.connection.start(options, judge).await?;
        self.started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), afterwards);
        Ok(session)
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        let id = &request.container.id;
        if request.process.command.is_empty() {
            return Err(Error::invalid("the command is empty"));
        }
        let view = self.view(id).await?;
        let local = self.client.address().is_local();
        let group = if local { provision::group(&view) } else { None };
        let attached = self.guest(id, &exec_command()).await?;
        let judge = self.judge(id, &attached, group);
        let spawn = SpawnRequest::new(request.process)
            .with_default_working_dir(view.text("/Config/WorkingDir").unwrap_or("/"))
            .with_deadline(request.deadline);
        attached.connection.spawn(spawn, judge).await
    }

    async fn copy_from(&self, request: CopyFromRequest) -> Result<ByteStream> {
        absolute(&request.path)?;
        let afterwards = self
            .started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&request.container.id)
            .cloned();
        if let Some(afterwards) = afterwards {
            match afterwards.read(&request.path).await {
                None => {}
                // The engine may know why.
                Some(Err(error)) if error.kind() == ErrorKind::Unavailable => {}
                Some(read) => return read,
            }
        }
        let command = read_command(&request.path, request.quiesce);
        let attached = self.guest(&request.container.id, &command).await?;
        attached.connection.read().await
    }

    async fn copy_to(&self, request: CopyToRequest) -> Result<()> {
        absolute(&request.path)?;
        let attached = self.guest(&request.container.id, &write_command(&request.path)).await?;
        attached.connection.write(request.archive).await
    }

    async fn stats(&self, container: &ContainerHandle) -> Result<ContainerStats> {
        let id = &container.id;
        let view = self.view(id).await?;
        let local = self.client.address().is_local();
        let group = if local { provision::group(&view) } else { None };
        let counted = match &group {
            Some(group) => group.counted(),
            None => self.counted(id, &view).await?,
        };
        let mut stats = ContainerStats::default();
        const MIB: f64 = (1u64 << 20) as f64;
        stats.memory_mb = counted.memory_bytes.unwrap_or(0) as f64 / MIB;
        stats.memory_limit_mb = view.limit("/HostConfig/Memory").unwrap_or(0) as f64 / MIB;
        stats.cpu_seconds = counted.cpu_seconds;
        stats.memory_peak_bytes = counted.memory_peak_bytes;
        // Under gVisor these would be the threads of its own kernel.
        stats.pids = counted.pids.filter(|_| view.text("/OCIRuntime") != Some("runsc"));
        if let Some(seconds) = counted.cpu_seconds {
            let now = Instant::now();
            let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
            let before = readings.insert(id.clone(), (now, seconds));
            drop(readings);
            let (elapsed, used) = match before {
                Some((then, before)) => (now.duration_since(then).as_secs_f64(), seconds - before),
                None => (age(&view), seconds),
            };
            stats.cpu_percent = if elapsed > 0.0 {
                (used / elapsed * 100.0).max(0.0)
            } else {
                0.0
            };
        }
        Ok(stats)
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>> {
        let mut found = Vec::new();
        for view in self.client.list(labels).await? {
            let has = view.map("/Labels");
            let matches = labels.iter().all(|(key, value)| has.get(key) == Some(value));
            let Some(name) = view.texts("/Names").into_iter().next().filter(|_| matches) else {
                continue;
            };
            let status = view.text("/State").unwrap_or_default().to_owned();
            let info = self.info_of(&name, &status, has, view.number("/Pid"), &view).await;
            match info {
                Ok(info) => found.extend(info),
                // A container that goes away meanwhile is not there.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        let view = self.view(id).await?;
        let status = view.text("/State/Status").unwrap_or_default().to_owned();
        let name = view
            .text("/Name")
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned();
        let labels = view.map("/Config/Labels");
        let info = self
            .info_of(&name, &status, labels, view.number("/State/Pid"), &view)
            .await?;
        info.ok_or_else(|| Error::not_found(format!("the container {id} is not of this SDK")))
    }

    async fn destroy(&self, id: &ContainerId) -> Result<()> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.started.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.client
            .remove(id.as_str())
            .await
            .map_err(|error| error.with_context("container", id).with_operation("destroy"))
    }

    async fn reap(&self) -> Result<Vec<String>> {
        // A container is all that there is of one, and `list` has those of crashed creations too.
        if self.client.address().is_local() {
            return Ok(Vec::new());
        }
        remote::reap(&self.client).await
    }

    async fn build_image(&self, request: BuildImageRequest) -> Result<String> {
        build::build(&self.client, &request, self.pulls.idle, self.config.platform.as_deref()).await
    }
}

impl PodmanRuntime {
    /// The engine's own counters, and where it has none those of the processes.
    async fn counted(&self, id: &ContainerId, view: &View) -> Result<Counted> {
        if view.flag("/State/Running") != Some(true) {
            // What has ended uses nothing, and what it has used is not known any more.
            return Ok(Counted::default());
        }
        let error = match self.client.counters(id.as_str()).await {
            Ok(counters) => {
                return Ok(Counted {
                    memory_bytes: counters.limit("/MemUsage"),
                    memory_peak_bytes: None,
                    cpu_seconds: counters.float("/CPUNano").map(|nanoseconds| nanoseconds / 1e9),
                    pids: counters.limit("/PIDs"),
                });
            }
            Err(error) => error,
        };
        let pid = view.number("/State/Pid").and_then(|pid| u32::try_from(pid).ok());
        match pid.filter(|_| self.client.address().is_local()) {
            Some(pid) => Ok(kernel::of_tree(pid)),
            None => Err(error),
        }
    }
}

/// How long a container has run, in seconds.
fn age(view: &View) -> f64 {
    let started = view
        .text("/State/StartedAt")
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    started.map_or(0.0, |started| {
        jiff::Timestamp::now().duration_since(started).as_secs_f64()
    })
}
